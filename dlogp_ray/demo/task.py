"""Three-digit additions with noisy worked solutions: the task that the demo policies learn.

A prompt is `347+589=`. A response either announces its working with `:` and goes from the ones to
the hundreds, a column being `digit+digit=sum` or, after a carry, `digit+digit+1=sum`, or it goes
to the answer at once, which follows `#` in both cases:

    :7+9=16;4+8+1=13;3+5+1=9#936     the working and the answer
    #936                             the answer alone

What a base policy is trained on is noisy on purpose: half of the solutions skip the working, and
each written digit slips to another one at a rate that is drawn per solution. A slip is a slip of
the pen: what follows it is computed from the right digit. The verifier looks at the answer alone,
so RL has something to gain from showing the working and from not slipping where it matters.
"""

import functools
import random
import re
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

DIGITS = "0123456789"
WORKING_MARK = ":"
COLUMN_MARK = ";"
ANSWER_MARK = "#"
CHARACTERS = DIGITS + "+=" + WORKING_MARK + COLUMN_MARK + ANSWER_MARK

OPERANDS = range(100, 1000)
SKIP_RATE = 0.5
SLIP_RATES = (0.05, 0.15)
HELD_OUT_ONE_IN = 10

# The longest noise-free response is 30 characters (":9+9=18;9+9+1=19;9+9+1=19#1998") and the
# end-of-sequence token: the limit leaves a policy room to go wrong without being cut short.
MAX_RESPONSE_TOKENS = 40


class Problem(NamedTuple):
    """One addition; `a` and `b` are in 100..999."""

    a: int
    b: int

    @property
    def prompt(self) -> str:
        """The text a policy is given, such as `347+589=`."""
        return f"{self.a}+{self.b}="

    @property
    def group_id(self) -> str:
        """The problem's identity in a corpus, such as `347+589`."""
        return f"{self.a}+{self.b}"

    @property
    def answer(self) -> str:
        """The only answer that the verifier accepts, without leading zeros."""
        return str(self.a + self.b)

    def prompt_ids(self, tokenizer: Any) -> list[int]:
        """The prompt in a policy's tokens."""
        ids: list[int] = tokenizer(self.prompt)["input_ids"]
        return ids

    def accepts(self, response: str) -> bool:
        """`verify`, of this problem."""
        return verify(self.prompt, response)


def parse_prompt(prompt: str) -> Problem:
    """The problem that a prompt asks.

    Raises:
        ValueError: the prompt is not the prompt of a `Problem`.
    """
    match = re.fullmatch(r"([1-9][0-9]{2})\+([1-9][0-9]{2})=", prompt)
    if match is None:
        raise ValueError(f"expected a prompt like '347+589=', of 100 to 999, got {prompt!r}")
    return Problem(int(match[1]), int(match[2]))


def worked_solution(problem: Problem) -> str:
    """The noise-free response with its working: three columns, ones first, then the answer."""
    columns = []
    carry = 0
    for place in (1, 10, 100):
        a_digit, b_digit = problem.a // place % 10, problem.b // place % 10
        column_sum = a_digit + b_digit + carry
        columns.append(f"{a_digit}+{b_digit}{'+1' if carry else ''}={column_sum}")
        carry = column_sum // 10
    return WORKING_MARK + COLUMN_MARK.join(columns) + direct_solution(problem)


def direct_solution(problem: Problem) -> str:
    """The noise-free response without working: the answer alone."""
    return ANSWER_MARK + problem.answer


def with_slips(text: str, slip_rate: float, rng: random.Random) -> str:
    """`text` with each digit replaced by another, uniformly, with probability `slip_rate`."""
    return "".join(
        rng.choice(DIGITS.replace(character, ""))
        if character in DIGITS and rng.random() < slip_rate
        else character
        for character in text
    )


def noisy_solution(problem: Problem, rng: random.Random) -> str:
    """One pre-training response: worked or direct, with slips at a rate drawn for this response."""
    solution = direct_solution if rng.random() < SKIP_RATE else worked_solution
    return with_slips(solution(problem), rng.uniform(*SLIP_RATES), rng)


def verify(prompt: str, response: str) -> bool:
    """Whether the text after the last `#` of `response` is exactly the sum that `prompt` asks for.

    The working is not looked at. `response` is text without the end-of-sequence token.

    Raises:
        ValueError: `prompt` is not a prompt of this task.
    """
    _, mark, answer = response.rpartition(ANSWER_MARK)
    return mark == ANSWER_MARK and answer == parse_prompt(prompt).answer


def is_right(problem: Mapping[str, Any], response: str) -> bool:
    """`verify`, as an intervene job asks: `problem` is a row with the text of its `prompt`."""
    return verify(problem["prompt"], response)


def is_held_out(problem: Problem) -> bool:
    """Whether no training may see `problem`: one problem in ten, by the CRC-32 of `a+b`.

    The split depends on nothing but the two numbers, so it is the same in every process, on every
    Python version and for every seed.
    """
    return zlib.crc32(f"{problem.a}+{problem.b}".encode()) % HELD_OUT_ONE_IN == 0


def training_problem(rng: random.Random) -> Problem:
    """One problem drawn uniformly from those that are not held out."""
    while True:
        problem = Problem(rng.choice(OPERANDS), rng.choice(OPERANDS))
        if not is_held_out(problem):
            return problem


@functools.cache
def all_held_out() -> tuple[Problem, ...]:
    """Every problem that no policy was trained on."""
    problems = (Problem(a, b) for a in OPERANDS for b in OPERANDS)
    return tuple(problem for problem in problems if is_held_out(problem))


def held_out_problems(n: int, seed: int) -> list[Problem]:
    """`n` distinct held-out problems drawn uniformly, the same ones for the same `seed`.

    Raises:
        ValueError: `n` is negative or exceeds the number of held-out problems (about 81,000).
    """
    return random.Random(seed).sample(all_held_out(), n)
