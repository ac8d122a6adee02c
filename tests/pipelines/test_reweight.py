"""The reweight job through Ray: a row a sample, quantiles of the whole table, resume, refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from score_tables import made_up_run, score_rows
from typer.testing import CliRunner

import dlogp_ray
from dlogp_ray import store
from dlogp_ray.cli import app
from dlogp_ray.config import ReweightConfig, ScoreConfig
from dlogp_ray.errors import Damaged, FingerprintMismatch, Refused
from dlogp_ray.pipelines.repair import repair
from dlogp_ray.pipelines.reweight.reweight import reweight
from dlogp_ray.tables.calls import read_calls
from dlogp_ray.tables.info import ReweightInfo
from dlogp_ray.tables.run import Run, open_run
from dlogp_ray.tables.token_hash import token_hash
from dlogp_ray.tables.verification import verify
from dlogp_ray.weights.schemes import upper_quantile_rank
from dlogp_ray.weights.table import load_logps, load_weights

UNITS, SAMPLES = 19, 20


def unit(index: int, *, policy: str = "rl", generator: str = "base") -> pa.Table:
    rows = score_rows(SAMPLES, seed=index, policy=policy, generator=generator)
    # Prompts whose texts lie in several units.
    group = [f"p{(index + number) % 9}" for number in range(SAMPLES)]
    reward = [float((index * number) % 3 == 0) for number in range(SAMPLES)]
    hashes = [token_hash(ids) for ids in rows["response_ids"].to_pylist()]
    rows = rows.append_column("group_id", pa.array(group))
    rows = rows.append_column("reward", pa.array(reward, pa.float32()))
    rows = rows.append_column("token_hash", pa.array(hashes))
    return rows.append_column("prompt_hash", pa.array([token_hash([1])] * SAMPLES))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("reweight")
    units = [unit(index) for index in range(UNITS)]
    return made_up_run(str(folder / "r"), units, info={"seal": {}})


def made(run: Run, schemes: Any, **more: Any) -> Any:
    config = ReweightConfig.from_mapping({"run": run.uri, "schemes": schemes, **more})
    return reweight(config, progress=False)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_weights_made_through_ray_are_those_made_here_to_the_byte(run: Run, tmp_path: Path) -> None:
    schemes = [{"scheme": "entropy_top", "rho": 0.3}, {"scheme": "ppl", "alpha": 0.1}]
    run = open_run(str(shutil.copytree(run.uri, tmp_path / "r")))
    here, ray = (
        made(run, schemes, name=where, run_on=where, policy="base") for where in ("here", "ray")
    )
    found = []
    for result in (here, ray):
        table = open_run(result.table)
        objects = {unit: store.read(table.object_uri(unit)) for unit in table.committed()}
        whole = table.info_of(ReweightInfo).whole
        groups = whole.groups.values()
        found.append((objects, whole, [store.read(table.path(g)) for g in groups]))
        (call,) = read_calls(table.uri)
        assert (call.ended, call.units_created) == (True, UNITS)
        assert sum(call.spent.values()) == pytest.approx(result.seconds, abs=0.5)
    assert len(found[0][0]) == UNITS
    assert found[0] == found[1]


def test_a_row_a_sample_with_its_weights(run: Run) -> None:
    found = made(run, {"scheme": "low_prob", "alpha": 0.5})
    assert found.policy == "base"  # every text says that it wrote it
    assert (found.units, found.units_created, found.summary.rows) == (UNITS, UNITS, 380)
    table = open_run(found.table)
    assert table.sealed
    assert verify(table) == []
    scores = run.dataset().to_table().sort_by("sample_id").to_pylist()
    rows = table.dataset().to_table().sort_by("sample_id").to_pylist()
    for row, source in zip(rows, scores, strict=True):
        for name in ("sample_id", "group_id", "token_hash", "response_ids"):
            assert row[name] == source[name]
        p = np.exp(np.float64(source["logp_base"]))
        expected = np.where(source["response_mask"], 1 + 0.5 * (1 - p), 1.0)
        np.testing.assert_allclose(row["loss_weights"], expected, rtol=1e-6)
    info = table.info_of(ReweightInfo)
    assert info.policy == "base"
    assert info.run == run.uri
    assert info.fingerprint["schemes"] == [{"scheme": "low_prob", "alpha": 0.5}]
    assert load_weights(table.uri, cache=Path(run.uri, "../cache"))["rl-base-3-0"][1].size


def test_the_entropy_quantile_is_of_all_tokens(run: Run) -> None:
    found = made(run, {"scheme": "entropy_top", "rho": 0.13})
    table = run.dataset().to_table()
    entropy = np.concatenate(
        [
            np.asarray(values, np.float32)[np.asarray(mask, bool)]
            for values, mask in zip(
                table["entropy_base"].to_pylist(), table["response_mask"].to_pylist(), strict=True
            )
        ]
    )
    exact = np.sort(entropy)[upper_quantile_rank(len(entropy), 0.13)]
    assert found.threshold == float(exact)
    kept = int((entropy >= exact).sum())
    assert (found.summary.tokens, found.summary.total) == (len(entropy), kept)
    # What interpolation between order statistics keeps as well.
    assert kept == int((entropy >= np.quantile(entropy.astype(np.float64), 0.87)).sum())


def test_groups_are_of_all_rows(run: Run) -> None:
    found = made(run, {"scheme": "ppl", "alpha": 0.1})
    scores = run.dataset().to_table().to_pylist()
    log_ppl, groups = {}, {}
    for row in scores:
        mask = np.asarray(row["response_mask"], bool)
        if mask.any():
            value = -np.asarray(row["logp_base"], np.float64)[mask].mean()
            log_ppl[row["sample_id"]] = value
            groups.setdefault(row["group_id"], []).append(value)
    for row in open_run(found.table).dataset().to_table().to_pylist():
        values = groups[row["group_id"]]
        assert len(values) > SAMPLES  # of several units
        if row["weight_mean"] is not None:
            score = (log_ppl[row["sample_id"]] - np.mean(values)) / np.std(values, ddof=1)
            assert row["weight_mean"] == pytest.approx(1 - 0.1 * score, abs=1e-5)


def test_advantages_are_against_the_group(run: Run) -> None:
    """By a loop over tokens: those that are left out are of texts below their group's mean."""
    half_life, ratio = 4.0, 1.2
    scheme = {"scheme": "future_kl", "half_life": half_life, "max_ratio": ratio}
    found = made(run, scheme | {"low": 0.5, "high": 2.0})
    weights = {row["sample_id"]: row["loss_weights"] for row in rows_of(open_run(found.table))}
    scores = rows_of(run)
    rewards: dict[str, list[float]] = {}
    for row in scores:
        rewards.setdefault(row["group_id"], []).append(row["reward"])
    left_out = {True: 0, False: 0}
    for row in scores:
        below = row["reward"] < np.mean(rewards[row["group_id"]])
        carried, expected = 0.0, []
        tokens = list(zip(row["logp_base"], row["logp_rl"], row["response_mask"], strict=True))
        for old, current, counts in reversed(tokens):
            shift = current - old
            too_far = shift > np.log(ratio)
            left_out[below] += counts and too_far
            taken = counts and not (below and too_far)
            carried = carried * 2 ** (-1 / half_life) + (shift if taken else 0.0)
            expected.append(min(max(np.exp(carried), 0.5), 2.0) if taken else 1.0)
        # Sums of float32 over as many tokens as a half-life of 4 lets count.
        np.testing.assert_allclose(weights[row["sample_id"]], expected[::-1], rtol=1e-5)
    assert min(left_out.values()) > 100  # either sign would be seen


def rows_of(run: Run) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = run.dataset().to_table().to_pylist()
    return rows


def test_what_was_found_of_all_rows_is_there_before_the_record(tmp_path: Path) -> None:
    """A call that ended before its record was there leaves nothing that another one trips over."""
    scores = made_up_run(str(tmp_path / "r"), [unit(index) for index in range(3)])
    first = made(scores, {"scheme": "ppl", "alpha": 0.1})
    folder = Path(first.table)
    weights = {path.name: path.read_bytes() for path in (folder / "weights").iterdir()}
    groups = [path.name for path in folder.glob("log_ppl-*.parquet")]
    assert list(open_run(first.table).info_of(ReweightInfo).whole.groups.values()) == groups
    for name in ("run.json", "_SUCCESS", "manifest.parquet"):
        (folder / name).unlink()
    shutil.rmtree(folder / "weights")
    again = made(scores, {"scheme": "ppl", "alpha": 0.1})
    assert again.summary == first.summary
    assert {path.name: path.read_bytes() for path in (folder / "weights").iterdir()} == weights


def test_it_goes_on_where_it_was(run: Run, tmp_path: Path) -> None:
    scores = made_up_run(str(tmp_path / "r"), [unit(index) for index in range(4)])
    first = made(scores, ["entropy_top", "low_prob"], mean_one=True)
    assert Path(first.table).name == "entropy_top-low_prob"
    table = open_run(first.table)
    whole = {unit: Path(table.object_uri(unit)).read_bytes() for unit in table.committed()}
    record = Path(table.path("run.json")).read_bytes()
    # As after a kill: no seal, and some of the objects.
    for name in ("_SUCCESS", "manifest.parquet"):
        Path(table.path(name)).unlink()
    for name in ("part-00000001", "part-00000002"):
        Path(table.object_uri(name)).unlink()
    Path(table.path("units.parquet")).unlink()
    again = made(scores, ["entropy_top", "low_prob"], mean_one=True)
    assert (again.units_created, again.summary) == (2, first.summary)
    assert {u: Path(table.object_uri(u)).read_bytes() for u in table.committed()} == whole
    assert Path(table.path("run.json")).read_bytes() == record
    assert verify(table) == []
    assert made(scores, ["entropy_top", "low_prob"], mean_one=True).units_created == 0
    with pytest.raises(FingerprintMismatch, match=r"schemes(.|\n)*0.3(.|\n)*another --name"):
        made(scores, [{"scheme": "entropy_top", "rho": 0.3}, "low_prob"], mean_one=True)


def test_texts_of_another_policy_are_left_out(tmp_path: Path) -> None:
    units = [unit(0), unit(1, generator="rl"), unit(2, generator="elsewhere")]
    scores = made_up_run(str(tmp_path / "r"), units)
    with pytest.raises(Refused, match=r"--policy.*base, rl\).*base, elsewhere, rl"):
        made(scores, "low_prob")
    found = made(scores, "low_prob", policy="base")
    assert found.summary.status == {"ok": SAMPLES, "other_generator": 2 * SAMPLES}
    # Δlog p is the same whoever wrote.
    assert made(scores, "delta").summary.status == {"ok": 3 * SAMPLES}
    rl = made(scores, "low_prob", policy="rl", name="of-rl")
    weights = {row["sample_id"]: row["loss_weights"] for row in rows_of(open_run(rl.table))}
    written = [row for row in rows_of(scores) if row["generator"] == "rl"]
    assert len(written) == SAMPLES
    for row in written:
        p = np.exp(np.array(row["logp_rl"], np.float64))
        expected = np.where(row["response_mask"], 1 + 0.2 * (1 - p), 1.0)
        np.testing.assert_allclose(weights[row["sample_id"]], expected, rtol=1e-6)
    # A generator that is none of the policies' names: the name of its policy is the user's word.
    alone = made_up_run(str(tmp_path / "s"), [unit(0, generator="elsewhere")])
    assert made(alone, "low_prob", policy="base").summary.status == {"ok": SAMPLES}


def test_what_cannot_be_is_refused_before_work(run: Run, tmp_path: Path) -> None:
    partial = made_up_run(str(tmp_path / "p"), [unit(0)], planned=2)
    with pytest.raises(Refused, match=r"not sealed \(1 of 2 units"):
        made(partial, "low_prob")
    with pytest.raises(Refused, match=r"--policy sft: .* scored base, rl"):
        made(run, "low_prob", policy="sft")
    theirs = made_up_run(str(tmp_path / "theirs"), [unit(0, generator="rl")])
    with pytest.raises(Refused, match=r"--policy base: no text of run .* is of it.*says rl"):
        made(theirs, "low_prob", policy="base")
    assert not (tmp_path / "theirs" / "weights").exists()
    with pytest.raises(
        Refused, match=r"schemes.0.low_prob.alfa: unknown field; did you mean alpha\?$"
    ):
        ReweightConfig.from_mapping(
            {"run": run.uri, "schemes": {"scheme": "low_prob", "alfa": 1}}, source="reweight"
        )
    with pytest.raises(Refused, match="--rl sft"):
        made(run, "delta", rl="sft")
    with pytest.raises(Refused, match=r"future_kl compares π_old with the current.*on the fly"):
        made(run, "future_kl", policy="rl")
    sampled = {"config": {"policies": {"base": {}, "rl": {}}, "statistics": "sampled"}}
    few = made_up_run(str(tmp_path / "few"), [unit(0)], info=sampled)
    with pytest.raises(Refused, match=r"entropy_top needs entropy_base.*statistics: all"):
        made(few, "entropy_top")
    made(few, "low_prob")
    alone = {"config": {"policies": {"rl": {}}}, "compared": ["rl"]}
    single = made_up_run(str(tmp_path / "single"), [unit(0, generator="rl")], info=alone)
    with pytest.raises(Refused, match=r"delta compares two policies.*scored rl alone"):
        made(single, "delta")
    assert made(single, "low_prob").policy == "rl"
    several = {
        "config": {"policies": {"base": {}, "rl": {}, "late": {}}},
        "compared": ["rl", "late"],
    }
    both = [pa.concat_tables([unit(0), unit(0, policy="late")])]
    scores = made_up_run(str(tmp_path / "several"), both, info=several)
    with pytest.raises(Refused, match=r"compares rl, late.*--rl"):
        made(scores, "delta")
    assert made(scores, "delta", rl="late").summary.rows == SAMPLES
    assert made(scores, "low_prob").summary.rows == SAMPLES
    with pytest.raises(Refused, match="is of weights"):
        made(open_run(made(run, "low_prob", name="again").table), "low_prob")


def test_a_damaged_object_is_named_and_the_others_stay(tmp_path: Path) -> None:
    scores = made_up_run(str(tmp_path / "r"), [unit(index) for index in range(3)])
    path = Path(scores.object_uri("part-00000002"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(Damaged, match="part-00000002"):
        made(scores, "low_prob")


def test_a_damaged_table_is_made_again_and_not_repaired(run: Run) -> None:
    table = open_run(made(run, "low_prob", name="to-damage").table)
    path = Path(table.object_uri("part-00000001"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(Refused, match=r"Delete .*to-damage, and `dlogp reweight` makes"):
        repair(table, verify(table), progress=False)
    assert path.exists()
    assert run.sql("SELECT count(*) FROM scores").fetchall()  # which is not damaged
    with pytest.raises(Damaged, match="to-damage"):
        run.sql("SELECT count(*) FROM weights")
    shutil.rmtree(table.uri)


def test_the_command_line_and_the_views(run: Run) -> None:
    arguments = ["reweight", run.uri, "--scheme", "rsi_band:low=0.5,high=2"]
    done = CliRunner().invoke(app, [*arguments, "--name", "band", "--no-progress"])
    assert done.exit_code == 0, done.output
    assert "rsi_band(low=0.5, high=2.0); π_old is base" in done.stdout
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["schemes"] == [{"scheme": "rsi_band", "low": 0.5, "high": 2.0}]
    assert last["rows"] == 380
    names = run.sql("SELECT name, count(*) FROM weights WHERE name = 'band' GROUP BY 1").fetchall()
    assert names == [("band", 380)]
    table = open_run(last["table"])
    (mean,) = table.sql("SELECT avg(loss_weight) FROM tokens WHERE loss_weight <> 1").fetchall()
    assert mean == (0.0,)
    shown = CliRunner().invoke(app, ["show", last["table"]])
    assert shown.exit_code == 0, shown.output
    assert "samples with weights" in shown.stdout
    for wrong, said in [
        (["--scheme", "lowprob"], "expected one of low_prob"),
        (["--scheme", "low_prob:rho=1"], "it has no rho; expected low_prob:alpha=0.2"),
        (["--scheme", "low_prob:alpha"], "NAME:PARAMETER=VALUE"),
        (["--scheme", "low_prob:alpha=x"], "--scheme low_prob:alpha=x: alpha: "),
        (["--scheme", "ppl"], "--scheme ppl: alpha is missing; expected ppl:alpha=…,low=none"),
        (["--scheme", "rsi_band:low=2,high=1"], "rsi_band:low=2,high=1: low 2 is more than high 1"),
        (["--scheme", "low_prob", "--scheme", "low_prob"], "there twice"),
    ]:
        refused = CliRunner().invoke(app, ["reweight", run.uri, *wrong])
        assert refused.exit_code != 0
        assert said in refused.output + str(refused.exception), refused.exception
    spelled = ["--scheme", "low_prob:alpha=0.1", "--scheme", "future_kl:max_ratio=none,high=2"]
    done = CliRunner().invoke(app, ["reweight", run.uri, *spelled, "--no-progress"])
    assert done.exit_code == 0, done.output
    last = json.loads(done.stdout.splitlines()[-1])
    assert [one["scheme"] for one in last["schemes"]] == ["low_prob", "future_kl"]
    assert (last["schemes"][1]["max_ratio"], last["schemes"][1]["high"]) == (None, 2.0)


def test_pairs_are_scored_verified_and_read_as_references(
    config_defaults: dict[str, Any], tmp_path: Path
) -> None:
    rows = [
        {"sample_id": f"p{i}", "prompt_ids": [2, 3 + i], "chosen_ids": [4, 5], "rejected_ids": [6]}
        for i in range(5)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    job = {"corpus": str(tmp_path / "pairs.parquet"), "output": str(tmp_path), "pairs": True}
    result = dlogp_ray.score(ScoreConfig.from_mapping(config_defaults | job), progress=False)
    assert result.status == {"ok": 10}
    scores = open_run(result.run)
    assert verify(scores) == []
    logps = load_logps(scores.uri, "base", cache=tmp_path / "cache")
    (sums,) = scores.sql(
        "SELECT list_sum(logp_base) FROM scores WHERE sample_id = 'p3/chosen'"
    ).fetchall()
    found = logps.sums(["p3/chosen"], [[4, 5]], prompt_ids=[[2, 6]])
    assert found[0] == pytest.approx(sums[0], rel=1e-6)
    assert len(logps) == 10
