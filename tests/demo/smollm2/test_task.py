"""The word problems: their verifier, their two halves, and how they are put to the model."""

import random

import pytest
from conftest import make_tokenizer

from dlogp_ray.demo.smollm2.task import (
    NUMBERS,
    WordProblem,
    held_out_problems,
    is_held_out,
    is_right,
    last_number,
    training_problem,
)

TOM = WordProblem(8, 5, "Tom", "pencils", "blue")


def test_a_problem_by_hand() -> None:
    assert TOM.prompt == (
        "Tom has 8 red pencils and 5 blue pencils. How many pencils are there in total?"
    )
    assert TOM.answer == "13"
    assert TOM.pair == WordProblem(5, 8, "Mia", "books", "green").pair == "5+8"
    assert TOM.group_id == "tom-8-red-5-blue-pencils"


@pytest.mark.parametrize(
    ("response", "number"),
    [
        ("8 + 5 = 13 pencils in total.", "13"),
        ("13", "13"),
        ("13. So there are 13, not 3", "3"),
        ("8+5=13.", "13"),
        ("It is 1,013", "013"),
        ("thirteen", None),
        ("", None),
        ("١٣", None),  # other scripts' digits are no answer
    ],
)
def test_the_last_number_counts(response: str, number: str | None) -> None:
    assert last_number(response) == number
    assert TOM.accepts(response) == (number == "13")
    assert is_right({"answer": "13"}, response) == (number == "13")


def test_training_never_sees_numbers_that_are_held_out() -> None:
    rng = random.Random(0)
    trained = {training_problem(rng).pair for _ in range(3_000)}
    held_out = {problem.pair for problem in held_out_problems(3_000, seed=0)}
    assert not trained & held_out
    # Both together are all pairs of 11 numbers: 11 · 12 / 2.
    assert len(trained | held_out) == len(NUMBERS) * (len(NUMBERS) + 1) // 2 == 66


def test_held_out_problems_are_distinct_and_follow_from_the_seed() -> None:
    problems = held_out_problems(500, seed=3)
    assert len(set(problems)) == len({problem.group_id for problem in problems}) == 500
    assert all(is_held_out(problem) for problem in problems)
    assert problems == held_out_problems(500, seed=3)
    assert problems != held_out_problems(500, seed=4)


def test_the_model_is_given_its_chat_template() -> None:
    tokenizer = make_tokenizer("".join(map(chr, range(32, 127))))
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    assert tokenizer.decode(TOM.prompt_ids(tokenizer)) == (
        "<system>You add numbers."
        "<user>Kim has 4 red balls and 5 blue balls. How many balls are there in total?"
        "<assistant>4 + 5 = 9 balls in total."
        f"<user>{TOM.prompt}<assistant>"
    )
