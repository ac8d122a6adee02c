"""Rounds of mischief at random moments: the result is the undisturbed one, or the job says why not.

Policies are stubs. Files of the corpus and of the run are changed, swapped, moved and deleted from
within a unit, whichever process does it.
"""

import random
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stub_policies
from conftest import contents, make_rows, write_jsonl

import dlogp_ray
from dlogp_ray.config import ScoreConfig
from dlogp_ray.errors import DlogpError
from dlogp_ray.tables.verification import verify

ROWS = 60
HERE_ROUNDS, RAY_ROUNDS = range(300), range(1_000, 1_100)

BEGIN = """
import json, os, random, shutil
from pathlib import Path
rng = random.Random({seed})
corpus, run, other, aside = map(Path, {places!r})
def objects(of): return sorted((of / "scores").glob("part-*"))
"""
MISCHIEF = {
    "edited": (
        "corpus.write_bytes(corpus.read_bytes().replace(b'\"s1', b'\"s9'))",
        "corpus_changed",
    ),
    "cut at a line": (
        "lines = corpus.read_bytes().splitlines(True)\n"
        "corpus.write_bytes(b''.join(lines[:rng.randrange(len(lines))]))",
        "corpus_changed",
    ),
    "replaced": (
        "aside.write_bytes(corpus.read_bytes()[::-1]); os.replace(aside, corpus)",
        "corpus_changed",
    ),
    "deleted": ("corpus.unlink()", "corpus_changed"),
    "edited, its time set back": (
        "times = corpus.stat()\n"
        "corpus.write_bytes(corpus.read_bytes().replace(b'\"s1', b'\"s9'))\n"
        "os.utime(corpus, ns=(times.st_atime_ns, times.st_mtime_ns))",
        "corpus_changed",
    ),
    "a pipe": ("corpus.unlink(); os.mkfifo(corpus)", "corpus_changed"),
    "its time alone": ("os.utime(corpus)", "corpus_changed"),
    "object deleted": (
        "there = objects(run)\nif there: rng.choice(there).unlink()",
        "is gone",
    ),
    "object of another unit": (
        "there = objects(run)\n"
        "if len(there) > 1:\n    a, b = rng.sample(there, 2); shutil.copy(a, b)",
        "says that it is of unit",
    ),
    "object of another run": (
        "theirs = rng.choice(objects(other)); shutil.copy(theirs, run / 'scores' / theirs.name)",
        "made from something else",
    ),
    "object written again": (
        "import pyarrow as pa, pyarrow.parquet as pq\n"
        "there = objects(run)\n"
        "if there:\n"
        "    path = rng.choice(there); table = pq.read_table(path)\n"
        "    at = table.schema.get_field_index('reward')\n"
        "    ones = pa.array([1.0] * len(table), pa.float32())\n"
        "    pq.write_table(table.set_column(at, table.schema.field(at), ones), path)",
        "written again",
    ),
    "object cut off": (
        "there = objects(run)\nif there: os.truncate(rng.choice(there), 100)",
        "can't be read",
    ),
    "list of units of another run": (
        "shutil.copy(other / 'units.parquet', run)",
        "units.parquet",
    ),
    "list of units deleted": ("(run / 'units.parquet').unlink()", "units.parquet"),
    "record edited": (
        "info = json.loads((run / 'run.json').read_text()); info['noise'] = {'texts': 1}\n"
        "(run / 'run.json').write_text(json.dumps(info))",
        "run.json",
    ),
    "record of another run": ("shutil.copy(other / 'run.json', run)", "run.json"),
    "seal of another run": (
        "[shutil.copy(other / name, run) for name in ('manifest.parquet', '_SUCCESS')]",
        "_SUCCESS",
    ),
    "run moved": ("shutil.move(run, aside)", "run.json is gone"),
    # An object that is created meanwhile ends that amid its work.
    "run deleted": ("shutil.rmtree(run)", "is gone"),
    "run moved and another put there": (
        "shutil.move(run, aside); shutil.copytree(other, run)",
        "run.json",
    ),
}
"""Name -> what is done, and a word of what names it."""


@pytest.fixture(autouse=True)
def stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_policies.install(monkeypatch.setattr)


Round = Callable[[int, str], str]


@pytest.fixture
def play(make_config: Callable[..., ScoreConfig], tmp_path: Path) -> Round:
    """Plays a round: (seed, where) -> how it ended, for people."""
    rows = make_rows(ROWS)
    undisturbed = tmp_path / "undisturbed"
    fields: dict[str, Any] = {"unit_tokens": 150, "output": str(undisturbed)}

    def job(folder: Path, rows: list[dict[str, Any]], **more: Any) -> ScoreConfig:
        path = write_jsonl(folder / f"{more['run_id']}.jsonl", rows)
        return make_config(corpus=str(path), **fields | more)

    undisturbed.mkdir()
    other = job(undisturbed, make_rows(ROWS, seed=1), run_id="other")
    assert dlogp_ray.score(other, progress=False).exit_code == 0

    def round_(seed: int, where: str) -> str:
        rng = random.Random(seed)
        folder = tmp_path / f"round-{seed}"
        folder.mkdir()
        chosen = rng.sample(sorted(MISCHIEF), rng.choice((1, 1, 2)))
        mine = [dict(row) for row in rows]
        for name, at in zip(chosen, rng.sample(range(ROWS), len(chosen)), strict=True):
            mine[at]["generator"] = f"runs once: {folder / name}.py"
        config = job(folder, mine, run_id="r", output=str(folder), run_on=where)
        plain = config.model_copy(update={"run_id": "plain", "run_on": "here"})
        # The scripts are not there yet: nothing happens.
        expected = contents(dlogp_ray.score(plain, progress=False).run)
        places = [config.corpus[0].path, config.run_uri, other.run_uri, str(folder / "aside")]
        for name in chosen:
            begin = BEGIN.format(seed=seed, places=places)
            does = textwrap.indent(MISCHIEF[name][0], "    ")
            # What it would change may not be there yet, or be a pipe by now, which nobody fills.
            there = "    if corpus.is_fifo(): raise OSError"
            code = f"{begin}\ntry:\n{there}\n{does}\nexcept OSError:\n    pass\n"
            (folder / f"{name}.py").write_text(code)
        try:
            result = dlogp_ray.score(config, progress=False)
        except DlogpError as error:
            code, said = int(error.exit_code), str(error)
        else:
            code, said = result.exit_code, "\n".join(result.units_failed.values())
            if code == 0:
                assert result.sealed
                assert contents(result.run) == expected
                assert verify(dlogp_ray.open_run(result.run)) == []
        if code != 0:
            words = {MISCHIEF[name][1] for name in chosen}
            assert any(word in said for word in words), said
        shutil.rmtree(folder)
        return f"{seed} {', '.join(chosen)}: {code} {said[:100]}"

    return round_


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_a_round_here(seed: int, play: Round) -> None:
    play(seed, "here")


@pytest.mark.slow
@pytest.mark.parametrize("first", HERE_ROUNDS[::50])
def test_rounds_here(first: int, play: Round, capsys: pytest.CaptureFixture[str]) -> None:
    told([play(seed, "here") for seed in range(first, first + 50)], capsys)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("first", RAY_ROUNDS[::20])
def test_rounds_through_ray(first: int, play: Round, capsys: pytest.CaptureFixture[str]) -> None:
    told([play(seed, "ray") for seed in range(first, first + 20)], capsys)


def told(ended: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        sys.stdout.write("\n".join(["", *ended, ""]))
    whole = sum(": 0 " in line for line in ended)
    assert 0 < whole < len(ended)  # some were harmless, and most were not
