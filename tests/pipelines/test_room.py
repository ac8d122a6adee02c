"""A cluster without room: what is waited for is said, and the wait ends."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import stub_policies
from conftest import make_rows, write_jsonl

import dlogp_ray
from dlogp_ray.errors import Refused
from dlogp_ray.pipelines.run import room

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "SAID_FIRST_S", 0.5)
    monkeypatch.setattr(room, "SAID_EVERY_S", 1.0)
    monkeypatch.setattr(room, "_LOOKED_EVERY_S", 0.2)


def test_gpus_that_never_come(
    make_config: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stub_policies.install(monkeypatch.setattr)
    job = make_config(
        corpus=str(write_jsonl(tmp_path / "c.jsonl", make_rows(10))),
        run_on="ray",
        actors={"min": 1, "max": 4},
        gpus_per_actor=1,
        threads_per_actor=None,
        timeout_start=3,
    )
    with pytest.raises(Refused, match=r"no room in 3 s \(timeout_start\): the job asks for 1 x"):
        dlogp_ray.score(job, progress=False)
    said = capsys.readouterr().err
    assert said.count("dlogp: waiting for room: the job asks for") >= 2
    assert "0 GPUs (0 free)" in said


def test_cpus_that_another_job_holds(capsys: pytest.CaptureFixture[str]) -> None:
    import ray

    over = threading.Event()

    @ray.remote(num_cpus=2)
    class Holds:
        def there(self) -> bool:
            return True

    other: Any = Holds.remote()
    assert ray.get(other.there.remote())

    def end() -> None:
        while "waiting for room" not in "".join(said):
            said.append(capsys.readouterr().err)
            time.sleep(0.05)
        ray.kill(other)
        over.set()

    said: list[str] = []
    thread = threading.Thread(target=end)
    thread.start()
    room.wait_for_room(1, 1, 0, timeout_s=300)
    thread.join()
    assert over.is_set()
    assert "2 CPUs (0 free)" in "".join(said)
