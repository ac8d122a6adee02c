"""Which sequences share a forward pass: sorted by length, under a token budget."""

from collections.abc import Sequence


def token_budget_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Cut sequences into batches whose padded size stays within ``token_budget``.

    Longest first, so that a budget that does not fit into memory shows at once; neighbours in
    length share a batch, so that little is padded. Ties keep their order: the result depends on
    nothing but the arguments.

    Args:
        lengths: Tokens of each sequence.
        token_budget: The most that rows x longest of a batch may be; a single sequence that is
            longer has a batch of its own.

    Returns:
        Batches of indices into ``lengths``; each index is in exactly one.
    """
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and (len(batches[-1]) + 1) * longest <= token_budget:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest = lengths[index]
    return batches
