"""A bfloat16 policy: its error against the same weights in float32 is the plain forward's."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dlogp_ray.demo.pair import BASE_NAME, checkpoint_path
from dlogp_ray.demo.task import held_out_problems, worked_solution
from dlogp_ray.policies.checkpoint import resolve
from dlogp_ray.policies.kernels import bfloat16_kernels
from dlogp_ray.policies.packing import TokenSequence
from dlogp_ray.policies.policy import Policy
from dlogp_ray.scoring.scorer import PairScorer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's base policy, saved in bfloat16."""
    folder = tmp_path_factory.mktemp("bfloat16") / "base"
    shutil.copytree(checkpoint_path(BASE_NAME), folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def texts(folder: Path) -> list[TokenSequence]:
    encode = AutoTokenizer.from_pretrained(folder).encode
    return [
        TokenSequence(
            *(
                np.array(encode(text, add_special_tokens=False), np.int32)
                for text in (problem.prompt, worked_solution(problem))
            )
        )
        for problem in held_out_problems(200, seed=0)
    ]


def plain_logp(folder: Path, texts: list[TokenSequence], dtype: torch.dtype) -> list[torch.Tensor]:
    """A plain forward, text by text: body in ``dtype``, lm head and log-softmax in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    head = model.get_output_embeddings().weight.float()
    out = []
    with torch.inference_mode():
        for text in texts:
            ids = torch.from_numpy(np.concatenate([text.prompt_ids, text.response_ids])).long()
            hidden = model.get_decoder()(input_ids=ids[None]).last_hidden_state[0]
            rows = hidden[len(text.prompt_ids) - 1 : -1].float()
            logp = (rows @ head.T).log_softmax(-1)
            out.append(logp.gather(1, ids[len(text.prompt_ids) :, None]).squeeze(1))
    return out


@pytest.fixture(scope="module")
def plain(folder: Path, texts: list[TokenSequence]) -> dict[torch.dtype, list[torch.Tensor]]:
    return {dtype: plain_logp(folder, texts, dtype) for dtype in (torch.float32, torch.bfloat16)}


@pytest.mark.parametrize("compiled", [False, True])
def test_the_error_is_no_worse_than_a_plain_forwards(
    folder: Path,
    texts: list[TokenSequence],
    plain: dict[torch.dtype, list[torch.Tensor]],
    compiled: bool,
) -> None:
    scorer = PairScorer(
        {"rl": Policy.load(resolve("rl", str(folder)))}, base=None, token_budget=512
    )
    if compiled:
        scorer.compile()
    ours = [torch.from_numpy(row["rl"]["logp"]) for row in scorer.score(texts)]

    def squares(found: list[torch.Tensor]) -> np.ndarray:
        """Sum of squared errors of each text."""
        pairs = zip(found, plain[torch.float32], strict=True)
        return np.array([float((a - b).double().square().sum()) for a, b in pairs])

    of_ours, of_plain = squares(ours), squares(plain[torch.bfloat16])
    assert of_plain.sum() > 0
    # Two ways to round have equal errors but for chance: its size is the ratio's standard error
    # over texts drawn again with replacement; three of them are let pass, and no more.
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(texts), (1_000, len(texts)))
    ratios = np.sqrt(of_ours[draws].sum(1) / of_plain[draws].sum(1))
    assert ratios.std() < 0.1
    assert np.sqrt(of_ours.sum() / of_plain.sum()) <= 1 + 3 * ratios.std()


def test_with_the_kernels_a_batch_changes_no_bit(folder: Path, texts: list[TokenSequence]) -> None:
    """Sums run in an order of their own for each row, and for each text over its keys."""
    if bfloat16_kernels() is None:
        pytest.skip("no C++ compiler, or a processor that they are not for")
    policies = {name: Policy.load(resolve(name, str(folder))) for name in ("base", "rl")}
    texts = texts[:24]
    # 13 tokens: every text goes through a past.
    few, many = (PairScorer(policies, base="base", token_budget=n) for n in (13, 512))
    few.compile()
    many.compile_statistics()  # the layers are shared
    together, chunked = many.score(texts), few.score(texts)
    for text, one, other in zip(texts, together, chunked, strict=True):
        (alone,) = many.score([text])
        for found in (one, other):
            for policy, columns in found.items():
                for name, values in columns.items():
                    assert np.array_equal(values, alone[policy][name]), (policy, name)
