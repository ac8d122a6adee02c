"""What `dlogp show` prints of a run."""

import io
from pathlib import Path

import pyarrow as pa
from rich.console import Console
from run_records import score_info
from score_tables import made_up_run, score_rows

from dlogp_ray.analysis.overview import Overview, overview, print_overview
from dlogp_ray.analysis.summary import Summary


def test_a_policy_is_named_by_its_path_or_its_adapter() -> None:
    policies = {
        "base": {"path": "checkpoints/base", "adapter": None, "step": None},
        "lora": {"path": None, "adapter": "checkpoints/lora", "step": 3},
    }
    seen = Overview(
        run="runs/one",
        info=score_info(1, {"config": {"corpus": ["c.jsonl"], "policies": policies}}),
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


def test_rejected_rows_are_shown_by_what_is_wrong_with_them_not_one_three_times(
    tmp_path: Path,
) -> None:
    rows = score_rows(8)
    at = rows.schema.get_field_index("status")
    status = ["too_long"] * 6 + ["malformed", "ok"]
    error = ["300 tokens"] * 4 + ["400 tokens", "500 tokens", "no JSON", None]
    rows = rows.set_column(at, "status", pa.array(status)).append_column("error", pa.array(error))
    rows = rows.append_column("source_offset", pa.array(range(8)))
    found = overview(made_up_run(str(tmp_path / "r"), [rows])).rejected
    assert [(row["status"], row["count"], row["error"]) for row in found] == [
        ("malformed", 1, "no JSON"),
        ("too_long", 6, "300 tokens"),
        ("too_long", 6, "400 tokens"),
        ("too_long", 6, "500 tokens"),
    ]
