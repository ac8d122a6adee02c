"""The addition task: notation, slips, verifier and split, against solutions written by hand."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlogp_ray.demo.pretrain import MAX_POSITIONS
from dlogp_ray.demo.task import (
    CHARACTERS,
    DIGITS,
    MAX_RESPONSE_TOKENS,
    Problem,
    direct_solution,
    held_out_problems,
    is_held_out,
    noisy_solution,
    parse_prompt,
    training_problem,
    verify,
    with_slips,
    worked_solution,
)
from dlogp_ray.demo.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer(MAX_POSITIONS)

problems = st.builds(Problem, st.integers(100, 999), st.integers(100, 999))


@pytest.mark.parametrize(
    ("problem", "solution"),
    [
        # 7+9=16, write 6 carry 1; 4+8+1=13, write 3 carry 1; 3+5+1=9: 936
        (Problem(347, 589), ":7+9=16;4+8+1=13;3+5+1=9#936"),
        # no carry at all
        (Problem(123, 456), ":3+6=9;2+5=7;1+4=5#579"),
        # a carry out of the ones only, a zero digit, and a tens column that sums to 9 without one
        (Problem(105, 209), ":5+9=14;0+0+1=1;1+2=3#314"),
        # carries everywhere and a fourth digit: the longest response
        (Problem(999, 999), ":9+9=18;9+9+1=19;9+9+1=19#1998"),
        # a carry that only arises from a carry: 9+0+1=10
        (Problem(191, 109), ":1+9=10;9+0+1=10;1+1+1=3#300"),
    ],
)
def test_worked_solution_by_hand(problem: Problem, solution: str) -> None:
    assert worked_solution(problem) == solution
    assert verify(problem.prompt, solution)


def test_longest_response_and_its_prompt_fit() -> None:
    # 30 characters (1 + 6 + 1 + 8 + 1 + 8 + 5) and eos; the prompt is 8 characters.
    longest = worked_solution(Problem(999, 999))
    assert len(longest) + 1 == 31 <= MAX_RESPONSE_TOKENS
    assert len(Problem(999, 999).prompt) + MAX_RESPONSE_TOKENS <= MAX_POSITIONS


@given(problems)
def test_noise_free_solutions_verify(problem: Problem) -> None:
    assert verify(problem.prompt, worked_solution(problem))
    assert verify(problem.prompt, direct_solution(problem))


@given(problems)
def test_prompt_parses_back(problem: Problem) -> None:
    assert parse_prompt(problem.prompt) == problem


@pytest.mark.parametrize("prompt", ["", "347+589", "047+589=", "1000+100=", "347 + 589=", "a+b="])
def test_foreign_prompt_is_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match="expected a prompt like"):
        verify(prompt, "#936")


@pytest.mark.parametrize(
    ("response", "right"),
    [
        ("#936", True),
        (":7+9=16;4+8+1=13;3+5+1=9#936", True),
        (":7+9=11;4+8=13;9#936", True),  # wrong working, right answer: the working is not looked at
        ("#935#936", True),  # the last answer counts
        ("#936#935", False),
        ("#935", False),
        ("#0936", False),  # no leading zeros
        ("#936;", False),
        ("#93", False),
        ("936", False),  # no answer mark
        ("#", False),
        ("", False),
    ],
)
def test_verifier_on_hand_made_responses(response: str, right: bool) -> None:
    assert verify("347+589=", response) is right


def test_slips_replace_digits_by_other_digits_at_the_rate() -> None:
    text = worked_solution(Problem(347, 589)) * 1000
    slipped = with_slips(text, 0.1, random.Random(0))
    pairs = list(zip(text, slipped, strict=True))
    assert all(old == new for old, new in pairs if old not in DIGITS)
    digits = [(old, new) for old, new in pairs if old in DIGITS]
    # 16 digits a solution: 2+2, 2+1+2, 2+1+1 and 3. Standard deviation of the number of slips:
    # sqrt(16000 * 0.1 * 0.9) = 38, so five of them are 190.
    assert len(digits) == 16_000
    changed = sum(old != new for old, new in digits)
    assert abs(changed - 1600) < 190
    # A slip never writes the same digit again, so rate 1 changes every digit.
    every_digit = with_slips(DIGITS, 1.0, random.Random(0))
    assert all(old != new for old, new in zip(DIGITS, every_digit, strict=True))
    assert with_slips(text, 0.0, random.Random(0)) == text


def test_noisy_solutions_skip_the_working_half_of_the_time() -> None:
    rng = random.Random(0)
    solutions = [noisy_solution(Problem(347, 589), rng) for _ in range(4000)]
    lengths = Counter(len(solution) for solution in solutions)
    # "#936" has 4 characters, the worked solution 28; slips keep the length. Standard deviation
    # of the number that skip: sqrt(4000 / 4) = 32, so five of them are 160.
    assert set(lengths) == {4, 28}
    assert abs(lengths[4] - 2000) < 160
    # Three digits of an answer without a slip: the mean of (1 - p)^3 over p in [0.05, 0.15] is
    # [0.95^4 - 0.85^4] / (4 * 0.1) = 0.7313. Standard deviation 0.0070, five of them 0.035.
    right = sum(verify("347+589=", solution) for solution in solutions) / 4000
    assert abs(right - 0.7313) < 0.035


def test_split_is_a_function_of_the_problem_alone() -> None:
    # CRC-32 as another program computes it: printf '347+589' | gzip -c | tail -c8 | od -An -tu4
    # prints 2500098603 for 347+589, and 2937064950 for 100+120: held out if it ends in 0.
    assert not is_held_out(Problem(347, 589))
    assert is_held_out(Problem(100, 120))


def test_held_out_problems_are_distinct_held_out_and_repeatable() -> None:
    chosen = held_out_problems(500, seed=7)
    assert len(set(chosen)) == 500
    assert all(is_held_out(problem) for problem in chosen)
    assert chosen == held_out_problems(500, seed=7)
    assert chosen != held_out_problems(500, seed=8)
    with pytest.raises(ValueError, match="larger than population"):
        held_out_problems(810_001, seed=0)


def test_about_a_tenth_is_held_out_and_training_never_draws_it() -> None:
    # 810,000 problems; a hash that spreads evenly holds out 81,000 with a standard deviation of
    # sqrt(810,000 * 0.1 * 0.9) = 270.
    held_out = sum(is_held_out(Problem(a, b)) for a in range(100, 1000) for b in range(100, 1000))
    assert abs(held_out - 81_000) < 5 * 270
    rng = random.Random(0)
    assert not any(is_held_out(training_problem(rng)) for _ in range(2000))


@given(st.text(alphabet=CHARACTERS))
def test_tokenizer_round_trip(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    # pad is 0 and eos 1, so the n-th character of the alphabet is n + 2.
    assert ids == [CHARACTERS.index(character) + 2 for character in text]
    assert TOKENIZER.decode(ids) == text


def test_tokenizer_special_tokens_and_chat_template() -> None:
    assert (TOKENIZER.pad_token_id, TOKENIZER.eos_token_id) == (0, 1)
    assert TOKENIZER.bos_token_id is None
    user = {"role": "user", "content": "347+589="}
    assistant = {"role": "assistant", "content": "#936"}
    render = TOKENIZER.apply_chat_template
    assert render([user], tokenize=False, add_generation_prompt=True) == "347+589="
    assert render([user, assistant], tokenize=False) == "347+589=#936"


@pytest.mark.parametrize("text", ["347 + 589", "x", "#936\n"])
def test_tokenizer_refuses_characters_outside_the_alphabet(text: str) -> None:
    with pytest.raises(Exception, match="Missing \\[UNK\\] token"):
        TOKENIZER(text)
