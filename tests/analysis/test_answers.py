"""Counts of answers, by hand; parts add up to the whole."""

import pyarrow as pa

from dlogp_ray.analysis.answers import AnswerCounts, AnswerSummary, summarise_answers


def rows(*answers: tuple[str, bool | None, list[bool], list[bool]]) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "policy": policy,
                "status": "ok" if correct is not None else "not_graded",
                "correct": correct,
                "length": len(fired),
                "fired": fired,
                "changed": changed,
            }
            for policy, correct, fired, changed in answers
        ]
    )


T, F = True, False
FIRST = rows(("kl", T, [T, F, T], [F, F, T]), ("base", F, [F], [F]), ("kl", None, [], []))
SECOND = rows(("base", T, [F, F], [F, F]))


def test_counts() -> None:
    found = summarise_answers(FIRST)
    assert found.status == {"ok": 2, "not_graded": 1}
    assert found.policies == {
        "base": AnswerCounts(answers=1, graded=1, tokens=1),
        "kl": AnswerCounts(answers=2, graded=1, correct=1, tokens=3, fired=2, changed=1),
    }
    assert found.tokens == 4


def test_parts_add_up_to_the_whole_in_any_order() -> None:
    whole = summarise_answers(pa.concat_tables([FIRST, SECOND]))
    parts = [summarise_answers(FIRST), summarise_answers(SECOND)]
    assert AnswerSummary.merge(parts) == whole
    assert AnswerSummary.merge(reversed(parts)) == whole
    assert AnswerSummary.model_validate(whole.model_dump()) == whole
