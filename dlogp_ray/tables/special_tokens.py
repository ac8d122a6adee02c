"""Special tokens that rows of text have otherwise than their tokenizer would put them: counts.

A run has rows of the corpus (of an intervene job, problems) by these names: in its objects'
footers and its seal, an intervene job's in ``run.json``.
"""

from collections.abc import Mapping

BOS_THERE = "bos_there"
END_LEFT_OFF = "end_left_off"
EOS_THERE = "eos_there"

_SAID = {
    BOS_THERE: "whose prompt begins with what the tokenizer puts in front: it was not added again",
    END_LEFT_OFF: "whose prompt is without the end that the tokenizer appends to a text",
    EOS_THERE: "whose response ends already: append_eos added nothing",
}


def special_token_rows(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    """A heading and its fact for each that was counted, for people."""
    return [
        ("text rows", f"{counts[name]:,} {said}") for name, said in _SAID.items() if name in counts
    ]
