"""Data sets of answers: SYNTHETIC-1, OpenR1-Math, DeepMath, OpenThoughts.

Layouts: their cards on the Hugging Face hub. Problems become one user message.
"""

from dlogp_ray.corpus.formats.format import Format, Record, Row, lists

_DEEPMATH = ("r1_solution_1", "r1_solution_2", "r1_solution_3")


def synthetic_rows(record: Record, file: str) -> list[Row]:
    """A row a line."""
    return [
        {
            "sample_id": record.get("response_id"),
            "group_id": record.get("problem_id"),
            "messages": _asked(record.get("prompt")),
            "response": record.get("llm_response"),
            "reward": record.get("score"),
        }
    ]


def openr1_rows(record: Record, file: str) -> list[Row]:
    """A row a generation."""
    problem = record.get("uuid")
    paths = ("generations", "correctness_math_verify")
    return [
        {
            "sample_id": f"{problem}/{number}" if problem is not None else None,
            "group_id": problem,
            "messages": _asked(record.get("problem")),
            "response": answer,
            "reward": None if right is None else float(right),
        }
        for number, (answer, right) in enumerate(lists(record, *paths))
    ]


def deepmath_rows(record: Record, file: str) -> list[Row]:
    """A row a solution."""
    return [
        {"messages": _asked(record.get("question")), "response": record[name]}
        for name in _DEEPMATH
        if record.get(name) is not None
    ]


def openthoughts_rows(record: Record, file: str) -> list[Row]:
    """A row a conversation, whose last message is the answer."""
    return [{"conversation": record.get("conversations")}]


def _asked(problem: object) -> list[dict[str, object]] | None:
    return None if problem is None else [{"role": "user", "content": problem}]


SYNTHETIC_1 = Format(
    what="SYNTHETIC-1's answers",
    holds="questions and answers",
    keys=frozenset({"response_id", "problem_id", "llm_response"}),
    rows=synthetic_rows,
)
OPENR1 = Format(
    what="OpenR1-Math's answers",
    holds="questions and answers",
    keys=frozenset({"problem", "generations"}),
    rows=openr1_rows,
)
DEEPMATH = Format(
    what="DeepMath's solutions",
    holds="questions and answers",
    keys=frozenset({"question", *_DEEPMATH}),
    rows=deepmath_rows,
)
OPENTHOUGHTS = Format(
    what="OpenThoughts' conversations",
    holds="conversations",
    keys=frozenset({"conversations"}),
    rows=openthoughts_rows,
)
