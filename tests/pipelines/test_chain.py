"""How long an execution may stand still: never less than an honest unit takes."""

from typing import Any

import pytest

from dlogp_ray.config import ScoreConfig
from dlogp_ray.corpus.rows import RowRules
from dlogp_ray.corpus.units import Unit
from dlogp_ray.pipelines.run.chain import patience_s
from dlogp_ray.pipelines.run.placement import Placement
from dlogp_ray.pipelines.score.job import ScoreJob
from dlogp_ray.scoring.engine import Engine


@pytest.mark.parametrize(
    ("speeds", "placement", "expected"),
    [
        # 2,000,000 tokens at 400 tokens/s are 5,000 s; five times that.
        ({"eager": 400.0, "compiled": 1_000.0}, Placement(2, 2, 0.999, 0.0), 25_000),
        # 100 s of work: Ray Data's own half an hour.
        ({"eager": 20_000.0}, Placement(2, 2, 0.999, 0.0), 1_800),
        ({}, Placement(2, 2, 0.999, 0.0), 1_800),
        # Spot nodes may all be away.
        ({"eager": 20_000.0}, Placement(1, 2, 0.999, 1.0), 86_400),
    ],
)
def test_patience(speeds: dict[str, float], placement: Placement, expected: float) -> None:
    fields: dict[str, Any] = {"corpus": "c", "policies": {"rl": "p"}, "output": "o", "run_id": "r"}
    engine = Engine({"rl": "float32"}, 2_048, compiled=False, threads=1, tokens_per_s=speeds)
    rules = RowRules(vocab_size=2, max_tokens=None, carry={})
    job = ScoreJob("run", ScoreConfig.from_mapping(fields), rules, engine=engine)
    tokens = (5, 2_000_000, 7)
    units = [Unit(i, "c", "jsonl", None, 0, 1, n, 1, 1, "1") for i, n in enumerate(tokens)]
    assert patience_s(job, placement, units) == expected
