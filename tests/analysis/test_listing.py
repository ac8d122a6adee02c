"""The runs in a folder: each is there once, and one that can't be read does not hide the others."""

import json
from pathlib import Path

from score_tables import made_up_run, score_rows
from typer.testing import CliRunner

from dlogp_ray.analysis.listing import runs_below
from dlogp_ray.cli import app
from dlogp_ray.config import ReweightConfig, SparsityConfig
from dlogp_ray.pipelines.reweight.reweight import reweight
from dlogp_ray.pipelines.sparsity.sparsity import sparsity


def test_runs_are_listed_once_with_how_far_they_are(tmp_path: Path) -> None:
    own = score_rows(3, generator="rl")
    sealed = made_up_run(str(tmp_path / "a"), [own, score_rows(4, generator="rl", seed=1)])
    sparsity(SparsityConfig(run=sealed.uri), progress=False)
    reweight(ReweightConfig(run=sealed.uri, schemes=["delta"]), progress=False)
    made_up_run(str(tmp_path / "team/b"), [own], planned=3)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/run.json").write_text("{")
    (tmp_path / "no-run").mkdir()
    a, damaged, b = runs_below(str(tmp_path))
    assert (a.run, a.sealed, a.units, a.units_done, a.rows) == (sealed.uri, True, 2, 2, 7)
    assert a.tokens == sealed.seal["tokens"]
    ((mean,),) = sealed.sql(
        "SELECT value FROM sparsity WHERE statistic = 'delta_logp' AND figure = 'mean'"
    ).fetchall()
    assert a.headline.startswith(f"rl: mean Δ {mean:+.4f}, ")
    assert (b.run, b.sealed, b.units, b.units_done) == (f"{tmp_path}/team/b", False, 3, 1)
    assert "run.json can't be read" in damaged.problem
    done = CliRunner().invoke(app, ["runs", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "1 of 3 units" in done.stdout
    lines = CliRunner().invoke(app, ["runs", str(tmp_path), "--json"]).stdout.splitlines()
    assert [json.loads(line)["run"] for line in lines] == [a.run, damaged.run, b.run]


def test_a_folder_without_runs_says_so(tmp_path: Path) -> None:
    assert "there are no runs" in CliRunner().invoke(app, ["runs", str(tmp_path)]).stdout


def test_runs_in_a_bucket_are_listed_without_what_is_in_them(bucket: str) -> None:
    made_up_run(f"{bucket}/team/b", [score_rows(3)])
    made_up_run(f"{bucket}/a", [score_rows(3)], planned=2)
    lines = list(runs_below(bucket))
    assert [(line.run, line.sealed, line.problem) for line in lines] == [
        (f"{bucket}/a", False, ""),
        (f"{bucket}/team/b", True, ""),
    ]
