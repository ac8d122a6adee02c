"""The intervene job through Ray: right answers and rates, resume, a corpus for the score job."""

import io
import json
import re
import shutil
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import (
    contents,
    edit_record,
    make_framing_tokenizer,
    make_policy_folder,
    make_tokenizer,
    write_jsonl,
)
from rich.console import Console
from run_records import intervene_info
from typer.testing import CliRunner

import dlogp_ray
from dlogp_ray.analysis.estimates import mean_by_problem, paired_difference
from dlogp_ray.analysis.overview import overview, print_overview
from dlogp_ray.cli import app
from dlogp_ray.config import InterveneConfig, RuleConfig
from dlogp_ray.decoding.batch import Prompt
from dlogp_ray.decoding.loop import PairedDecoder
from dlogp_ray.decoding.rules import RULES, Intervention
from dlogp_ray.decoding.stopping import Stops
from dlogp_ray.errors import Damaged, FingerprintMismatch, InputChanged, Refused
from dlogp_ray.pipelines.intervene.actor import AnswerUnit
from dlogp_ray.pipelines.intervene.plan import plan_intervene
from dlogp_ray.pipelines.intervene.result import print_intervene
from dlogp_ray.pipelines.repair import repair
from dlogp_ray.policies.checkpoint import resolve
from dlogp_ray.policies.policy import Policy
from dlogp_ray.tables.fingerprint import check_fingerprint
from dlogp_ray.tables.info import InterveneInfo
from dlogp_ray.tables.run import Run
from dlogp_ray.tables.verification import verify

RULES_OF_THE_JOB = [
    {"rule": "delta_logp", "thresholds": -1.0, "rates": 0.1},
    {"rule": "delta_logp", "thresholds": -1.0, "gammas": [0.1, 0.3]},
    {"rule": "random", "rates": 0.2, "thresholds": 0.2},
    {"rule": "kl", "thresholds": 1.0, "primary": "rl", "gammas": 0.3},
]
VERIFIERS = Path(__file__).parents[1] / "verifiers.py"
ENDS = (1, 2)
"""The tokenizer's end of sequence, and that of the tiny Llamas' generation_config.json."""
LABELS = [
    "base",
    "rl",
    "delta_logp tau=-1",
    "delta_logp 0.1",
    "delta_logp tau=-1 gamma=0.1",
    "delta_logp tau=-1 gamma=0.3",
    "random tau=0.2",
    "random 0.2",
    "kl tau=1 backward gamma=0.3",
]


PROBLEMS = 8
"""Every fourth has the same text; p3 can't be graded."""


def write_problems(path: Path, n: int = PROBLEMS) -> Path:
    texts = ["1+2=", "34+5=", "7", "9=9"]
    return write_jsonl(
        path,
        [{"problem_id": f"p{i}", "prompt": texts[i % 4], "answer": 6} for i in range(n)],
    )


@pytest.fixture(scope="module")
def fields(policy_folders: dict[str, Path]) -> dict[str, Any]:
    return {
        "policies": {name: str(folder) for name, folder in policy_folders.items()},
        "run_id": "test",
        "rules": RULES_OF_THE_JOB,
        "verifier": f"{VERIFIERS}:short",
        "samples": 2,
        "seeds": [0, 7],
        "max_tokens": 20,
        "calibration_problems": PROBLEMS,
        "unit_problems": 3,
        "run_on": "here",
        "actors": 1,
        "threads_per_actor": 1,  # beside other tests, two take several times as long as one
        "max_rejected": 1_000,
    }


@pytest.fixture(scope="module")
def answered(
    fields: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[InterveneConfig, dlogp_ray.InterveneResult]:
    folder = tmp_path_factory.mktemp("answered")
    places = {
        "problems": str(write_problems(folder / "problems.jsonl")),
        "output": str(folder / "runs"),
    }
    config = InterveneConfig.from_mapping(fields | places)
    return config, dlogp_ray.intervene(config, progress=False)


def rows_of(run: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = dlogp_ray.open_run(run).dataset().to_table().to_pylist()
    return rows


def test_every_answer_is_the_paired_loop_s(answered: Any, policy_folders: dict[str, Path]) -> None:
    config, result = answered
    assert (result.exit_code, result.sealed, result.units, result.units_created) == (0, True, 3, 3)
    assert result.rows == PROBLEMS * 2 * 2 * len(LABELS)
    run = dlogp_ray.open_run(result.run)
    assert run.info.compared == tuple(LABELS)
    thresholds = {one.label: one.threshold for one in run.info_of(InterveneInfo).interventions}
    wanted = {
        label: Intervention(one.rule, thresholds[label], one.primary, one.gamma)
        for label, one in zip(LABELS, run.info_of(InterveneInfo).interventions, strict=True)
    }
    labels = {one: label for label, one in wanted.items()}
    assert wanted["random 0.2"] == wanted["random tau=0.2"]
    tokenizer = make_tokenizer()
    policies = [Policy.load(resolve(n, str(policy_folders[n]))) for n in ("base", "rl")]
    decoder = PairedDecoder(*policies, stops=Stops(ENDS), max_tokens=20, rows=50, block=4)
    problems = [json.loads(line) for line in Path(config.problems[0]).read_text().splitlines()]
    prompts = [
        Prompt(p["problem_id"], tokenizer(p["prompt"])["input_ids"], tuple(labels), sample, seed)
        for p in problems
        for sample in (0, 1)
        for seed in (0, 7)
    ]
    found = {row["sample_id"]: row for row in rows_of(result.run)}
    assert len(found) == result.rows
    certain = 0
    for answer in decoder.decode(prompts):
        prompt, label = answer.prompt, labels[answer.intervention]
        row = found[f"{prompt.problem}/{label}/{prompt.seed}/{prompt.sample}"]
        assert (row["generator"], row["group_id"]) == (label, prompt.problem)
        assert row["prompt_ids"] == prompt.ids
        if answer.close or row["close_draws"]:
            continue
        certain += 1
        assert row["response_ids"] == answer.ids.tolist()
        assert row["fired"] == answer.fired.tolist()
        assert row["changed"] == answer.changed.tolist()
        assert (row["length"], row["finish"]) == (len(answer.ids), answer.finish)
        text = tokenizer.decode(answer.ids.tolist(), skip_special_tokens=True)
        if prompt.problem == "p3":
            assert (row["correct"], row["reward"], row["status"]) == (None, None, "not_graded")
            assert row["error"] == "ZeroDivisionError: no answer is known"
        else:
            assert (row["correct"], row["status"]) == (len(text) <= 6, "ok")
            assert row["reward"] == float(len(text) <= 6)
    assert certain > result.rows / 2
    for row in found.values():
        if row["policy"] == "random tau=0.2":
            same = found[row["sample_id"].replace("tau=", "")]
            assert same["response_ids"] == row["response_ids"]


def test_what_cannot_be_graded_is_counted(answered: Any) -> None:
    _config, result = answered
    assert result.status == {
        "ok": result.rows * (PROBLEMS - 1) // PROBLEMS,
        "not_graded": result.rows // PROBLEMS,
    }
    assert result.as_json()["not_graded"] == result.rows // PROBLEMS
    run = dlogp_ray.open_run(result.run)
    rejected = run.sql("SELECT DISTINCT group_id, error FROM rejected").fetchall()
    assert rejected == [("p3", "ZeroDivisionError: no answer is known")]


def test_the_curve_is_what_the_rows_say(answered: Any) -> None:
    _config, result = answered
    rows = rows_of(result.run)
    assert [point.label for point in result.curve] == LABELS
    written = pq.read_table(Path(result.run) / "curve.parquet").to_pylist()
    rl = {(r["group_id"], r["seed"], r["sample"]): r for r in rows if r["policy"] == "rl"}
    for point, saved in zip(result.curve, written, strict=True):
        mine = [row for row in rows if row["policy"] == point.label]
        tokens = sum(row["length"] for row in mine)
        assert point.trigger_rate == sum(sum(row["fired"]) for row in mine) / tokens
        assert point.effective_rate == sum(sum(row["changed"]) for row in mine) / tokens
        assert point.length == tokens / len(mine)
        graded = [row for row in mine if row["correct"] is not None]
        assert (point.answers, point.not_graded) == (len(mine), len(mine) - len(graded))
        values = np.array([float(row["correct"]) for row in graded])
        problems = np.array([row["group_id"] for row in graded])
        mean = mean_by_problem(values, problems)
        assert mean is not None
        # Sums of the same 28 numbers in another order.
        assert point.accuracy == pytest.approx(mean.value, rel=1e-12)
        assert point.se == pytest.approx(mean.se, rel=1e-12)
        assert saved["accuracy"] == point.accuracy
        by_problem = [values[problems == name] for name in dict.fromkeys(problems)]
        assert [one.k for one in point.pass_at] == [2, 4]
        for passed in point.pass_at:
            # The share of all choices of k answers with a right one among them.
            chances = [
                np.mean([max(some) for some in combinations(four, passed.k)]) for four in by_problem
            ]
            assert passed.value == pytest.approx(np.mean(chances), rel=1e-12)
        assert saved["pass_at"] == [asdict(one) for one in point.pass_at]
        if point.label == "rl":
            assert point.against_rl is None
            continue
        theirs = np.array(
            [float(rl[r["group_id"], r["seed"], r["sample"]]["correct"]) for r in graded]
        )
        difference = paired_difference(values, theirs, problems)
        assert difference is not None
        assert point.against_rl == pytest.approx(difference.value, rel=1e-12, abs=1e-12)
        assert difference.ci is not None
        assert point.against_rl_ci_low == pytest.approx(difference.ci[0], rel=1e-9)
    names = {path.name for path in Path(result.run).iterdir() if path.is_file()}
    assert {"curve.svg", "curve.png", "extrapolation.svg", "extrapolation.png"} <= names
    assert b"<svg" in (Path(result.run) / "curve.svg").read_bytes()[:2_000]


def test_calibrated_rules_fire_about_as_often_as_asked(answered: Any) -> None:
    _config, result = answered
    run = dlogp_ray.open_run(result.run)
    tokens = run.info_of(InterveneInfo).calibration_tokens["base"]
    by_label = {one.label: one for one in run.info_of(InterveneInfo).interventions}
    assert by_label["random 0.2"].threshold == 0.2
    assert 0 < by_label["delta_logp 0.1"].reached <= 0.1 + 1 / tokens
    random = next(point for point in result.curve if point.label == "random 0.2")
    # Independent firings: 5 standard errors of sqrt(0.2 · 0.8 / n), n some 700 tokens.
    assert random.trigger_rate == pytest.approx(0.2, abs=5 * (0.16 / 500) ** 0.5)


@pytest.mark.slow
def test_the_rows_are_a_corpus_that_is_scored(
    answered: Any, fields: dict[str, Any], tmp_path: Path
) -> None:
    _config, result = answered
    scored = dlogp_ray.score(
        dlogp_ray.ScoreConfig.from_mapping(
            {
                "corpus": f"{result.run}/generations",
                "policies": fields["policies"],
                "output": str(tmp_path),
                "run_id": "scores",
                "actors": 1,
                "threads_per_actor": 1,
            }
        ),
        progress=False,
    )
    assert (scored.exit_code, scored.rows, scored.tokens) == (0, result.rows, result.tokens)
    opened = dlogp_ray.open_run(scored.run)
    counts = "SELECT count(DISTINCT generator), sum(reward) FROM scores"
    correct = sum(row["reward"] or 0 for row in rows_of(result.run))
    assert opened.sql(counts).fetchall() == [(len(LABELS), correct)]
    # Where the rule fires on a draft, Δlog p of that draft is at most τ; where nothing changed, the
    # draft is the token.
    fired = {
        (row["sample_id"], i)
        for row in rows_of(result.run)
        if row["policy"] == "delta_logp tau=-1"
        for i, (f, c) in enumerate(zip(row["fired"], row["changed"], strict=True))
        if f and not c
    }
    deltas = opened.sql(
        """SELECT sample_id, "position", delta_logp FROM tokens
           WHERE generator = 'delta_logp tau=-1'"""
    ).fetchall()
    unchanged = {
        (row["sample_id"], i)
        for row in rows_of(result.run)
        if row["policy"] == "delta_logp tau=-1"
        for i, c in enumerate(row["changed"])
        if not c
    }
    assert fired
    for sample, position, delta in deltas:
        # 1e-4: two float32 forwards of other batch shapes.
        if (sample, position) in fired:
            assert delta <= -1 + 1e-4
        elif (sample, position) in unchanged:
            assert delta >= -1 - 1e-4


def elsewhere(answered: Any, output: Path) -> InterveneConfig:
    config, result = answered
    shutil.copytree(result.run, output / config.run_id)
    copied: InterveneConfig = config.model_copy(update={"output": str(output)})
    return copied


@pytest.mark.slow  # what is missing is found as in score jobs
def test_only_missing_units_are_done_with_the_thresholds_of_the_run(
    answered: Any, tmp_path: Path
) -> None:
    _config, result = answered
    copied = elsewhere(answered, tmp_path)
    for name in ("_SUCCESS", "manifest.parquet", "generations/part-00000001.parquet"):
        (Path(copied.run_uri) / name).unlink()
    again = dlogp_ray.intervene(copied, progress=False)
    assert (again.units_created, again.sealed, again.exit_code) == (1, True, 0)
    assert contents(again.run) == contents(result.run)
    assert again.curve == result.curve
    assert verify(dlogp_ray.open_run(again.run)) == []
    assert dlogp_ray.intervene(copied, progress=False).units_created == 0


@pytest.mark.slow
def test_damage_is_found_and_repaired(answered: Any, tmp_path: Path) -> None:
    run = Path(elsewhere(answered, tmp_path).run_uri)
    damaged = run / "generations/part-00000001.parquet"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 3] ^= 1
    damaged.write_bytes(data)
    opened = dlogp_ray.open_run(str(run))
    problems = verify(opened)
    assert {problem.unit for problem in problems} == {"part-00000001"}
    repair(opened, problems, trusted=True, progress=False)
    assert verify(opened) == []
    assert contents(str(run)) == contents(answered[1].run)


def test_another_question_is_refused_on_the_run(answered: Any, tmp_path: Path) -> None:
    copied = elsewhere(answered, tmp_path)
    for change, named in (
        ({"seeds": (0, 8)}, "seeds"),
        ({"top_p": 0.7}, "sampling top_p"),
        ({"rules": (RuleConfig(rule="always"),)}, "interventions"),
        ({"problems": (str(write_problems(tmp_path / "other.jsonl", 13)),)}, "problems"),
    ):
        with pytest.raises(FingerprintMismatch, match=named):
            dlogp_ray.intervene(copied.model_copy(update=change), progress=False)


def test_another_grader_under_the_same_name_is_refused_on_the_run(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    verifier = tmp_path / "mine.py"
    verifier.write_text("def mine(problem, response): return True")
    config = InterveneConfig.from_mapping(
        fields
        | {
            "problems": str(write_problems(tmp_path / "p.jsonl", 2)),
            "output": str(tmp_path),
            "rules": {"rule": "always"},
            "verifier": f"{verifier}:mine",
        }
    )
    plan = plan_intervene(config)
    before = plan.fingerprint
    assert plan_intervene(config).fingerprint == before
    AnswerUnit(plan.job, "cpu")
    verifier.write_text("def mine(problem, response): return False")
    with pytest.raises(InputChanged, match=r"verifier_changed: .*mine\.py:mine is not the one"):
        AnswerUnit(plan.job, "cpu")
    run = Run("run", intervene_info(1, {"fingerprint": before}))
    with pytest.raises(FingerprintMismatch, match="verifier sha256"):
        check_fingerprint(run, plan_intervene(config).fingerprint)


def test_special_tokens_of_problems_are_counted_and_said(
    answered: Any, fields: dict[str, Any], tmp_path: Path
) -> None:
    tokenizer = make_framing_tokenizer()  # begins with <pad>, 0, and ends with <eos>
    folders = {
        name: str(make_policy_folder(tmp_path / name, seed, tokenizer=tokenizer))
        for seed, name in enumerate(("base", "rl"))
    }
    rows = [
        {"problem_id": "ids", "prompt_ids": [0, 3], "answer": 1},
        {"problem_id": "bare", "prompt": "1", "answer": 1},
        {"problem_id": "rendered", "prompt": "<pad>1", "answer": 1},
    ]
    places = {
        "problems": str(write_jsonl(tmp_path / "p.jsonl", rows)),
        "output": str(tmp_path / "runs"),
        "policies": folders,
    }
    plan = plan_intervene(InterveneConfig.from_mapping(fields | places))
    assert plan.problems["prompt_ids"].to_pylist() == [[0, 3]] * 3
    assert plan.special_tokens == {"end_left_off": 2, "bos_there": 1}

    config, first = answered
    info = dlogp_ray.open_run(first.run).info_of(InterveneInfo)
    assert info.special_tokens == first.special_tokens == {}
    # As of a run that began with such problems.
    run = shutil.copytree(first.run, tmp_path / config.run_id)
    edit_record(run, lambda info: info.update(special_tokens=plan.special_tokens))
    here = config.model_copy(update={"output": str(tmp_path)})
    result = dlogp_ray.intervene(here, progress=False)
    assert result.as_json()["special_tokens"] == plan.special_tokens
    printed = io.StringIO()
    console = Console(file=printed, width=200)
    print_intervene(result, console)
    print_overview(overview(dlogp_ray.open_run(result.run)), console)
    assert printed.getvalue().count("2 whose prompt is without the end that the tokenizer") == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rules": [{"rule": "delta_logp", "thresholds": 0.5}]}, "threshold between -inf and 0"),
        ({"rules": [{"rule": "kl", "thresholds": -1}]}, "rule kl: expected a threshold between 0"),
        (
            {"rules": [{"rule": "always", "gammas": -1}]},
            "always gamma=-1: expected a finite gamma of at least 0",
        ),
        (
            {"rules": [{"rule": "delta_logp", "rates": 0.1, "primary": "rl", "gammas": 0.1}]},
            "looks at the draft",
        ),
        ({"rules": [{"rule": "always"}] * 2}, "always: there twice"),
        ({"verifier": "exact_match", "problems": "{tmp}/open.jsonl"}, "o: there is no 'answer'"),
        ({"problems": "{tmp}/none.jsonl"}, "problems .*none.jsonl: there is no JSONL"),
        ({"verifier": "no_such"}, "no verifier is called 'no_such'"),
        ({"problems": "{tmp}/long.jsonl"}, "problem long: the prompt has 64 tokens"),
        (
            {"policies": {"base": "{base}", "rl": "{other}"}},
            "tokenizer",
        ),
    ],
)
def test_what_has_no_meaning_is_refused_before_anything_is_written(
    change: dict[str, Any],
    message: str,
    fields: dict[str, Any],
    policy_folders: dict[str, Path],
    tmp_path: Path,
) -> None:
    other = make_policy_folder(tmp_path / "other", 2, tokenizer=make_tokenizer("0123456789+=abc"))
    write_jsonl(tmp_path / "long.jsonl", [{"problem_id": "long", "prompt": "1" * 64}])
    write_jsonl(tmp_path / "open.jsonl", [{"problem_id": "o", "prompt": "1"}])
    places = {"base": policy_folders["base"], "other": other, "tmp": tmp_path}
    text = json.dumps(change)
    for name, place in places.items():
        text = text.replace(f"{{{name}}}", str(place))
    given = {"problems": str(write_problems(tmp_path / "p.jsonl")), "output": str(tmp_path / "o")}
    config = InterveneConfig.from_mapping(fields | given | json.loads(text))
    with pytest.raises(Refused, match=message):
        dlogp_ray.intervene(config, progress=False)
    assert not (tmp_path / "o").exists()


def test_an_extrapolation_that_is_not_finite_is_refused_before_the_run(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    config = InterveneConfig.from_mapping(
        fields
        | {
            "problems": str(write_problems(tmp_path / "p.jsonl", 2)),
            "output": str(tmp_path / "o"),
            "rules": {"rule": "always", "gammas": [0.1, 3e38]},
            "verifier": "exact_match",
        }
    )
    message = r"rules: problem p\d.*: gamma 3e\+38 gives a distribution that is not finite"
    with pytest.raises(Refused, match=message):
        dlogp_ray.intervene(config, progress=False)
    assert not (tmp_path / "o/test").exists()


def test_a_curve_that_was_edited_is_not_read(answered: Any, tmp_path: Path) -> None:
    _, result = answered
    run = dlogp_ray.open_run(str(shutil.copytree(result.run, tmp_path / "copy")))
    assert len(run.sql("SELECT * FROM curve").fetchall()) == len(LABELS)
    path = Path(run.uri, "curve.parquet")
    pq.write_table(pq.read_table(path).slice(0, 2), path)
    with pytest.raises(Damaged, match=r"curve\.parquet was changed.*`dlogp intervene` with"):
        run.sql("SELECT * FROM curve")
    assert run.sql("SELECT count(*) FROM generations").fetchall() != [(0,)]


def test_the_command_prints_the_curve_and_one_line_of_json(answered: Any, tmp_path: Path) -> None:
    copied = elsewhere(answered, tmp_path)
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(copied.model_dump(mode="json")))
    done = CliRunner().invoke(app, ["intervene", str(job)])
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert [point["label"] for point in document["curve"]] == LABELS
    rows = dlogp_ray.open_run(copied.run_uri).sql("SELECT finish FROM generations").fetchall()
    assert document["cut_off"] == sum(finish == "length" for (finish,) in rows) > 0
    assert f"{document['cut_off'] / len(rows):.1%} of the answers were cut at max" in done.stdout
    # Whole, whatever the width of what it goes to (80 columns here).
    for point in document["curve"]:
        (line,) = (
            one for one in done.stdout.splitlines() if re.match(rf"{point['label']}  +\d", one)
        )
        assert f"{point['trigger_rate']:.2%}" in line
        assert f"{point['accuracy']:.2%} ± {point['se']:.2%}" in line
    assert "pass@4" in done.stdout
    assert "…" not in done.stdout
    shown = CliRunner().invoke(app, ["show", copied.run_uri])
    assert shown.exit_code == 0, shown.output
    order = [shown.stdout.index(f"\n{label}  ") for label in LABELS]
    assert order == sorted(order)
    queried = CliRunner().invoke(
        app, ["query", copied.run_uri, "SELECT label FROM curve", "--format", "json"]
    )
    assert [json.loads(line)["label"] for line in queried.stdout.splitlines()] == LABELS


def test_the_plan_of_a_run_that_exists_is_what_it_began_with(answered: Any, tmp_path: Path) -> None:
    copied = elsewhere(answered, tmp_path)
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(copied.model_dump(mode="json")))
    done = CliRunner().invoke(app, ["intervene", str(job), "--plan"])
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    info = dlogp_ray.open_run(copied.run_uri).info_of(InterveneInfo)
    assert document["interventions"] == [one.as_json() for one in info.interventions]
    assert document["answers_per_s_per_actor"] == info.engine.answers_per_s
    assert (document["units_done"], document["units"]) == (3, 3)


def test_the_config_s_rules_are_the_rules() -> None:
    names = RuleConfig.model_fields["rule"].annotation.__args__  # type: ignore[union-attr]
    assert set(names) == set(RULES)


def test_tables_are_typed(answered: Any) -> None:
    _config, result = answered
    schema = dlogp_ray.open_run(result.run).dataset().schema
    assert schema.field("fired").type == pa.list_(pa.bool_())
