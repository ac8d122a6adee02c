"""Runs that earlier versions wrote: sealed ones are read, open ones gone on with or refused.

They lie in ``tests/old_runs`` (its README), and are put at the addresses where they were written.
"""

import importlib.metadata
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import contents, edit_record
from plain_logps import logps
from s3_server import FaultyProxy
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import dlogp_ray
from dlogp_ray import store
from dlogp_ray.cli import app
from dlogp_ray.config import InterveneConfig, ReweightConfig, ScoreConfig, SparsityConfig
from dlogp_ray.demo.pair import checkpoint_path
from dlogp_ray.errors import Refused
from dlogp_ray.pipelines.repair import repair
from dlogp_ray.tables.kinds import KINDS, SCORES
from dlogp_ray.tables.run import Run, open_run
from dlogp_ray.tables.verification import verify

FOLDER = Path(__file__).parents[1] / "old_runs"
ROOT = "s3://tests/old-runs"
POLICIES = {"base": "base", "rl": "rl-step-100"}
SEALED = ("scores", "generations", "scores/weights/sealed")
OPEN = ("scores-open", "generations-open", "scores/weights/open")
SCHEMES = [{"scheme": "entropy_top", "rho": 0.3}, {"scheme": "ppl", "alpha": 0.1}]
NATS = 2e-4
"""Twice what float32 is right to: the two may be of machines that round otherwise."""


@pytest.fixture(scope="module", params=sorted(path.name for path in FOLDER.glob("schema-*")))
def old(s3: FaultyProxy, request: pytest.FixtureRequest) -> str:
    """A folder of runs at its address."""
    files = {f"policies/{n}/{p.name}": p for n in POLICIES.values() for p in in_checkpoint(n)}
    root = FOLDER / request.param
    files |= {f"{request.param}/{p.relative_to(root)}": p for p in root.rglob("*") if p.is_file()}
    for name, path in files.items():
        store.create(f"{ROOT}/{name}", path.read_bytes())
    return request.param


def in_checkpoint(name: str) -> Iterator[Path]:
    return checkpoint_path(name).iterdir()


@pytest.fixture
def corpus(old: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / old / "corpus.jsonl").read_text().splitlines()]


def run_of(old: str, name: str) -> Run:
    return open_run(f"{ROOT}/{old}/{name}")


def go_on(old: str, name: str, place: str = "") -> Any:
    """What the command that began a run does now; ``place`` is where a copy of the folder is."""
    output, kind = place or f"{ROOT}/{old}", name.partition("-")[0]
    if kind == "scores":
        fields = {"run_id": name, "output": output}
        config = ScoreConfig.from_yaml(FOLDER / old / "score.yaml", **fields)
        return dlogp_ray.score(config, progress=False)
    if kind == "generations":
        fields = {"run_id": name, "output": output}
        problems = InterveneConfig.from_yaml(FOLDER / old / "intervene.yaml", **fields)
        return dlogp_ray.intervene(problems, progress=False)
    return weighed(f"{output}/scores", name.rpartition("/")[2])


def weighed(run: str, name: str) -> Any:
    config = {"run": run, "schemes": SCHEMES, "policy": "base", "name": name}
    return dlogp_ray.reweight(ReweightConfig.from_mapping(config), progress=False)


def rows_of(run: Run) -> list[dict[str, Any]]:
    order = ["sample_id", "source_offset" if run.kind is SCORES else "policy"]
    return run.dataset().to_table().sort_by([(n, "ascending") for n in order]).to_pylist()


def assert_same_rows(run: Run, expected: Run) -> None:
    for row, other in zip(rows_of(run), rows_of(expected), strict=True):
        for name, value in other.items():
            if isinstance(value, list) and any(isinstance(one, float) for one in value):
                np.testing.assert_allclose(row[name], value, rtol=0, atol=NATS, err_msg=name)
            elif isinstance(value, float):
                assert row[name] == pytest.approx(value, abs=NATS), name
            else:
                assert row[name] == value, name


@pytest.mark.parametrize("name", SEALED)
def test_a_sealed_run_is_shown_and_whole(old: str, name: str) -> None:
    uri = run_of(old, name).uri
    shown = CliRunner().invoke(app, ["show", uri])
    assert shown.exit_code == 0, shown.output
    assert f"{uri} (sealed)" in shown.output.replace("\n", "")
    assert CliRunner().invoke(app, ["verify", uri, "--no-progress"]).exit_code == 0


def test_the_noise_floor_of_sealed_scores_is_shown(old: str, tmp_path: Path) -> None:
    """Those of schema 1 are older than the measurement of rounding."""
    run = run_of(old, "scores")
    assert run.noise is not None
    assert "all in float32" in run.noise.as_row()[1]
    folder = Path(copied(old, tmp_path)) / "scores"

    def half_precision(info: dict[str, Any]) -> None:
        info["engine"]["dtype"]["rl"] = "bfloat16"
        info["noise"].pop("rounding", None)

    edit_record(folder, half_precision)
    noise = open_run(str(folder)).noise
    assert noise is not None
    assert noise.as_row()[1].endswith("; rounding not measured)")
    assert noise.unresolved_nats == run.noise.unresolved_nats


def test_sealed_scores_are_still_those_of_the_plain_forward(
    old: str, corpus: list[dict[str, Any]]
) -> None:
    run = run_of(old, "scores")
    found = {row["sample_id"]: row for row in rows_of(run)}
    assert found.keys() == {row["sample_id"] for row in corpus}
    assert run.sql("SELECT sample_id, status FROM rejected").fetchall() == [
        ("wrong", "id_outside_vocabulary")
    ]
    for side, folder in POLICIES.items():
        model = AutoModelForCausalLM.from_pretrained(checkpoint_path(folder)).eval()
        for row in corpus:
            if "prompt" in row or row["sample_id"] == "wrong":
                continue
            one = found[row["sample_id"]]
            assert (one["response_ids"], one["level"]) == (row["response_ids"], row["level"])
            with torch.inference_mode():
                expected = logps(model, row)
            np.testing.assert_allclose(one[f"logp_{side}"], expected, rtol=0, atol=NATS / 2)


def test_sealed_runs_are_queried(old: str, corpus: list[dict[str, Any]]) -> None:
    run = run_of(old, "scores")
    by_ids = [row for row in corpus if "prompt" not in row and row["sample_id"] != "wrong"]
    tokens = sum(len(row["response_ids"]) for row in by_ids) + len("#46")  # one is text
    left_out = sum(row.get("response_mask", []).count(0) for row in by_ids)
    query = "SELECT count(*), count(*) FILTER (NOT response_mask), count(delta_logp) FROM tokens"
    assert run.sql(query).fetchall() == [(tokens, left_out, tokens)]
    (counted,) = run.sql(
        "SELECT value FROM sparsity WHERE analysis = 'all' AND generator = 'base' "
        "AND statistic = 'delta_logp' AND figure = 'share_raised'"
    ).fetchall()
    assert 0 < counted[0] < 1
    named = "SELECT DISTINCT name FROM weights"
    assert ("sealed",) in run.sql(named).fetchall()
    answers = run_of(old, "generations")
    labels = answers.sql("SELECT label, accuracy FROM curve ORDER BY label").fetchall()
    right = answers.sql(
        "SELECT policy, avg(correct::INT) FROM generations GROUP BY policy ORDER BY policy"
    ).fetchall()
    assert labels == right
    assert len(right) == 4


def test_sealed_scores_are_analysed(old: str) -> None:
    run = run_of(old, "scores")
    found = dlogp_ray.sparsity(SparsityConfig(run=run.uri, name="now"), progress=False)
    assert (found.sealed, found.units_read, found.samples) == (True, 3, 13)
    key = ("policy", "generator", "statistic", "figure", "x")
    then, now = (
        {tuple(row[name] for name in key): row for row in run.figures(analysis).to_pylist()}
        for analysis in ("all", "now")
    )
    assert then.keys() <= now.keys()
    for name, row in then.items():
        if "quantile" in row["figure"] or row["value"] is None:
            continue  # quantiles of schema 1 come from sketches that drew at random
        assert now[name]["n_tokens"] == row["n_tokens"]
        if row["figure"] in ("share_raised", "share_lowered", "share_unresolved"):
            # The floor of schema 1 left out what other batches change, and shares go by it.
            assert now[name]["noise_floor"] >= row["noise_floor"]
            continue
        assert now[name]["value"] == pytest.approx(row["value"], rel=1e-9, abs=1e-15), name


def test_sealed_scores_are_reweighted(old: str) -> None:
    assert weighed(run_of(old, "scores").uri, "now").units_created == 3
    assert_same_rows(run_of(old, "scores/weights/now"), run_of(old, "scores/weights/sealed"))


@pytest.mark.parametrize("name", SEALED)
def test_a_sealed_run_has_nothing_left_to_do(old: str, name: str) -> None:
    run = run_of(old, name)
    before = contents(run.uri)
    go_on(old, name)
    assert contents(run.uri) == before


@pytest.mark.parametrize("name", OPEN)
def test_an_open_run_is_gone_on_with_or_refused(old: str, name: str, tmp_path: Path) -> None:
    run = run_of(old, name)
    assert (run.sealed, len(run.committed()), run.planned) == (False, 1, 3)
    if run.info.schema_version != run.kind.schema_version:
        assert_refused(old, name, copied(old, tmp_path))
        # The advice is another version, which must have another name.
        assert run.info.versions["dlogp_ray"] != importlib.metadata.version("dlogp_ray")
        return
    before = contents(run.uri)
    assert go_on(old, name).units == 3
    assert run.sealed
    assert contents(run.uri).items() > before.items()
    assert verify(run) == []
    sealed = run_of(old, name.replace("-open", "").replace("/open", "/sealed"))
    # Else two machines may draw other tokens.
    assert not any(row.get("close_draws") for row in rows_of(sealed))
    assert_same_rows(run, sealed)


@pytest.mark.parametrize("name", OPEN)
def test_an_open_run_of_another_schema_is_refused(
    old: str, name: str, later_schema: None, tmp_path: Path
) -> None:
    assert_refused(old, name, copied(old, tmp_path))


@pytest.mark.parametrize("name", SEALED)
def test_a_sealed_run_of_another_schema_is_joined_but_not_repaired(
    old: str, name: str, later_schema: None, tmp_path: Path
) -> None:
    place = copied(old, tmp_path)
    run = open_run(f"{place}/{name}")
    before = contents(run.uri)
    go_on(old, name, place)
    assert contents(run.uri) == before
    Path(run.object_uri("part-00000001")).unlink()
    with pytest.raises(Refused, match=r"writes schema|Delete .*makes the table again"):
        repair(run, verify(run), progress=False)
    assert run.sealed
    assert len(run.committed()) == 2


@pytest.fixture
def later_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """This version, were it to write other schemas."""
    for kind in KINDS.values():
        monkeypatch.setitem(vars(kind), "schema_version", 1_000)


def copied(old: str, folder: Path) -> str:
    return str(shutil.copytree(FOLDER / old, folder / old))


def assert_refused(old: str, name: str, place: str) -> None:
    """With what to do, and nothing written."""
    before = sorted(Path(place).rglob("*"))
    with pytest.raises(Refused, match=r"begun by dlogp_ray 0.*schema \d.*schema \d.*Use another"):
        go_on(old, name, place)
    assert sorted(Path(place).rglob("*")) == before
