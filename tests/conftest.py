"""What all tests share: tiny policies, corpora, one Ray session; shapes are checked as they run."""

import gc
import gzip
import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import shapes
from s3_server import FaultyProxy, running_seaweed, write_aws_files

from dlogp_ray.events import LOG
from dlogp_ray.store import open_store

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
shapes.install()

DEVICE = os.environ.get("DLOGP_TEST_DEVICE", "cpu")
"""Where the tests of scoring and decoding, and of the families, run: cpu or cuda."""
CHARACTERS = "0123456789+=abcdefghij"

# On a machine that is shared, how long an example takes says nothing.
hypothesis.settings.register_profile(
    "tests", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tests")


def pytest_collection_finish() -> None:
    """What was imported stays: to look through it takes each collection a quarter of a second."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Libraries say what is left at the end."""
    gc.unfreeze()


def pytest_runtest_setup() -> None:
    """Each test has its first calls checked."""
    shapes.calls.clear()


def make_tokenizer(characters: str = CHARACTERS) -> Any:
    """One id a character, from 2 on; 0 pads and 1 ends a sequence."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<eos>": 1} | {c: i + 2 for i, c in enumerate(characters)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def make_framing_tokenizer() -> Any:
    """The same, which begins each text with <pad> and ends it with <eos>."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer()
    tokenizer.bos_token = "<pad>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<pad> $A <eos>", special_tokens=[("<pad>", 0), ("<eos>", 1)]
    )
    return tokenizer


def make_policy_folder(
    folder: Path, seed: int, *, tokenizer: Any = None, dtype: str = "float32", **config: Any
) -> Path:
    """A checkpoint folder as a user has it: a tiny random Llama with logits that are not flat."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tokenizer or make_tokenizer()
    torch.manual_seed(seed)
    defaults = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
    model = LlamaForCausalLM(LlamaConfig(**(defaults | config)))
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # logits with a standard deviation of about 2
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_adapter(
    folder: Path, base: Path, config: Any = None, seed: int = 7, size: float = 0.1
) -> Path:
    """An adapter as a trainer saves it, with random weights: one that changes the logits."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    config = config or peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    torch.manual_seed(seed)
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for _, parameter in sorted(adapted.named_parameters()):
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * size)
    adapted.save_pretrained(folder)
    return folder


def write_jsonl(path: Path, rows: list[dict[str, Any] | str]) -> Path:
    """A JSONL file; a row that is a string is written as it stands."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def make_rows(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Corpus rows with random ids: prompts of 1 to 8 tokens, responses of 1 to 30."""
    import random

    rng = random.Random(seed)
    return [
        {
            "sample_id": f"s{index}",
            "prompt_ids": [rng.randrange(2, 24) for _ in range(rng.randint(1, 8))],
            "response_ids": [rng.randrange(2, 24) for _ in range(rng.randint(1, 30))],
            "generator": rng.choice(["base", "rl"]),
        }
        for index in range(n)
    ]


def contents(run: str) -> dict[str, str]:
    """Unit -> content hash of its object: every value of every row."""
    from dlogp_ray import open_run

    opened = open_run(run)
    return {unit: f.said.content_hash for unit, f in opened.footers(opened.committed())}


def edit_record(run: str | Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Make it as if the run had begun with another ``run.json``."""
    from dlogp_ray.tables.record import record_hash, with_hash

    path = Path(run, "run.json")
    info = json.loads(path.read_text())
    change(info)
    if "sha256" in info:
        info["sha256"] = record_hash(info)
    path.write_text(json.dumps(info))
    seal = Path(run, "_SUCCESS")
    if seal.exists():
        of_that = {"run_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        seal.write_text(json.dumps(with_hash(json.loads(seal.read_text()) | of_that)))


def write_broken_gzip(path: Path) -> Path:
    """A compressed corpus file that ends too early: a unit that fails whoever reads it."""
    rows = "".join(json.dumps(row) + "\n" for row in make_rows(2_500)).encode()
    assert len(rows) > 300_000  # planning reads a sample of 256 KiB
    path.write_bytes(gzip.compress(rows)[:-500])
    return path


@pytest.fixture(scope="session")
def policy_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two policies of one tokenizer."""
    root = tmp_path_factory.mktemp("policies")
    return {
        "base": make_policy_folder(root / "base", seed=0),
        "rl": make_policy_folder(root / "rl", seed=1),
    }


@pytest.fixture(scope="session")
def s3() -> Iterator[FaultyProxy]:
    """A real S3 server, for every process of the tests: the proxy that stands before it."""
    with running_seaweed(Path(tempfile.mkdtemp(prefix="dlogp-tests-s3-"))) as port:
        proxy = FaultyProxy(port)
        write_aws_files(proxy.endpoint)
        open_store("s3://tests")[0].mkdir("tests")
        yield proxy
        proxy.close()


@pytest.fixture
def bucket(s3: FaultyProxy) -> str:
    """An address of its own on that server."""
    return f"s3://tests/{uuid.uuid4().hex[:12]}"


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """A command with ``--json-log`` gives the process's log a handler, which ends with the test.

    It ends its propagation as well, without which pytest hangs its own handler there.
    """
    handlers, level, propagate = LOG.handlers[:], LOG.level, LOG.propagate
    yield
    LOG.handlers[:], LOG.propagate = handlers, propagate
    LOG.setLevel(level)


@pytest.fixture(scope="session")
def ray_session() -> Any:
    """The one Ray session of the test suite."""
    import ray

    from dlogp_ray.pipelines.run.local_ray import start_local

    # Ray's processes find what stands in for policies.
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    os.environ["RAY_worker_niceness"] = "0"  # beside other tests they would wait for ever
    os.environ["RAY_num_workers_soft_limit"] = "16"  # as start_ray: 5 s a job in place of 9
    start_local(
        num_cpus=2,
        object_store_memory=200 * 2**20,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
    )
    yield
    ray.shutdown()
