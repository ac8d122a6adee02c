"""The benchmark's texts, and one small run through the command line."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from dlogp_ray import cli
from dlogp_ray.bench import rounds
from dlogp_ray.bench.texts import make_groups, make_texts
from dlogp_ray.bench.workers import Workers
from dlogp_ray.config import BenchConfig
from dlogp_ray.errors import Refused
from dlogp_ray.policies.packing import count_tokens, plan_passes

Bench = Callable[..., tuple[int, str, str]]


def config(**fields: object) -> BenchConfig:
    return BenchConfig.from_mapping({"base": "b", "rl": "r"} | fields)


def test_texts_are_as_the_config_says() -> None:
    asked = config(texts=50, prompt_tokens=3, min_response_tokens=2, max_response_tokens=5)
    texts = make_texts(asked, 7)
    assert len(texts) == 50
    assert {len(text.prompt_ids) for text in texts} == {3}
    assert {len(text.response_ids) for text in texts} == {2, 3, 4, 5}
    assert max(int(text.response_ids.max()) for text in texts) == 6
    assert count_tokens(texts) == sum(3 + len(text.response_ids) for text in texts)


def test_groups_share_their_prompts() -> None:
    groups = make_groups(config(groups=2), 1000)
    # 2 x (512 + 8 x 127) tokens are fed where prompts are shared, 2 x 8 x 639 where not
    fed = [
        sum(len(one.ids) for one in plan_passes(groups, 4096, share_prompts=share))
        for share in (True, False)
    ]
    assert fed == [3056, 10224]


def test_response_lengths_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(Refused, match="min_response_tokens 9 is more than max_response_tokens 5"):
        config(min_response_tokens=9, max_response_tokens=5)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Bench:
    """Runs `dlogp bench` here: its exit code, standard output and standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dlogp", "bench", "--no-progress", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capfd.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


def test_a_run_prints_text_and_json_and_writes_the_same(
    bench: Bench, policy_folders: dict[str, Path], tmp_path: Path
) -> None:
    fields = {"texts": 6, "prompt_tokens": 4, "min_response_tokens": 2, "max_response_tokens": 9}
    settings = [
        f"--set={key}={value}"
        for key, value in (fields | {"groups": 0, "repeats": 1, "compile": "off"}).items()
    ]
    pair = [f"--{name}={folder}" for name, folder in policy_folders.items()]
    out = tmp_path / "results" / "run.json"
    code, printed, said = bench(*pair, *settings, "--set=processes=2", f"--out={out}")
    assert code == 0, said
    result = json.loads(printed.splitlines()[-1])
    assert result == json.loads(out.read_text())
    assert "both policies, all statistics" in printed
    assert ("ratio, within a round" in printed) == bool(result["ratios"])
    assert result["padding_share"] == 0
    assert result["config"]["texts"] == 6
    for spread in result["tokens_per_s"].values():
        assert 0 < spread["min"] <= spread["median"] <= spread["max"]
    assert result["noise_floor"]["tokens"] > 0
    assert result["hardware"]["cores"] >= 1
    # float32: two compositions of the same texts differ by rounding
    assert result["noise_floor"]["base_against_base"]["delta_logp"]["p99"] < 1e-4


FAKE_VLLM = """
import os, subprocess, time
from pathlib import Path

class SamplingParams:
    def __init__(self, **_): pass

class LLM:
    def __init__(self, model, **settings):
        assert settings["max_model_len"] > 512 + 128

    def generate(self, prompts, sampling, use_tqdm):
        if flag := os.environ.get("DLOGP_TESTS_FOREVER"):
            other = subprocess.Popen(["sleep", "1000"])
            Path(f"{flag}.new").write_text(f"{os.getpid()} {other.pid}")
            os.rename(f"{flag}.new", flag)
            time.sleep(1000)
        time.sleep(0.001 * len(prompts))
"""


@pytest.fixture
def fake_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine for which each text takes a millisecond, as a package of its own."""
    folder = tmp_path / "packages"
    (folder / "vllm_fake-1.0.dist-info").mkdir(parents=True)
    (folder / "vllm.py").write_text(FAKE_VLLM)
    metadata = "Metadata-Version: 2.1\nName: vllm-fake\nVersion: 1.0\n"
    (folder / "vllm_fake-1.0.dist-info/METADATA").write_text(metadata)
    (folder / "vllm_fake-1.0.dist-info/top_level.txt").write_text("vllm\n")
    paths = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", paths)


@pytest.mark.usefixtures("fake_vllm")
def test_another_engine_is_measured_on_texts_and_on_groups(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arms = ("pair", "naive_logp_twice", "vllm_twice", "groups_shared", "vllm_groups_twice")
    words = [f"--arm={name}" for name in arms]
    fields = {"texts": 20, "repeats": 1, "compile": "off", "groups": 1, "max_response_tokens": 64}
    words += [f"--set={key}={value}" for key, value in fields.items()]
    monkeypatch.setattr(sys, "argv", ["dlogp", "bench", *words, "--vllm-python", sys.executable])
    monkeypatch.setattr(rounds, "NAIVE_S", 0.0)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    captured = capfd.readouterr()
    assert not ended.value.code, captured.err
    result = json.loads(captured.out.splitlines()[-1])
    assert result["tokens_per_s"].keys() == {*arms}
    # The naive arm is cut to the least that it takes at a time, and said beforehand.
    assert result["texts"] == {
        "pair": 20,
        "naive_logp_twice": 4,
        "vllm_twice": 20,
        "groups_shared": 8,
        "vllm_groups_twice": 8,
    }
    assert "1 round of 6 arms on 20 texts (naive_logp_twice on 4 of them" in captured.err
    assert result["peer_versions"]["vllm"]["vllm-fake"] == "1.0"
    # Two passes of a millisecond a text over groups of 8 x (512 + 128) tokens.
    tokens = 8 * (512 + 128)
    assert result["tokens_per_s"]["vllm_groups_twice"]["median"] < tokens / (2 * 0.008)
    ratio = result["ratios"]["pair / vllm_twice, on groups"]["median"]
    speeds = result["tokens_per_s"]
    expected = speeds["groups_shared"]["median"] / speeds["vllm_groups_twice"]["median"]
    assert ratio == pytest.approx(expected)


@pytest.mark.usefixtures("fake_vllm")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_that_is_stopped_leaves_no_process_of_another_engine(
    number: signal.Signals, policy_folders: dict[str, Path], tmp_path: Path
) -> None:
    flag = tmp_path / "processes"
    words = [f"--{name}={folder}" for name, folder in policy_folders.items()]
    words += ["--arm=vllm_twice", "--set=texts=2", "--set=groups=1", "--set=compile=off"]
    command = [sys.executable, "-m", "dlogp_ray", "bench", "--vllm-python", sys.executable]
    bench = subprocess.Popen(
        [*command, *words],
        env=os.environ | {"DLOGP_TESTS_FOREVER": str(flag)},
        stderr=subprocess.PIPE,
        text=True,
        # As in a terminal: what is started in the background ignores it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 300
    while not flag.exists():
        assert bench.poll() is None, bench.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    engine = [psutil.Process(int(pid)) for pid in flag.read_text().split()]
    bench.send_signal(number)
    _, said = bench.communicate(timeout=120)
    assert bench.returncode == 128 + number, said
    assert not psutil.wait_procs(engine, timeout=60)[1]
    assert "Traceback" not in said
    if number == signal.SIGTERM:
        assert "stopped by SIGTERM; nothing was written" in said


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        (["pare"], "arms: unknown pare; there are pair,"),
        (["vllm_twice"], "arms: vllm_twice needs vllm_python, which is None"),
        (["groups_shared"], "arms: groups_shared needs groups, which is 0"),
    ],
)
def test_arms_that_cannot_be_are_refused(arms: list[str], message: str) -> None:
    with pytest.raises(Refused, match=message):
        config(arms=arms, groups=0)


def test_arms_are_all_that_there_are_where_none_is_named() -> None:
    assert not [name for name in config().chosen if "vllm" in name or "lm_eval" in name]
    assert "vllm_groups_twice" in config(vllm_python="p").chosen
    assert "vllm_groups_twice" not in config(vllm_python="p", groups=0).chosen
    assert config(arms="heads, pair").chosen == ("pair", "heads")


def test_policies_with_fewer_positions_than_the_texts_need_end_it(
    bench: Bench, tmp_path: Path
) -> None:
    settings = GPT2Config(vocab_size=61, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    GPT2LMHeadModel(settings).save_pretrained(tmp_path)
    few = ("--set=texts=1", "--set=groups=0", "--set=compile=off", "--set=min_response_tokens=99")
    code, _, said = bench("--base", str(tmp_path), "--rl", str(tmp_path), *few)
    assert code == 2
    assert "IndexError" in said
    assert "texts have up to 576 tokens" in said
    assert "Traceback" not in said


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "when", [pytest.param("between arms", marks=pytest.mark.slow), "in an arm"]
)
def test_a_process_that_dies_ends_it(policy_folders: dict[str, Path], when: str) -> None:
    pair = {name: str(folder) for name, folder in policy_folders.items()}
    small = {"prompt_tokens": 4, "min_response_tokens": 2, "max_response_tokens": 9, "groups": 0}
    asked = BenchConfig.from_mapping(pair | small | {"texts": 2, "compile": "off"})
    workers = Workers(asked, "cpu")
    ((process, _connection),) = workers._workers
    if when == "in an arm":
        os.kill(process.pid, signal.SIGSTOP)  # it is told of the arm, and does not answer
        threading.Timer(1, process.kill).start()
    else:
        process.kill()
        process.join()
    with pytest.raises(Refused, match="a process of the benchmark died"):
        workers.run("pair")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--base", "x"], "both --base and --rl"),
        (["--set", "texts"], "expected FIELD=VALUE"),
        (["--set", "txts=3"], "txts: unknown field"),
        (["--base", "/nowhere/b", "--rl", "/nowhere/r"], "/nowhere/b"),
        (["--vllm-python", sys.executable], "No module named 'vllm' there"),
        (["--vllm-python", "/bin/false"], "/bin/false: it is no Python that runs"),
        (["--lm-eval-python", "/nowhere/python"], "--lm-eval-python /nowhere/python: No such file"),
    ],
)
def test_bad_arguments_are_one_clear_message(
    bench: Bench, arguments: list[str], message: str
) -> None:
    code, _, said = bench(*arguments)
    assert code == 2
    assert message in said
    assert "Traceback" not in said
