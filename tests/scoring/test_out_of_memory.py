"""Where memory does not suffice for a pass, smaller passes give the same."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dlogp_ray.policies.checkpoint import resolve
from dlogp_ray.policies.packing import TokenSequence
from dlogp_ray.policies.policy import Policy
from dlogp_ray.scoring.scorer import PairScorer

# float32 and logits of up to 20: other batches move log-probabilities by a few 1e-6.
TOLERANCE = 1e-4


def make_texts(n: int, length: int = 30) -> list[TokenSequence]:
    rng = np.random.default_rng(0)
    return [
        TokenSequence(*(rng.integers(2, 24, size).astype(np.int32) for size in (5, length)))
        for _ in range(n)
    ]


def load(folders: dict[str, Path]) -> dict[str, Policy]:
    return {name: Policy.load(resolve(name, str(path))) for name, path in folders.items()}


@pytest.mark.parametrize("fits", [512, 300, 70])
def test_what_is_left_is_done_in_smaller_passes(
    fits: int,
    policy_folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    scorer = PairScorer(load(policy_folders), base="base", token_budget=1_024)
    texts = make_texts(60)
    undisturbed = scorer.score(texts)
    passes: list[int] = []
    run = Policy.hidden_packed

    def limited(self: Policy, ids: torch.Tensor, layout: Any) -> torch.Tensor:
        passes.append(len(ids))
        if len(ids) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return run(self, ids, layout)

    monkeypatch.setattr(Policy, "hidden_packed", limited)
    with caplog.at_level(logging.WARNING):
        found = scorer.score(texts)
    assert "out of memory with 1024 tokens a pass; going on with 512" in caplog.messages
    assert max(n for n in passes if n <= fits) > fits / 2.2  # halved as often as it must be
    for one, other in zip(found, undisturbed, strict=True):
        for name, columns in one.items():
            for key, values in columns.items():
                expected = other[name][key].astype(float)
                np.testing.assert_allclose(values.astype(float), expected, atol=TOLERANCE, rtol=0)


def test_passes_that_were_done_are_not_done_again(
    policy_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = PairScorer(load(policy_folders), base="base", token_budget=350)
    run, calls = PairScorer.statistics, []

    def third_fails(self: PairScorer, hidden: Any, targets: np.ndarray) -> Any:
        calls.append(len(targets))
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(self, hidden, targets)

    monkeypatch.setattr(PairScorer, "statistics", third_fails)
    scorer.score(make_texts(60))
    assert sum(calls) - calls[2] == 60 * 30  # response tokens


def test_what_never_fits_is_an_error(
    policy_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    scorer = PairScorer(load(policy_folders), base="base", token_budget=1_024)
    monkeypatch.setattr(Policy, "hidden_packed", full)
    with pytest.raises(torch.OutOfMemoryError):
        scorer.score(make_texts(3))


def test_other_errors_are_not_tried_again(
    policy_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def broken(*_args: object) -> torch.Tensor:
        calls.append(None)
        raise RuntimeError("index out of range")

    scorer = PairScorer(load(policy_folders), base="base", token_budget=1_024)
    monkeypatch.setattr(Policy, "hidden_packed", broken)
    with pytest.raises(RuntimeError, match="index out of range"):
        scorer.score(make_texts(3))
    assert len(calls) == 1


LIMITED = """
import json, logging, resource, sys
from pathlib import Path
import numpy as np
import torch
from dlogp_ray.policies.checkpoint import resolve
from dlogp_ray.policies.policy import Policy
from dlogp_ray.policies.packing import TokenSequence
from dlogp_ray.scoring.scorer import PairScorer

logging.basicConfig(level="WARNING", stream=sys.stdout, format="%(message)s")
torch.set_num_threads(1)
rng = np.random.default_rng(0)
texts = [
    TokenSequence(*(rng.integers(2, 24, size).astype(np.int32) for size in (5, 45)))
    for _ in range(2_000)
]
policy = Policy.load(resolve("rl", sys.argv[1]))
scorer = PairScorer({"rl": policy}, base=None, token_budget=100_000)
scorer.score(texts[:20])  # libraries
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 48 * 2**20
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
print(json.dumps(float(sum(row["rl"]["logp"].sum() for row in scorer.score(texts)))))
resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_machine_that_has_no_more_memory(policy_folders: dict[str, Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(policy_folders["rl"])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    lines = done.stdout.splitlines()
    assert any("out of memory with 100000 tokens a pass" in line for line in lines)
    scorer = PairScorer({"rl": load(policy_folders)["rl"]}, base=None, token_budget=2_048)
    rng = np.random.default_rng(0)
    texts = [
        TokenSequence(*(rng.integers(2, 24, size).astype(np.int32) for size in (5, 45)))
        for _ in range(2_000)
    ]
    expected = sum(row["rl"]["logp"].sum() for row in scorer.score(texts))
    # the sum of 90,000 log-probabilities of about -3, each good to a few 1e-6
    assert json.loads(lines[-1]) == pytest.approx(float(expected), rel=1e-5)
