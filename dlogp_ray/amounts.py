"""How many of something there are, in words."""


def amount(count: int, what: str) -> str:
    """``1 object``, ``2,000 objects``."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")
