"""Additions in words, in the model's chat format, with one worked example before the question.

    Tom has 8 red pencils and 5 blue pencils. How many pencils are there in total?

An answer is free text; the last number in it counts. One pair of numbers in three is held out from
training, whatever the words around it.
"""

import itertools
import random
import re
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

NAMES = ("Tom", "Anna", "Ben", "Lucy", "Sam", "Mia", "Leo", "Nina")
THINGS = ("apples", "books", "coins", "marbles", "pencils", "stickers", "cookies", "shells")
COLOURS = ("blue", "green", "yellow", "black")
NUMBERS = range(2, 13)
HELD_OUT_ONE_IN = 3

MAX_RESPONSE_TOKENS = 24
"""The example's answer has 12 tokens; the limit leaves room for a sentence more."""
TEMPERATURE = 0.5
"""Of all sampling here, training included. At 1 the quantised model solves one problem in ten."""

_BEFORE = (
    {"role": "system", "content": "You add numbers."},
    {
        "role": "user",
        "content": "Kim has 4 red balls and 5 blue balls. How many balls are there in total?",
    },
    {"role": "assistant", "content": "4 + 5 = 9 balls in total."},
)


class WordProblem(NamedTuple):
    """One addition and the words around it."""

    a: int
    b: int
    name: str
    thing: str
    colour: str

    @property
    def prompt(self) -> str:
        """The question."""
        return (
            f"{self.name} has {self.a} red {self.thing} and {self.b} {self.colour} {self.thing}. "
            f"How many {self.thing} are there in total?"
        )

    @property
    def group_id(self) -> str:
        """The problem's identity in a corpus, such as `tom-8-red-5-blue-pencils`."""
        return f"{self.name.lower()}-{self.a}-red-{self.b}-{self.colour}-{self.thing}"

    @property
    def pair(self) -> str:
        """Its numbers, the smaller one first, such as `5+8`."""
        return f"{min(self.a, self.b)}+{max(self.a, self.b)}"

    @property
    def answer(self) -> str:
        """The number that the verifier wants."""
        return str(self.a + self.b)

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation up to the answer: an instruction, an example, the question."""
        return [*_BEFORE, {"role": "user", "content": self.prompt}]

    def prompt_ids(self, tokenizer: Any) -> list[int]:
        """`messages` in the model's chat template, up to where the answer begins."""
        text = tokenizer.apply_chat_template(
            self.messages, add_generation_prompt=True, tokenize=False
        )
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def accepts(self, response: str) -> bool:
        """Whether the last number in `response` is the answer."""
        return last_number(response) == self.answer


def last_number(response: str) -> str | None:
    """The last run of digits in a text, None where there is none."""
    numbers = re.findall(r"[0-9]+", response)
    return numbers[-1] if numbers else None


def is_right(problem: Mapping[str, Any], response: str) -> bool:
    """`WordProblem.accepts`, as an intervene job asks: `problem` is a row with its `answer`."""
    return last_number(response) == str(problem["answer"])


def is_held_out(problem: WordProblem) -> bool:
    """Whether no training may see its two numbers together: one pair in three, by its CRC-32."""
    return zlib.crc32(problem.pair.encode()) % HELD_OUT_ONE_IN == 0


def training_problem(rng: random.Random) -> WordProblem:
    """One problem drawn uniformly from those whose numbers are not held out."""
    while True:
        problem = WordProblem(
            rng.choice(NUMBERS),
            rng.choice(NUMBERS),
            rng.choice(NAMES),
            rng.choice(THINGS),
            rng.choice(COLOURS),
        )
        if not is_held_out(problem):
            return problem


def held_out_problems(n: int, seed: int) -> list[WordProblem]:
    """`n` distinct problems with held-out numbers, drawn uniformly; the same ones for one `seed`.

    Raises:
        ValueError: `n` is negative or more than there are.
    """
    return random.Random(seed).sample(all_held_out(), n)


def all_held_out() -> list[WordProblem]:
    """Every problem with held-out numbers."""
    every = itertools.product(NUMBERS, NUMBERS, NAMES, THINGS, COLOURS)
    return [problem for problem in itertools.starmap(WordProblem, every) if is_held_out(problem)]
