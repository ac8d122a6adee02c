"""Architectures: each is scored as its plain forward says, or refused by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import DEVICE
from model_families import FAMILIES, PADDED, SMALL, Family, save_model

from dlogp_ray.errors import Refused
from dlogp_ray.policies.checkpoint import resolve
from dlogp_ray.policies.packing import TokenSequence
from dlogp_ray.policies.policy import Policy
from dlogp_ray.scoring.reference import reference_statistics
from dlogp_ray.scoring.scorer import PairScorer

# Logits of up to 20 have 2^-20 = 1e-6 between neighbours in float32, and come out of a few hundred
# roundings: 1e-5 in a log-probability. Entropies and divergences weigh them with logits of the
# same 20 nats; the largest error of any family is a few 1e-5.
TOLERANCE = 1e-4


def save_pair(folder: Path, family: Family) -> dict[str, Path]:
    return {
        name: save_model(folder / name, family, seed) for seed, name in enumerate(("base", "rl"))
    }


def load_plain(folder: Path, attention: str, **settings: Any) -> Any:
    """The model as the library has it, in float64, attention and experts as they are defined."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation=attention,
        experts_implementation="eager",
        **settings,
    )
    return model.eval().double()


def make_texts(width: int) -> list[TokenSequence]:
    """Three responses of one prompt and two texts more: 11 to 35 tokens that are fed."""
    rng = np.random.default_rng(0)
    shared, short, long, *responses = (
        rng.integers(2, width, size=n).astype(np.int32) for n in (11, 3, 20, 1, 9, 25, 14, 4)
    )
    prompts = (shared, shared, shared, short, long)
    return [TokenSequence(*parts) for parts in zip(prompts, responses, strict=True)]


def plain_logp(model: Any, text: TokenSequence) -> np.ndarray:
    """[response, v] float64: the whole model run over this text alone."""
    ids = torch.from_numpy(np.concatenate(text).astype(np.int64))[None]
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, len(text.prompt_ids) - 1 : -1]
    return np.asarray(torch.log_softmax(logits.double(), -1).numpy())


def near(logp: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """[n]: how many other ids have a logit that float32 can't tell from that of ``ids``."""
    distance = np.abs(logp - logp[range(len(ids)), ids][:, None])
    return np.asarray((distance <= TOLERANCE).sum(1) - 1)


def check(
    result: dict[str, dict[str, np.ndarray]], base: np.ndarray, rl: np.ndarray, text: TokenSequence
) -> None:
    """Every statistic of the pair: numbers within the tolerance, ids and ranks exact.

    Args:
        result: Of the scorer.
        base: [response, v] reference, nats, over the ids that the base has.
        rl: The same of the other policy; what compares them is over the ids that both have.
        text: What was scored.
    """
    found = {f"{key}_{name}": v for name in ("base", "rl") for key, v in result[name].items()}
    found |= result["rl"] | {"delta_logp": found["logp_rl"] - found["logp_base"]}
    ids = text.response_ids
    common = min(base.shape[1], rl.shape[1])
    reference = reference_statistics(base[:, :common], rl[:, :common], ids.tolist())
    for name, logp in (("base", base), ("rl", rl)):  # over all ids that a policy has
        alone = reference_statistics(logp, logp, ids.tolist())
        reference |= {f"{key}_{name}": alone[f"{key}_{name}"] for key in ("entropy", "rank")}
    top_base, top_rl = reference["top1_id_base"], reference["top1_id_rl"]
    same_top_rl = near(rl[:, :common], top_rl) == 0
    same_tops = same_top_rl & (near(base[:, :common], top_base) == 0)
    for key, wanted in reference.items():
        error = np.abs(found[key].astype(float) - wanted.astype(float))
        allowed = {
            "rank_base": near(base, ids),
            "rank_rl": near(rl, ids),
            "rank_base_of_rl_top1": np.where(same_top_rl, near(base, top_rl), np.inf),
            "logp_base_of_rl_top1": np.where(same_top_rl, TOLERANCE, np.inf),
            "top1_id_base": np.where(near(base, top_base) == 0, 0, np.inf),
            "top1_id_rl": np.where(same_top_rl, 0, np.inf),
            "top1_agree": np.where(same_tops, 0, np.inf),
        }.get(key, TOLERANCE)
        assert (error <= allowed).all(), f"{key}: {error.max():.3g}"
    assert same_tops.mean() > 0.9  # what is left out above is the exception


# One of each kind: of positions, of what attention sees, of layers, of how texts share a pass.
EVERY_PUSH = {
    "llama",
    "llama, tied, biases",
    "llama, dynamic",
    "qwen2, windows",
    "gemma2, windows, both caps",
    "gemma3n, shared keys and values",
    "cohere, logit_scale",
    "gpt2",
    "phi, lm-head bias",
    "mixtral",
    "gpt-oss, sinks, windows",
    "deepseek-v3, latent attention",
    "deepseek-v3.2, indexer",
    "llama4, chunks, tempered queries",
    "bloom, ALiBi",
    "jamba",
    "mamba",
    "qwen3-next",
}


def often(case: str, *more: Any) -> Any:
    """The case as a parameter; of ``make test-slow`` where another stands for it."""
    return pytest.param(case, *more, marks=() if case in EVERY_PUSH else pytest.mark.slow)


def test_the_families_of_every_push_are_there() -> None:
    assert set(FAMILIES) >= EVERY_PUSH


@pytest.mark.parametrize("case", [often(case) for case in FAMILIES])
def test_every_statistic_is_that_of_the_plain_forward(case: str, tmp_path: Path) -> None:
    family = FAMILIES[case]
    folders = save_pair(tmp_path, family)
    policies = {
        name: Policy.load(resolve(name, str(path)), device=DEVICE) for name, path in folders.items()
    }
    assert {policy.batching for policy in policies.values()} == {family.batching}
    texts = make_texts(family.settings["vocab_size"])
    # A model of its own for each text: "dynamic" positions remember longer texts.
    logp = [
        {
            name: plain_logp(load_plain(path, family.attention), text)
            for name, path in folders.items()
        }
        for text in texts
    ]
    for each in logp:
        assert all(of_policy.std(1).mean() >= 3 for of_policy in each.values())
    # 8 tokens: prompts and long responses go through a past; 64: all in one row, or two and three
    for token_budget in (8, 64):
        scorer = PairScorer(policies, base="base", token_budget=token_budget)
        for text, result, each in zip(texts, scorer.score(texts), logp, strict=True):
            check(result, each["base"], each["rl"], text)
            assert not result["base"]["outside"].any()


@pytest.mark.parametrize(
    ("case", "special"),
    [often(case, s) for case, family in FAMILIES.items() for s in family.without],
)
def test_what_is_special_about_a_family_shows(
    case: str, special: tuple[str, Any], tmp_path: Path
) -> None:
    # else the test above would pass for a policy that ignores it
    family, (name, value) = FAMILIES[case], special
    folder = save_model(tmp_path, family, seed=0)
    text = make_texts(family.settings["vocab_size"])[2]
    logp = plain_logp(load_plain(folder, family.attention), text)
    plain = load_plain(folder, family.attention)
    weights = [weight for key, weight in plain.named_parameters() if key.endswith(name)]
    for weight in weights:
        weight.data.fill_(value)
    if not weights:
        plain = load_plain(folder, family.attention, **{name: value})
    assert np.abs(plain_logp(plain, text) - logp).max() > 0.3


@pytest.mark.parametrize("case", ["mamba", "llama, dynamic"])
def test_a_pair_of_two_families_shares_passes_by_the_lesser(case: str, tmp_path: Path) -> None:
    folders = {
        "base": save_model(tmp_path / "base", FAMILIES["mistral, windows"], seed=0),
        "rl": save_model(tmp_path / "rl", FAMILIES[case], seed=1),
    }
    policies = {
        name: Policy.load(resolve(name, str(path)), device=DEVICE) for name, path in folders.items()
    }
    assert policies["rl"].batching < policies["base"].batching
    texts = make_texts(61)
    scored = PairScorer(policies, base="base", token_budget=64).score(texts)
    for text, result in zip(texts, scored, strict=True):
        check(
            result,
            *(plain_logp(load_plain(path, "eager"), text) for path in folders.values()),
            text,
        )


def test_what_counts_along_the_row_is_not_packed_where_short_texts_do_not_show_it(
    tmp_path: Path,
) -> None:
    # Llama 4 scales its queries by 1 + 0.1 log(1 + floor(place in the row / 8,192)).
    family = FAMILIES["llama4, chunks, tempered queries"]
    later = family._replace(settings=family.settings | {"floor_scale": 8_192})
    policy = Policy.load(resolve("p", str(save_model(tmp_path, later, seed=0))))
    assert policy.batching is PADDED


def test_a_head_that_is_padded_to_more_ids(tmp_path: Path) -> None:
    padded = Family("Llama", SMALL | {"vocab_size": 80})
    folders = {
        "base": save_model(tmp_path / "base", FAMILIES["llama"], seed=0),
        "rl": save_model(tmp_path / "rl", padded, seed=1),
    }
    model = load_plain(folders["rl"], "eager").float()
    model.lm_head.weight.data[61:] = 0  # as rows that no text has trained
    model.save_pretrained(folders["rl"])
    policies = {
        name: Policy.load(resolve(name, str(path)), device=DEVICE) for name, path in folders.items()
    }
    texts = make_texts(61)
    for text, result in zip(
        texts, PairScorer(policies, base="base", token_budget=64).score(texts), strict=True
    ):
        base, rl = (plain_logp(load_plain(path, "eager"), text) for path in folders.values())
        assert (base.shape[1], rl.shape[1]) == (61, 80)
        check(result, base, rl, text)
        outside = np.exp(rl[:, 61:]).sum(1)
        assert outside.max() > TOLERANCE
        np.testing.assert_allclose(result["rl"]["outside"], outside, atol=TOLERANCE)


REFUSED = {
    "modernbert-decoder, a layer between body and lm head": (
        Family("ModernBertDecoder", SMALL | {"local_attention": 6}),
        "ModernBertDecoderForCausalLM changes the hidden states",
    ),
    "hyperclovax, logits_scaling multiplies": (
        Family("HyperCLOVAX", SMALL | {"logits_scaling": 4.0}),
        "HyperCLOVAXForCausalLM does something to its logits",
    ),
    "llama, attention in both directions": (
        Family("Llama", SMALL | {"is_causal": False}),
        "LlamaForCausalLM looks ahead",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_supported_is_refused_by_name(case: str, tmp_path: Path) -> None:
    family, message = REFUSED[case]
    folder = save_model(tmp_path, family, seed=0)
    with pytest.raises(Refused, match=f"policy p: {message}"):
        Policy.load(resolve("p", str(folder)))
