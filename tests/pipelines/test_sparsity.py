"""The sparsity job through Ray: right sums whatever the split, tables, and what is refused."""

import base64
import gzip
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from conftest import make_rows, write_jsonl
from score_tables import made_up_run, score_rows
from typer.testing import CliRunner

import dlogp_ray
from dlogp_ray.analysis.sparsity.comparing import compared
from dlogp_ray.analysis.sparsity.groups import Group, Grouped, grouped
from dlogp_ray.cli import app
from dlogp_ray.config import ScoreConfig, SparsityConfig
from dlogp_ray.errors import Damaged, Refused
from dlogp_ray.pipelines.run import ray_fold as adding
from dlogp_ray.pipelines.sparsity.sparsity import sparsity
from dlogp_ray.tables.run import Run

CARRY = {"correct": "bool"}
NOISE = {
    "texts": 4,
    "tokens": 100,
    "rebatched": {},
    "changed": {},
    "base_against_base": {"delta_logp": {"rms": 0.01, "p99": 0.02}},
}


def unit(index: int) -> pa.Table:
    rows = score_rows(25, seed=index, generator=("base", "rl")[index % 2])
    return rows.append_column("correct", [[i % 2 == 0 for i in range(25)]])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("sparsity")
    units = [unit(index) for index in range(37)]  # more than the tasks, and sums of sums of sums
    alone = score_rows(1, seed=99, generator="one").append_column("correct", [[None]])
    return made_up_run(str(folder / "r"), [*units, alone], carry=CARRY, info={"noise": NOISE})


@pytest.fixture(scope="module")
def found(run: Run) -> Any:
    return sparsity(SparsityConfig(run=run.uri, by=("correct",)), progress=False)


def test_the_sum_over_tasks_is_that_of_the_whole_table(run: Run, found: Any) -> None:
    table = run.dataset().to_table()
    whole = grouped(table, ["correct"], {"delta_logp": 0.02})
    assert found.tokens == sum(one.tokens for one in whole.groups.values())
    assert (found.groups, found.units_read, found.unresolved_nats) == (5, 38, 0.02)
    figures = pq.read_table(Path(found.folder) / "figures.parquet").to_pylist()
    rows = {(r["generator"], r["correct"], r["statistic"], r["figure"], r["x"]): r for r in figures}
    for group, statistics in whole.groups.items():
        for key, figure in statistics.figures().items():
            row = rows[group.generator, dict(group.by)["correct"], *key]
            assert (row["n_tokens"], row["n_samples"]) == (figure.n_tokens, figure.n_samples)
            if figure.value is None:
                continue
            if "quantile" in key[1]:
                assert (row["value"], row["ci_low"]) == (figure.value, figure.ci_low)
            assert row["value"] == pytest.approx(figure.value, rel=1e-9, abs=1e-15)
            if figure.se is not None and figure.se > 1e-6:
                assert row["se"] == pytest.approx(figure.se, rel=1e-6)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("tasks_per_cpu", [1, 4, 100])
def test_it_follows_from_the_rows_to_the_byte(
    run: Run, found: Any, tasks_per_cpu: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here or by Ray, however the objects are dealt to tasks, and whichever ends first."""
    monkeypatch.setattr(adding, "TASKS_PER_CPU", tasks_per_cpu)
    config = SparsityConfig(run=run.uri, by=("correct",), name="again", run_on="ray")
    again = sparsity(config, progress=False)
    for name in (*found.tables, "report"):
        ending = "html" if name == "report" else "parquet"
        first, second = (Path(one.folder, f"{name}.{ending}") for one in (found, again))
        assert first.read_bytes() == second.read_bytes(), name
    shutil.rmtree(again.folder)


def test_all_tables_are_there(found: Any) -> None:
    folder = Path(found.folder)
    histograms = pq.read_table(folder / "histograms.parquet").to_pylist()
    delta = [r for r in histograms if r["statistic"] == "delta_logp"]
    assert sum(row["tokens"] for row in delta) == found.tokens
    joint = pq.read_table(folder / "joint.parquet").to_pylist()
    assert sum(r["tokens"] for r in joint if r["statistic"] == "js") == found.tokens
    shifted = pq.read_table(folder / "shifted.parquet").to_pylist()
    assert sum(row["tokens"] for row in shifted) == found.tokens
    assert {row["token"] for row in shifted} == {None}  # no tokenizer is to be found
    info = json.loads((folder / "sparsity.json").read_text())
    assert info["config"]["by"] == ["correct"]


def test_the_report_is_one_file_that_is_not_split(run: Run, found: Any) -> None:
    page = (Path(found.folder) / "report.html").read_text(encoding="utf-8")
    packed = page.split('id="data" type="text/plain">')[1].split("</script>")[0]
    data = json.loads(gzip.decompress(base64.b64decode(packed)))
    charts = [chart for some in data["charts"].values() for chart in some]
    assert len(charts) == 19
    series = {row["series"] for row in charts[0]["spec"]["data"]["values"]}
    # "one" wrote one sample, of which there is no error.
    assert series == {"base's text", "rl's text"}
    assert data["policies"] == ["rl"]
    assert "split by correct too" in page
    # Its record is older than that of rounding.
    assert "Noise floor: unresolved below 0.02 nats (" in page
    assert "; rounding not measured). Base against base is" in page
    # 40 that moved and 40 by chance of two groups, some of them both, and the one.
    assert 81 <= len(data["samples"]) <= 161
    assert {one["right"] for one in data["samples"]} == {True, False, None}
    assert {one["name"]: one["floor"] for one in data["measures"]}["delta_logp"] == 0.02
    assert "://" not in page.split("<script")[0]


def test_a_group_of_one_sample_has_no_error_and_is_named(found: Any) -> None:
    assert found.single == ["one's text under rl, correct None"]
    figures = pq.read_table(Path(found.folder) / "figures.parquet").to_pylist()
    errors = {row["se"] for row in figures if row["generator"] == "one"}
    assert errors == {None}


def test_a_run_that_is_not_sealed_is_analysed_only_when_asked(tmp_path: Path) -> None:
    run = made_up_run(str(tmp_path / "r"), [unit(0), unit(1)], planned=4, carry=CARRY)
    with pytest.raises(Refused, match=r"not sealed \(2 of 4 units.*--partial"):
        sparsity(SparsityConfig(run=run.uri), progress=False)
    found = sparsity(SparsityConfig(run=run.uri, partial=True), progress=False)
    assert (found.sealed, found.units, found.units_read) == (False, 4, 2)
    done = CliRunner().invoke(app, ["sparsity", run.uri, "--partial"])
    assert done.exit_code == 0, done.output
    assert "covers 2 of 4 units" in done.stdout
    assert "no noise floor" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["tokens"] == found.tokens


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"by": ["difficulty"]}, "can't be split by difficulty: .*correct"),
        ({"by": ["delta_logp"]}, "delta_logp has a value a token"),
        ({"by": ["correct", "policy"]}, "split by policy anyhow; leave it out"),
        ({"by": ["sample_id"]}, "can't be split by sample_id"),
    ],
)
def test_columns_that_are_not_there_are_refused(
    run: Run, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(Refused, match=message):
        sparsity(SparsityConfig.from_mapping({"run": run.uri, **config}), progress=False)


def test_a_column_that_is_named_as_one_of_the_tables_is_refused(tmp_path: Path) -> None:
    rows = score_rows(4).append_column("value", [[1, 2, 3, 4]])
    run = made_up_run(str(tmp_path / "r"), [rows], carry={"value": "int64"})
    with pytest.raises(Refused, match="value is the name of a column of the statistics"):
        sparsity(SparsityConfig(run=run.uri, by=("value",)), progress=False)


def test_a_task_s_refusal_is_the_job_s(tmp_path: Path) -> None:
    # Of all objects at once: Ray is not asked to cancel what ends just then.
    names = [[str(i) for i in range(150)]]
    rows = [score_rows(150, seed=i, masked=0.0).append_column("question", names) for i in range(9)]
    run = made_up_run(str(tmp_path / "r"), rows, carry={"question": "string"})
    with pytest.raises(Refused, match="at most 100 groups"):
        sparsity(SparsityConfig(run=run.uri, by=("question",)), progress=False)


def test_a_policy_by_itself_has_nothing_to_compare(tmp_path: Path) -> None:
    rows = score_rows(5, policy="base")
    nothing = pa.nulls(5, pa.list_(pa.float32()))
    rows = rows.set_column(rows.column_names.index("delta_logp"), "delta_logp", nothing)
    run = made_up_run(str(tmp_path / "r"), [rows])
    with pytest.raises(
        Refused, match=r"nothing in it is compared .*5 of them of a policy by itself"
    ):
        sparsity(SparsityConfig(run=run.uri), progress=False)


def test_a_run_of_which_no_row_was_scored_says_so(
    config_defaults: dict[str, Any], tmp_path: Path
) -> None:
    rows = [row | {"response_ids": []} for row in make_rows(3)]
    corpus = str(write_jsonl(tmp_path / "c.jsonl", rows))
    job = {"corpus": corpus, "output": str(tmp_path), "max_rejected": 3}
    result = dlogp_ray.score(ScoreConfig(**config_defaults | job), progress=False)
    assert result.status == {"empty_response": 3}
    with pytest.raises(Refused, match=r"no row of it was scored; `dlogp show .* says why"):
        sparsity(SparsityConfig(run=result.run), progress=False)


def test_a_shard_that_fails_its_checksum_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    run = made_up_run(str(tmp_path / "r"), [unit(0), unit(1)], carry=CARRY)
    path = Path(run.object_uri("part-00000001"))
    data = bytearray(path.read_bytes())
    # In the pages of a column that is read.
    column = pq.ParquetFile(path).metadata.row_group(0)
    chunk = next(
        column.column(i)
        for i in range(column.num_columns)
        if column.column(i).path_in_schema.startswith("js.")
    )
    data[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(Damaged, match=r"part-00000001\.parquet can't be read"):
        sparsity(SparsityConfig(run=run.uri), progress=False)
    assert not (Path(run.uri) / "sparsity").exists()


def test_sums_merge_in_any_number_of_parts() -> None:
    parts = [grouped(unit(index), [], {}) for index in range(3)]
    whole = Grouped.merge(parts)
    assert whole.groups[Group("rl", "base")].samples == sum(
        part.groups[Group("rl", "base")].samples for part in (parts[0], parts[2])
    )
    assert Grouped.merge([]).groups == {}
    assert np.array_equal(
        Grouped.merge([whole]).groups[Group("rl", "rl")].shifted.ids,
        parts[1].groups[Group("rl", "rl")].shifted.ids,
    )


def test_the_readme_s_questions_have_answers(run: Run, found: Any) -> None:
    room = Path(__file__).parents[2] / "dlogp_ray" / "analysis"
    readme = (room / "README.md").read_text(encoding="utf-8")
    (recipes,) = re.findall(r"^```sql\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    queries = [part for part in recipes.split(";\n") if part.strip()]
    assert len(queries) == 10
    for query in queries:
        relation = run.sql(query)
        rows = relation.fetchall()
        # No row of this run was rejected.
        assert bool(rows) == ("FROM rejected" not in query), query


def test_figures_are_a_view_and_are_compared(run: Run, found: Any, tmp_path: Path) -> None:
    counted = run.sql("SELECT analysis, count(*) FROM sparsity GROUP BY ALL").fetchall()
    assert counted == [("all", found.tables["figures"])]
    (counted,) = run.sql(
        "SELECT sum(tokens) FROM sparsity_histograms WHERE statistic = 'js'"
    ).fetchall()
    assert counted == (found.tokens,)
    done = CliRunner().invoke(app, ["compare", run.uri, run.uri, "--json"])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == found.tables["figures"]
    assert {row["difference"] for row in rows} <= {0.0, None}
    done = CliRunner().invoke(app, ["compare", run.uri, run.uri])
    assert "JS > 0.1" in done.stdout
    with pytest.raises(Refused, match=r"no sparsity analysis 'other' .those there: 'all'\)"):
        run.figures("other")


def test_an_analysis_without_its_figures_is_damaged(tmp_path: Path) -> None:
    run = made_up_run(str(tmp_path / "r"), [score_rows(3)])
    sparsity(SparsityConfig(run=run.uri), progress=False)
    (tmp_path / "r/sparsity/all/figures.parquet").unlink()
    with pytest.raises(Damaged, match=r"no figures\.parquet any more; `dlogp sparsity "):
        run.figures("all")


def test_how_many_samples_are_paired_is_told(tmp_path: Path) -> None:
    uris = []
    for first, count in ((0, 30), (20, 25), (100, 7)):
        rows = score_rows(count)
        ids = pa.array([f"s{i}" for i in range(first, first + count)])
        rows = rows.set_column(rows.schema.get_field_index("sample_id"), "sample_id", ids)
        run = made_up_run(str(tmp_path / str(first)), [rows])
        sparsity(SparsityConfig(run=run.uri), progress=False)
        uris.append(run.uri)
    told = CliRunner().invoke(app, ["compare", *uris[:2]]).stdout
    assert "10 sample ids are in both runs, of 30 in the first and 25 in the second" in told
    assert "paired by sample id" in told
    told = CliRunner().invoke(app, ["compare", *uris[::2]]).stdout
    assert "0 sample ids are in both runs, of 30 in the first and 7 in the second" in told
    assert "nothing in them is paired" in told


def test_a_place_that_takes_nothing_is_refused_before_the_table_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made_up_run(str(tmp_path / "r"), [score_rows(3)])
    Path(run.uri, "sparsity").write_text("a file stands where the folder would be")

    def read(*_: Any, **__: Any) -> Any:
        raise AssertionError("it was read")

    monkeypatch.setattr("dlogp_ray.pipelines.sparsity.sparsity.read_object", read)
    with pytest.raises(Refused, match="sparsity/all: nothing can be written there"):
        sparsity(SparsityConfig(run=run.uri), progress=False)


def test_the_same_texts_under_two_settings_are_paired(tmp_path: Path) -> None:
    """Of two runs of the same rows that differ by little, the difference is as sure as it is."""
    rows = score_rows(200, seed=5)
    moved = pc.list_flatten(rows["delta_logp"]).to_numpy() + 0.001
    other = rows.set_column(
        rows.schema.get_field_index("delta_logp"),
        rows.schema.field("delta_logp"),
        pa.ListArray.from_arrays(
            rows["delta_logp"].combine_chunks().offsets, pa.array(moved, pa.float32())
        ),
    )
    figures = []
    for name, table in (("a", other), ("b", rows)):
        run = made_up_run(str(tmp_path / name), [table])
        sparsity(SparsityConfig(run=run.uri), progress=False)
        figures.append(run.figures("all"))
    (row,) = (
        row
        for row in compared(*figures).to_pylist()
        if (row["statistic"], row["figure"]) == ("delta_logp", "mean")
    )
    assert row["paired"]
    assert row["difference"] == pytest.approx(0.001, abs=1e-6)  # of float32 values of about 1
    # Each token is moved by the same: only float32's roundings differ, by 1e-7 a token.
    assert row["difference_se"] < 1e-6 < row["se_a"]


def test_a_run_of_sampled_statistics_alone_is_analysed(
    config_defaults: dict[str, Any], tmp_path: Path
) -> None:
    corpus = write_jsonl(tmp_path / "c.jsonl", make_rows(20))
    job = {"corpus": str(corpus), "output": str(tmp_path), "statistics": "sampled"}
    run = dlogp_ray.score(ScoreConfig.from_mapping(config_defaults | job), progress=False).run
    found = sparsity(SparsityConfig(run=run, run_on="here"), progress=False)
    figures = dlogp_ray.open_run(run).figures("all").to_pylist()
    deltas = dlogp_ray.open_run(run).sql("SELECT delta_logp FROM tokens").fetchnumpy()["delta_logp"]
    means = [r for r in figures if (r["statistic"], r["figure"]) == ("delta_logp", "mean")]
    total = sum(r["value"] * r["n_tokens"] for r in means)
    assert total == pytest.approx(float(np.sum(deltas, dtype=np.float64)))
    assert found.tokens == len(deltas)
    assert {r["statistic"] for r in figures}.isdisjoint({"js", "entropy_base", "kl_rl_base"})


def test_a_weights_table_has_no_figures_of_its_own(
    config_defaults: dict[str, Any], tmp_path: Path
) -> None:
    corpus = write_jsonl(tmp_path / "c.jsonl", make_rows(20))
    job = {"corpus": str(corpus), "output": str(tmp_path)}
    run = dlogp_ray.score(ScoreConfig.from_mapping(config_defaults | job), progress=False).run
    weights = {"run": run, "schemes": ["delta"], "run_on": "here"}
    table = dlogp_ray.reweight(dlogp_ray.ReweightConfig.from_mapping(weights), progress=False).table
    with pytest.raises(Refused, match="is a weights table, whose figures `dlogp show` has"):
        sparsity(SparsityConfig(run=table, run_on="here"), progress=False)


def test_an_analysis_whose_record_says_nothing_is_damaged(tmp_path: Path) -> None:
    run = made_up_run(str(tmp_path / "r"), [score_rows(3)])
    sparsity(SparsityConfig(run=run.uri), progress=False)
    record = tmp_path / "r/sparsity/all/sparsity.json"
    whole = json.loads(record.read_text())
    for said in ({}, {name: value for name, value in whole.items() if name != "sha256"}):
        record.write_text(json.dumps(said))
        with pytest.raises(Damaged, match=r"sparsity\.json is not as it was written"):
            run.figures("all")
