"""Both policies together against one by itself, and against one request a token and model.

    python tests/benchmarks/paired_decoding.py --model SmolLM2 --out …/results/paired-decoding.json

The other policy is the model with noise on its weights, of a size at which the rule fires as often
as asked. In each round everything runs in turn; ratios are taken within a round.
"""

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dlogp_ray.bench.machine import PACKAGES, hardware, versions
from dlogp_ray.decoding.batch import Answer, Prompt
from dlogp_ray.decoding.distribution import Distribution, Sampling, draw
from dlogp_ray.decoding.loop import PairedDecoder
from dlogp_ray.decoding.rules import Intervention
from dlogp_ray.decoding.texts import PolicyTexts
from dlogp_ray.policies.checkpoint import resolve
from dlogp_ray.policies.policy import Policy

TEXTS, TOKENS = 32, 256
RATES = (0.05, 0.10)
TAU = -0.4
SAMPLING = Sampling(top_p=0.7)
"""The papers' decoding: T = 1, top-p 0.7."""
PASSES_S = 5.0
TRIES, TRIED_TOKENS = 6, 128
FIRST_SIZES = 0.025, 0.033
"""Of the noise, in standard deviations of each matrix."""
ONE_BY_ONE = 12
"""Tokens of each text that are decoded with a request a token and model: it is slow."""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="folder of the model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options.model, options.dtype, options.rounds, Path(folder))
    result |= {"hardware": hardware("cpu"), "versions": versions(*PACKAGES)}
    result |= {"threads": torch.get_num_threads(), "dtype": options.dtype}
    result |= {"model": Path(options.model).name}
    print(json.dumps(result, indent=2))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


def measure(model: str, dtype: str, rounds: int, folder: Path) -> dict[str, Any]:
    """Tokens/s of everything, by round."""
    base = Policy.load(resolve("base", model), dtype=dtype)
    texts = list(prompts(model))
    others: dict[float, tuple[Policy, Path, float]] = {}
    tried: dict[float, float] = {}
    for rate in RATES:
        others[rate] = perturbed(model, dtype, base, texts, rate, folder, tried)
    arms: dict[str, Callable[[], tuple[int, float, dict[str, float]]]] = {}
    plain = Intervention("never")
    arms["plain"] = lambda: together(base, base, plain, texts)
    for rate in RATES:
        rl = others[rate][0]
        rule = Intervention("delta_logp", TAU)
        arms[f"paired {rate:.0%}"] = lambda rl=rl, rule=rule: together(base, rl, rule, texts)
    rate = RATES[0]
    arms["a request a token and model"] = lambda: one_by_one(model, others[rate][1], dtype, texts)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    passes: list[dict[str, float]] = []
    for _ in range(rounds):
        passes.append({f"{count} at once": at_once(base, count) for count in (1, 4, 8)})
        print(passes[-1], flush=True)
        for name, arm in arms.items():
            tokens, seconds, more = arm()
            found[name].append({"tokens_per_s": tokens / seconds, "tokens": tokens, **more})
            print(name, found[name][-1], flush=True)
    speed = {name: [one["tokens_per_s"] for one in rows] for name, rows in found.items()}
    ratios = {
        f"{name} / plain": [a / b for a, b in zip(speed[name], speed["plain"], strict=True)]
        for name in speed
        if name.startswith("paired")
    }
    slow = speed["a request a token and model"]
    ratios |= {
        f"{name} / a request a token and model": [
            a / b for a, b in zip(speed[name], slow, strict=True)
        ]
        for name in speed
        if name.startswith("paired")
    }
    return {
        "noise": {f"{rate:.0%}": others[rate][2] for rate in RATES},
        "rounds": found,
        "tokens_per_s_of_passes": passes,
        "ratios": {
            name: {"median": statistics.median(all_), "min": min(all_), "max": max(all_)}
            for name, all_ in ratios.items()
        },
    }


def prompts(model: str) -> Iterator[list[int]]:
    """Beginnings of stories, that are told on for as long as they may."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    names = ("a sailor", "a baker", "two sisters", "an old clock", "the last train", "a fox")
    places = ("in the mountains", "by the sea", "under the city", "on a small island")
    for index in range(TEXTS):
        who, where = names[index % len(names)], places[index // len(names) % len(places)]
        text = f"Write a long story, number {index + 1}, about {who} {where}. Once upon a time,"
        yield tokenizer(text)["input_ids"]


def together(
    base: Policy, rl: Policy, rule: Intervention, texts: list[list[int]], tokens: int = TOKENS
) -> tuple[int, float, dict[str, float]]:
    """The paired loop; no stop tokens, so that each text has all of its tokens."""
    decoder = PairedDecoder(base, rl, sampling=SAMPLING, max_tokens=tokens, rows=TEXTS)
    started = time.perf_counter()
    answers: list[Answer] = list(
        decoder.decode(Prompt(f"p{i}", ids, (rule,)) for i, ids in enumerate(texts))
    )
    seconds = time.perf_counter() - started
    count = sum(len(answer.ids) for answer in answers)
    fired = sum(int(answer.fired.sum()) for answer in answers) / count
    changed = sum(int(answer.changed.sum()) for answer in answers) / count
    return count, seconds, {"fired": fired, "changed": changed, "kept": count / decoder.drafted}


@torch.inference_mode()
def at_once(policy: Policy, count: int) -> float:
    """Tokens/s of passes of ``count`` tokens a text: what drafting (1) and checking can reach."""
    width = policy.lm_head.width
    rows, ids = np.arange(TEXTS), np.random.default_rng(0).integers(2, width, (TEXTS, TOKENS))
    texts = PolicyTexts(policy, TEXTS, width)
    texts.logits(rows, ids, TOKENS // 2)
    passes, started = 0, time.perf_counter()
    while time.perf_counter() - started < PASSES_S:
        texts.logits(rows, ids, count)
        texts.cut(np.full(TEXTS, TOKENS // 2))
        passes += 1
    return passes * TEXTS * count / (time.perf_counter() - started)


def perturbed(
    model: str,
    dtype: str,
    base: Policy,
    texts: list[list[int]],
    rate: float,
    folder: Path,
    tried: dict[float, float],
) -> tuple[Policy, Path, float]:
    """The model with noise on its weights, of a size at which the rule fires at ``rate``.

    Args:
        tried: Sizes with the rates that they gave; it grows.
    """
    path = folder / f"noise-{rate}"
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    AutoTokenizer.from_pretrained(model).save_pretrained(path)
    rule = Intervention("delta_logp", TAU)
    for _ in range(TRIES):
        size = next_size(tried, rate)
        with_noise(copy.deepcopy(plain), size).save_pretrained(path)
        rl = Policy.load(resolve("rl", str(path)), dtype=dtype)
        tried[size] = together(base, rl, rule, texts, TRIED_TOKENS)[2]["fired"]
        print(f"noise {size:.4f}: fires at {tried[size]:.2%}, wanted {rate:.0%}", flush=True)
        if abs(tried[size] / rate - 1) < 0.04:
            break
    return rl, path, size


def next_size(tried: dict[float, float], rate: float) -> float:
    """The size that a power law through the two nearest sizes gives."""
    if len(tried) < len(FIRST_SIZES):
        return FIRST_SIZES[len(tried)]
    nearest = sorted(tried, key=lambda size: abs(np.log(tried[size] / rate)))[:2]
    x, y = np.log(nearest), np.log([tried[size] for size in nearest])
    power = (y[1] - y[0]) / (x[1] - x[0])
    return float(np.exp(x[0] + (np.log(rate) - y[0]) / power))


def with_noise(model: Any, size: float) -> Any:
    """Each matrix with Gaussian noise of ``size`` times its own standard deviation."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.add_(torch.randn_like(weight) * weight.std() * size)
    return model


def one_by_one(
    model: str, other: Path, dtype: str, texts: list[list[int]]
) -> tuple[int, float, dict[str, float]]:
    """A request a token and model, as the authors' script does with its engines.

    An engine keeps the prefix's keys and values between requests; a request for one token of one
    text runs that text's last token. The texts take their turns.
    """
    models = [
        AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        for folder in (model, other)
    ]
    rng = np.random.default_rng(0)
    caches: list[list[Any]] = [[None, None] for _ in texts]
    longer = [list(ids) for ids in texts]
    started = time.perf_counter()
    with torch.inference_mode():
        for _ in range(ONE_BY_ONE):
            for text, cache in zip(longer, caches, strict=True):
                logits = []
                for i, one in enumerate(models):
                    new = text if cache[i] is None else text[-1:]
                    out = one(torch.tensor([new]), past_key_values=cache[i], use_cache=True)
                    cache[i] = out.past_key_values
                    logits.append(out.logits[0, -1:].float())
                base, rl = (Distribution(values) for values in logits)
                numbers = torch.from_numpy(rng.random(2))
                token, _ = draw(SAMPLING.apply(base.logits), numbers[:1])
                delta = rl.logp_of(token[:, None]) - base.logp_of(token[:, None])
                if float(delta) <= TAU:
                    token, _ = draw(SAMPLING.apply(rl.logits), numbers[1:])
                text.append(int(token))
    seconds = time.perf_counter() - started
    return ONE_BY_ONE * len(texts), seconds, {}


if __name__ == "__main__":
    main()
