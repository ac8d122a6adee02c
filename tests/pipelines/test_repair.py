"""Repair takes its orders from the run's own record, which may be another's."""

from pathlib import Path

import pytest
from run_records import intervene_info, score_info

from dlogp_ray.errors import Refused
from dlogp_ray.pipelines.repair import repair
from dlogp_ray.tables.run import begin_run
from dlogp_ray.tables.verification import Fault


@pytest.mark.parametrize("field", ["trust_remote_code", "allow_pickle"])
def test_code_that_a_run_asks_for_is_not_run_unless_the_run_is_trusted(
    tmp_path: Path, field: str
) -> None:
    config = {
        "corpus": [str(tmp_path / "corpus.jsonl")],
        "policies": {"base": {"path": "evil/base"}, "rl": {"path": "evil/rl"}},
        "output": "elsewhere",
        "run_id": "r",
        field: True,
    }
    info = score_info(1, {"config": config})
    run = begin_run(str(tmp_path / "r"), info, {"units.parquet": b"units"})
    before = sorted(tmp_path.rglob("*"))
    problem = Fault("part-00000000", "its object is missing")
    with pytest.raises(Refused, match=r"would run code .* --trust-run"):
        repair(run, [problem])
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(Refused, match=r"corpus\.jsonl"):  # the next thing that it looks at
        repair(run, [problem], trusted=True)


def test_a_verifier_that_a_run_names_is_not_run_unless_the_run_is_trusted(tmp_path: Path) -> None:
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef grade(*_): return True\n")
    config = {
        "problems": [str(tmp_path / "problems.jsonl")],
        "policies": {"base": {"path": "a"}, "rl": {"path": "b"}},
        "output": "elsewhere",
        "run_id": "r",
        "rules": [{"rule": "always"}],
        "verifier": f"{evil}:grade",
    }
    run = begin_run(str(tmp_path / "r"), intervene_info(1, {"config": config}), {})
    problem = Fault("part-00000000", "its object is missing")
    with pytest.raises(Refused, match=r"a verifier that is not ours: .* --trust-run"):
        repair(run, [problem])
    assert not (tmp_path / "ran").exists()
    with pytest.raises(Refused, match=r"problems\.jsonl"):  # the next thing that it looks at
        repair(run, [problem], trusted=True)
