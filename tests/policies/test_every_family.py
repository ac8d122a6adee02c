"""Every type that ``AutoModelForCausalLM`` knows, and the list of them in the room's README.

``DLOGP_WRITE_FAMILIES=1 pytest -m slow tests/policies/test_every_family.py`` writes that list anew.
"""

import os
import re
from pathlib import Path

import pytest
import transformers
from against_plain import DTYPES, can_t_be_run, check, compare, plain_s
from tiny_models import NOT_MADE, TYPES, save_tiny

import dlogp_ray.policies
from dlogp_ray.errors import Refused

README = Path(dlogp_ray.policies.__file__).with_name("README.md")
BEGIN, END = "<!-- families -->\n", "<!-- end of families -->\n"
SLOW_S = 0.1
"""Where 150 tokens take more, the longest text has 60 and not 1,200."""

FOUND: dict[str, str] = {}
"""Type -> how its texts share passes, or why it is refused or was not tried."""
UNABLE: dict[str, list[str]] = {}
"""Type -> dtypes that it can't be run in, with or without this project."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind not in NOT_MADE])
def test_a_type_has_the_scores_of_its_plain_forward_or_is_refused(
    kind: str, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path, kind)
    longest = 1_200 if plain_s(folder) <= SLOW_S else 60
    ways: set[str] = set()
    not_in: list[str] = []
    for dtype in DTYPES:
        try:
            seen = compare(folder, dtype, longest)
        except Refused as refusal:
            if can_t_be_run(refusal, folder, dtype):
                not_in.append(dtype)
            else:
                ways.add(re.sub(r"policy p: \w+ ", "", str(refusal)))
        else:
            ways.add(seen.batching.name)
            check(seen, dtype)
    [FOUND[kind]] = ways  # the same in each dtype that it can be run in
    if not_in:
        UNABLE[kind] = not_in


@pytest.mark.slow
@pytest.mark.parametrize("kind", NOT_MADE)
def test_a_type_that_is_not_tried_can_t_be(kind: str, tmp_path: Path) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011  (each its own, and none of ours)
        transformers.AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path, kind))
    FOUND[kind] = f"not tried: {NOT_MADE[kind]}"


@pytest.mark.slow
def test_the_list_of_all_types_is_that_of_the_readme() -> None:
    missing = set(TYPES) - FOUND.keys()
    assert not missing, "run the whole file"
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    written, after = rest.split(END)
    if os.environ.get("DLOGP_WRITE_FAMILIES"):
        README.write_text(before + BEGIN + listing(FOUND, UNABLE) + END + after, encoding="utf-8")
    else:
        assert written == listing(FOUND, UNABLE)


def listing(found: dict[str, str], unable: dict[str, list[str]]) -> str:
    """The README's list: types by how they share passes; the others with their reasons."""
    ways = ("PACKED", "PADDED", "ALONE")
    lines = []
    for way in ways:
        kinds = [kind for kind, what in sorted(found.items()) if what == way]
        lines.append(f"**{way.capitalize()}** ({len(kinds)}): {', '.join(kinds)}.\n\n")
    lines += [f"{kind} can't be run in {' or '.join(no)}.\n\n" for kind, no in unable.items()]
    lines += ["| type | refused, or not tried |\n", "|---|---|\n"]
    lines += [f"| {kind} | {what} |\n" for kind, what in sorted(found.items()) if what not in ways]
    return "".join(lines)
