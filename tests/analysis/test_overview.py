"""What `dlogp show` prints of a run."""

import io

from rich.console import Console

from dlogp_ray.analysis.overview import Overview, print_overview
from dlogp_ray.analysis.summary import Summary


def test_a_policy_is_named_by_its_path_or_its_adapter() -> None:
    policies = {
        "base": {"path": "checkpoints/base", "adapter": None, "step": None},
        "lora": {"path": None, "adapter": "checkpoints/lora", "step": 3},
    }
    seen = Overview(
        run="runs/one",
        info={"created": "2026-01-01", "config": {"corpus": ["c.jsonl"], "policies": policies}},
        sealed=False,
        units=1,
        units_done=0,
        noise=None,
        summary=Summary.merge([]),
        rejected=[],
        failures={},
    )
    out = io.StringIO()
    print_overview(seen, Console(file=out))
    lines = [line.strip().split(maxsplit=2) for line in out.getvalue().splitlines()]
    assert ["policy", "base", "checkpoints/base"] in lines
    assert ["policy", "lora", "checkpoints/lora, step 3"] in lines
