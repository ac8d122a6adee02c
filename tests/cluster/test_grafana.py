"""The dashboard asks for metrics and labels that a job really has."""

import json
import re
from pathlib import Path

import pytest
from ray.util.metrics import Histogram, Metric

from dlogp_ray.pipelines.run.metrics import ActorMetrics, DriverMetrics

BOARD = json.loads(
    (Path(__file__).parents[2] / "cluster" / "grafana.json").read_text(encoding="utf-8")
)
EXPRESSIONS = {
    f"{panel['title']} {target['refId']}": target["expr"]
    for panel in BOARD["panels"]
    for target in panel["targets"]
}


def metrics() -> dict[str, set[str]]:
    """Name, as Prometheus has it -> labels."""
    found = {}
    for owner in (ActorMetrics("run"), DriverMetrics("run")):
        for metric in vars(owner).values():
            assert isinstance(metric, Metric)
            labels = set(metric.info["tag_keys"])
            name = f"ray_{metric.info['name']}"
            if isinstance(metric, Histogram):
                name, labels = f"{name}_bucket", labels | {"le"}
            found[name] = labels
    return found


@pytest.mark.parametrize("panel", EXPRESSIONS)
def test_every_expression_names_metrics_and_labels_that_are_there(panel: str) -> None:
    expression = EXPRESSIONS[panel]
    names = set(re.findall(r"ray_dlogp_\w+", expression))
    if not names:
        assert "ray_node_" in expression  # Ray's own
        return
    there = metrics()
    assert names <= there.keys()
    labels = {label for name in names for label in there[name]}
    grouped = re.findall(r"by \(([^)]*)\)", expression)
    used = {label.strip() for group in grouped for label in group.split(",")}
    used |= set(re.findall(r'(\w+)(?:=~|!=|=)"', expression))
    assert "run" in used
    assert used <= labels


def test_every_metric_of_a_job_is_shown() -> None:
    shown = {name for e in EXPRESSIONS.values() for name in re.findall(r"ray_dlogp_\w+", e)}
    assert shown == metrics().keys()


def test_the_board_can_be_imported() -> None:
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(ids) == len(set(ids))
    variables = {variable["name"] for variable in BOARD["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(BOARD))) == variables == {"datasource", "run"}
    cells = [
        (x, y)
        for p in BOARD["panels"]
        for x in range(p["gridPos"]["x"], p["gridPos"]["x"] + p["gridPos"]["w"])
        for y in range(p["gridPos"]["y"], p["gridPos"]["y"] + p["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))  # no panel over another
    assert max(x for x, _ in cells) == 23  # of 24 columns
