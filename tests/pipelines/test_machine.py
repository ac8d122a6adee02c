"""What a container may use is what this machine has."""

from pathlib import Path

import pytest

from dlogp_ray.pipelines.run.machine import cpus, free_bytes

GIB = 2**30


def write(folder: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{content}\n")
    return folder


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "350000 100000"}, 3),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "6400000 100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": -1, "cpu/cpu.cfs_period_us": 100_000}, 8),
        ({"cpu/cpu.cfs_quota_us": 200_000, "cpu/cpu.cfs_period_us": 100_000}, 2),
    ],
)
def test_cpus(
    files: dict[str, object], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert cpus(write(tmp_path, files)) == expected


def test_free_memory_is_that_of_the_machine_or_of_its_container(tmp_path: Path) -> None:
    whole = free_bytes(tmp_path)
    assert whole > GIB
    # 2 GiB of 3 are used, half of that by pages of files.
    second = {"memory.max": 3 * GIB, "memory.current": 2 * GIB}
    second |= {"memory.stat": f"anon 5\ninactive_file {GIB}"}
    assert free_bytes(write(tmp_path / "second", second)) == 2 * GIB
    first = {f"memory/{name}": value for name, value in second.items()}
    first["memory/memory.limit_in_bytes"] = first.pop("memory/memory.max")
    first["memory/memory.usage_in_bytes"] = first.pop("memory/memory.current")
    first["memory/memory.stat"] = f"inactive_file 5\ntotal_inactive_file {GIB}"
    assert free_bytes(write(tmp_path / "first", first)) == 2 * GIB
    unlimited = second | {"memory.max": "max"}
    assert free_bytes(write(tmp_path / "unlimited", unlimited)) == pytest.approx(whole, rel=0.2)
