"""One pass of vLLM's ``prompt_logprobs`` over token ids: run by a Python that has vLLM.

    python vllm_arm.py MODEL DTYPE < lines

The first line is a JSON list of token-id lists; each line after it starts one pass, which is
answered by its seconds. Imports nothing of this project, which that Python need not have.
"""

import json
import os
import sys
import time


def main() -> None:
    """Load the model, then one pass a line."""
    # What vLLM and its own processes print goes to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    texts = json.loads(sys.stdin.readline())
    model = LLM(
        sys.argv[1],
        dtype=sys.argv[2],
        max_model_len=max(map(len, texts)) + 1,
        enable_prefix_caching=False,
    )
    prompts = [{"prompt_token_ids": ids} for ids in texts]
    # Rank and log p of the text's own tokens; vLLM must also sample one token.
    sampling = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=1.0)

    def run() -> float:
        started = time.perf_counter()
        model.generate(prompts, sampling, use_tqdm=False)
        return time.perf_counter() - started

    run()  # the first pass pays for set-up
    print("ready", file=answers, flush=True)
    for _line in sys.stdin:
        print(run(), file=answers, flush=True)


if __name__ == "__main__":
    main()
