"""Arms measured in turn, round after round, and what they will take, said before.

What else the machine does hits all arms of a round alike.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import Progress

from dlogp_ray.amounts import amount
from dlogp_ray.policies.packing import TokenSequence, count_tokens

NAIVE = ("naive_logp_twice", "naive_statistics")
NAIVE_S = 60.0
"""What one round of a naive arm may take: on as many texts as that allows."""
PEERS = {
    "vllm_twice": ("vllm", "texts"),
    "lm_eval_twice": ("lm_eval", "texts"),
    "vllm_groups_twice": ("vllm", "groups"),
}
"""Arms of other engines: which, and over what."""
WARM = (*NAIVE, *PEERS, "matmul")
"""Arms without a round that is not counted: they compile nothing, or have made a pass."""
_WHOLE = ("matmul", "heads")
"""Arms that have their whole work in any pass, on however few texts."""
_FEW = 8
"""Texts of the trial that says how long all will take; what the naive arms take at a time."""


@dataclass
class Arm:
    """What is measured.

    Attributes:
        run: Over so many of the first texts, or all; gives seconds.
        texts: All that there are for it.
        count: How many it is measured on.
    """

    run: Callable[[int | None], float]
    texts: Sequence[TokenSequence]
    count: int

    @property
    def tokens(self) -> int:
        """Of the texts that it is measured on."""
        return count_tokens(self.texts[: self.count])

    def measure(self) -> float:
        """Seconds over its texts."""
        return self.run(None if self.count == len(self.texts) else self.count)


def plan_rounds(arms: dict[str, Arm], repeats: int, progress: bool) -> None:
    """Try all on a few texts, cut the naive ones to what a minute allows, say how long it takes.

    What the first pass of an arm pays for (compiling) is in no figure: it comes before.
    """
    say(
        "trying every arm on a few texts; what is compiled is compiled now, a minute or so",
        progress,
    )
    estimates: dict[str, float] = {}
    for name, arm in arms.items():
        few = min(_FEW, len(arm.texts))
        arm.run(few)
        token_s = arm.run(few) / count_tokens(arm.texts[:few])
        if name in NAIVE:
            arm.count = _fitting(arm.texts, token_s)
        estimates[name] = token_s * (
            count_tokens(arm.texts[:few]) if name in _WHOLE else arm.tokens
        )
        label = "matmul (this machine's peak)" if name == "matmul" else name
        say(f"  {label}: {_about(estimates[name])} a round", progress)
    passes = {name: repeats + (name not in WARM) for name in arms}
    seconds = sum(estimates[name] * passes[name] for name in arms)
    cut = [f"{name} on {arm.count}" for name, arm in arms.items() if arm.count < len(arm.texts)]
    fewer = f" ({', '.join(cut)} of them, which take a minute)" if cut else ""
    texts = max(len(arm.texts) for arm in arms.values())
    what = f"{amount(repeats, 'round')} of {amount(len(arms), 'arm')} on {amount(texts, 'text')}"
    say(f"{what}{fewer}: {_about(seconds)}, and then the noise floor", progress)


def measure(arms: dict[str, Arm], repeats: int, progress: bool) -> dict[str, list[float]]:
    """Seconds of each arm, round by round."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    with Progress(console=Console(stderr=True), disable=not progress, transient=True) as bar:
        warm_up = [name for name in arms if name not in WARM]
        task = bar.add_task("", total=len(warm_up) + len(arms) * repeats)
        for name in warm_up:  # compiles, and fills caches
            bar.update(task, description=f"warm-up: {name}", advance=1)
            arms[name].measure()
        for round_number in range(1, repeats + 1):
            for name, arm in arms.items():
                bar.update(task, description=f"round {round_number}: {name}", advance=1)
                seconds[name].append(arm.measure())
    return seconds


def _about(seconds: float) -> str:
    if seconds < 120:
        return f"about {seconds:,.1f} s" if seconds < 10 else f"about {seconds:,.0f} s"
    return f"about {seconds / 60:,.0f} minutes"


def _fitting(texts: Sequence[TokenSequence], token_s: float) -> int:
    """How many of the first texts take at most ``NAIVE_S``; one batch at least."""
    count = len(texts)
    while count > _FEW and count_tokens(texts[:count]) * token_s > NAIVE_S:
        count -= _FEW
    return max(1, count)


def say(what: str, progress: bool) -> None:
    """Tell who waits what for."""
    if progress:
        Console(stderr=True).print(what, highlight=False, soft_wrap=True)
