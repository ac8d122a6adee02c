"""What became of a row: it is in the table whole, or it says why not."""

from collections.abc import Mapping
from enum import StrEnum


class Status(StrEnum):
    """``status`` of a row; all but ``OK`` come with an ``error``."""

    OK = "ok"

    # Of a row of the corpus, or of a problem.
    MALFORMED = "malformed"
    TOO_LARGE = "too_large"
    MISSING_COLUMN = "missing_column"
    WRONG_TYPE = "wrong_type"
    EMPTY_PROMPT = "empty_prompt"
    EMPTY_RESPONSE = "empty_response"
    ID_OUTSIDE_VOCABULARY = "id_outside_vocabulary"
    TOO_LONG = "too_long"
    MASK_LENGTH = "mask_length"
    OTHER_LENGTH = "other_length"
    DUPLICATE_SAMPLE_ID = "duplicate_sample_id"
    DUPLICATE_PROBLEM_ID = "duplicate_problem_id"
    UNFIT = "unfit"
    CHAT_TEMPLATE = "chat_template"
    TOKENIZER = "tokenizer"
    TWO_BOS = "two_bos"

    # Of its scores.
    NOT_FINITE = "not_finite"
    MASS_OUTSIDE_VOCABULARY = "mass_outside_vocabulary"

    # Of an answer: the verifier failed, and the answer is there.
    NOT_GRADED = "not_graded"

    # Of weights: another scored policy wrote the text, for which those of π_old don't hold.
    OTHER_GENERATOR = "other_generator"


def count_rejected(status: Mapping[str, int]) -> int:
    """Rows whose status is not ``OK``, of counts by status."""
    return sum(count for name, count in status.items() if name != Status.OK)
