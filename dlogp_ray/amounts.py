"""How many of something there are, in words."""


def amount(count: float, what: str) -> str:
    """``1 object``, ``2,000 objects``, ``0.5 GPUs``."""
    number = f"{count:g}" if isinstance(count, float) else f"{count:,}"
    return f"{number} {what}" + ("" if count == 1 else "s")
