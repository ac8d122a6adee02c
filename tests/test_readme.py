"""What the README says is what the code does."""

import re
from pathlib import Path
from typing import Any

import house
import pytest
import torch
import typer
import yaml

from dlogp_ray.cli import app
from dlogp_ray.config import SCHEMES, InterveneConfig, RunConfig, ScoreConfig
from dlogp_ray.decoding.distribution import Distribution
from dlogp_ray.decoding.processor import ExtrapolationLogitsProcessor
from dlogp_ray.decoding.rules import Intervention, Seen
from dlogp_ray.errors import ExitCode
from dlogp_ray.pipelines.intervene.plan import plan_intervene
from dlogp_ray.pipelines.intervene.wanted import wanted_interventions
from dlogp_ray.status import Status
from dlogp_ray.tables.generations import GENERATIONS_SCHEMA
from dlogp_ray.tables.scores import COLUMNS, Statistic, scores_schema
from dlogp_ray.tables.weights import WEIGHTS_SCHEMA

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for folder in (ROOT, *(path.parent for path in (ROOT / "dlogp_ray").rglob("README.md")))
    for path in folder.glob("README.md")
)
README = (ROOT / "README.md").read_text(encoding="utf-8")


def page(room: str) -> str:
    return (ROOT / "dlogp_ray" / room / "README.md").read_text(encoding="utf-8")


def fenced(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_readme_fits_on_two_screens() -> None:
    assert len(README.encode()) <= 12_000


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.parent.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        there = (path.parent / name).resolve() if name else path
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there.read_text(encoding="utf-8")), target


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    words = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {one.replace(" ", "-") for one in words}


def test_the_house_is_drawn_as_it_stands() -> None:
    """``python tests/house.py`` writes it."""
    _, drawn, _ = house.parts()
    assert drawn.strip() == house.tree().strip()
    _, listed, _ = house.parts(house.CORPUS, house.BEGIN_FORMATS)
    assert listed.strip() == house.formats().strip()


def test_the_score_job_s_file_shows_every_field_with_its_default() -> None:
    shown = yaml.safe_load(fenced("yaml", page("config"))[0])
    assert set(shown) == set(ScoreConfig.model_fields)
    required = {name: shown[name] for name in ("corpus", "policies", "output", "run_id")}
    config = ScoreConfig.from_mapping(shown)
    assert config == ScoreConfig.from_mapping(required)


def test_the_intervene_job_s_file_shows_every_field_of_its_own_with_its_default() -> None:
    shown = yaml.safe_load(fenced("yaml", page("config"))[1])
    assert set(shown) >= set(InterveneConfig.model_fields) - set(RunConfig.model_fields)
    names = ("problems", "policies", "output", "run_id", "rules")
    config = InterveneConfig.from_mapping(shown)
    assert config == InterveneConfig.from_mapping({name: shown[name] for name in names})
    labels = [one.label for one in wanted_interventions(config)]
    assert len(labels) == 2 + 7 + 2 + 1 + 2 + 1 + 1


def test_the_shortest_job_is_one() -> None:
    shown = yaml.safe_load(fenced("yaml")[0])
    assert set(shown) == {"corpus", "policies", "output", "run_id"}
    ScoreConfig.from_mapping(shown)


def python_with(word: str) -> str:
    (code,) = (code for code in fenced("python", page("decoding")) if word in code)
    return code


def test_the_first_intervene_job_can_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(python_with("held_out_problems"), {})
    plan = plan_intervene(InterveneConfig.from_yaml("intervene.yaml"))
    assert (len(plan.problems), len(plan.units)) == (200, 2)
    assert len(plan.job.interventions) == 2 + 3 + 2 + 1 + 2


def test_a_rule_of_one_s_own_fires() -> None:
    found: dict[str, Any] = {}
    exec(python_with("def surprise"), found)
    # −log ½ = 0.69 and −log 0.01 = 4.6, of which the second is above 3.
    rl = Distribution(torch.tensor([[0.5, 0.49, 0.01]]).log())
    seen = Seen(rl, rl, "base", torch.tensor([[0, 2]]), torch.zeros(1, 1))
    assert found["intervention"].fired(seen).tolist() == [[False, True]]


def test_a_processor_gives_padded_prompts_what_they_have_alone() -> None:
    found: dict[str, Any] = {}
    exec(python_with("ExtrapolationLogitsProcessor"), found)
    inputs, tok = found["inputs"], found["tok"]
    assert not inputs["attention_mask"].all()
    ids, base, rl = inputs["input_ids"], found["base_model"], found["rl_model"]
    with torch.inference_mode():
        scores = base(**inputs).logits[:, -1]
    together = found["processor"](ids, scores).exp()
    for row, prompt in enumerate(["7+5=", "123+456="]):
        alone = ExtrapolationLogitsProcessor(rl, Intervention("delta_logp", -0.4, gamma=0.1))
        one = tok([prompt], return_tensors="pt")["input_ids"]
        expected = alone(one, scores[row : row + 1]).exp()
        # Float32, of attention over other lengths.
        torch.testing.assert_close(together[row : row + 1], expected, atol=2e-6, rtol=0)
    unmasked = ExtrapolationLogitsProcessor(rl, Intervention("delta_logp", -0.4, gamma=0.1))
    with pytest.raises(ValueError, match="attention_mask="):
        unmasked(ids, scores)


def test_every_column_of_the_generations_is_explained() -> None:
    section = (
        page("decoding")
        .split("What comes out: `generations")[1]
        .split("The primary policy drafts")[0]
    )
    assert set(GENERATIONS_SCHEMA.names) - set(re.findall(r"`(\w+)`", section)) <= {
        "sample_id",
        "generator",
    }


def test_every_column_is_explained() -> None:
    explained = set(re.findall(r"`(\w+)`", page("tables").split("Views:")[0]))
    assert set(scores_schema({}).names) - explained == set()


def test_statistics_are_explained_as_they_are_declared() -> None:
    """A line for each thing that columns say, with their units."""
    lines: dict[str, list[Statistic]] = {}
    for column in sorted(COLUMNS, key=lambda column: order(column.name)):
        lines.setdefault(column.what, []).append(column)
    for what, columns in lines.items():
        names = ", ".join(f"`{column.name}`" for column in columns)
        units = [column.unit for column in columns]
        unit = units[0] if len(set(units)) == 1 else ", ".join(units)
        assert f"| {names} | {unit} | {what} |".replace("|  |", "| |") in page("tables")


def order(name: str) -> int:
    return page("tables").index(f"`{name}`")


def test_every_status_of_a_row_is_listed() -> None:
    told = page("pipelines").split("Rows are rejected as")[1].split("`dlogp show`")[0]
    others = {Status.OK, Status.UNFIT, Status.NOT_GRADED, Status.OTHER_GENERATOR}
    others |= {Status.DUPLICATE_PROBLEM_ID}  # of problems, of answers and of weights
    assert set(re.findall(r"`(\w+)`", told)) == {*Status} - others


def test_every_column_of_the_weights_and_every_scheme_is_explained() -> None:
    section = page("weights").split("## In a trainer")[0]
    explained = set(re.findall(r"`(\w+)`", section))
    assert set(WEIGHTS_SCHEMA.names) - explained == set()
    for name, scheme in SCHEMES.items():
        (row,) = re.findall(rf"^\| `{name}` \|.*", section, re.MULTILINE)
        parameters = set(scheme.model_fields) - {"scheme", "min_spread"}
        assert parameters == set(re.findall(r"`(\w+)`", row)) - {name}
        for parameter, shown in re.findall(r"`(\w+)` ([\d.]+)", row):
            assert scheme.model_fields[parameter].default == float(shown)


def test_every_exit_code_is_explained() -> None:
    table = page("pipelines").split("## Exit codes")[1].split("Rows are rejected")[0]
    listed = {
        int(code) for row in re.findall(r"^\| ([\d, ]+) \|", table, re.M) for code in row.split(",")
    }
    assert listed == {int(code) for code in ExitCode}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.parent.relative_to(ROOT)))
def test_every_command_is_one(path: Path) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    text = path.read_text(encoding="utf-8")
    assert {name for name in re.findall(r"^dlogp (\w+)", text, re.MULTILINE)} <= set(commands)


@pytest.mark.parametrize("code", fenced("json")[:1])
def test_the_corpus_row_passes_the_checks(code: str) -> None:
    import json

    from dlogp_ray.corpus.rows import RowRules, check_rows

    rules = RowRules(vocab_size=151_936, max_tokens=None, carry={})
    table = check_rows([(0, json.loads(code))], "readme", rules, lambda: pytest.fail("no text"))
    assert table["status"].to_pylist() == ["ok"]
