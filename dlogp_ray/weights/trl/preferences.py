"""Reference log-probabilities for DPO and KTO from a scores run, in place of a reference model.

    trainer = ScoredDPOTrainer(
        model, reference=load_logps("runs/preferences", "base"),
        train_dataset=pairs, args=DPOConfig(precompute_ref_log_probs=True, ...),
    )

Each example of a DPO dataset has a ``sample_id``; the scores are those of ``<sample_id>/chosen``
and ``<sample_id>/rejected``, which a score job with ``pairs: true`` makes of rows with two
responses, and which two rows of a corpus may carry as well. KTO's are of ``sample_id`` itself. The
tokens are compared as TRL has made them, prompt and completion.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from datasets import Dataset
from datasets.fingerprint import generate_random_fingerprint
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

from dlogp_ray.amounts import amount
from dlogp_ray.errors import Refused
from dlogp_ray.weights.table import PerToken


class ScoredDPOTrainer(DPOTrainer):
    """``DPOTrainer`` whose ``ref_chosen_logps`` and ``ref_rejected_logps`` come from a scores run.

    Args:
        model: As TRL's.
        reference: What ``load_logps`` opened.
        args: As TRL's.
        **kwargs: As TRL's.

    Raises:
        Refused: A sample was not scored, not at temperature 1, or its tokens are others than the
            ones that TRL has.
        ValueError: ``precompute_ref_log_probs`` is not set.
    """

    def __init__(self, model: Any, *, reference: PerToken, args: Any, **kwargs: Any) -> None:
        """See the class."""
        self.reference = _checked(reference, args)
        super().__init__(model, args=args, **kwargs)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        _check_ids(dataset, name)
        args: Any = self.args
        longest, cut = args.max_length, args.truncation_mode

        def references(batch: Mapping[str, Any]) -> dict[str, Any]:
            columns = {}
            for role in ("chosen", "rejected"):
                values = self.reference.of(
                    [f"{sample}/{role}" for sample in batch["sample_id"]],
                    batch[f"{role}_ids"],
                    prompt_ids=batch["prompt_ids"],
                )
                columns[role] = [
                    _cut(token_ids, len(prompt), longest, cut, f"{sample}/{role}")
                    for token_ids, prompt, sample in zip(
                        values, batch["prompt_ids"], batch["sample_id"], strict=True
                    )
                ]
            pairs = list(zip(columns["chosen"], columns["rejected"], strict=True))
            both = [_summed(*pair, self.ld_alpha) for pair in pairs]
            return {
                "ref_chosen_logps": [chosen for chosen, _ in both],
                "ref_rejected_logps": [rejected for _, rejected in both],
            }

        return _added(dataset, references, name)


class ScoredKTOTrainer(KTOTrainer):
    """``KTOTrainer`` whose ``ref_logps`` come from a scores run.

    Where the loss compares with mismatched completions (``loss_type="kto"``), which no run has
    scored, TRL computes the references of those with its own pass of the reference model.

    Args:
        model: As TRL's.
        reference: What ``load_logps`` opened.
        args: As TRL's.
        **kwargs: As TRL's.

    Raises:
        Refused: A sample was not scored, not at temperature 1, or its tokens are others than the
            ones that TRL has.
        ValueError: ``precompute_ref_log_probs`` is not set.
    """

    def __init__(self, model: Any, *, reference: PerToken, args: Any, **kwargs: Any) -> None:
        """See the class."""
        self.reference = _checked(reference, args)
        super().__init__(model, args=args, **kwargs)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        _check_ids(dataset, name)
        args: Any = self.args
        longest = args.max_length

        def references(batch: Mapping[str, Any]) -> dict[str, Any]:
            values = self.reference.of(
                batch["sample_id"], batch["completion_ids"], prompt_ids=batch["prompt_ids"]
            )
            return {
                "ref_logps": [
                    float(_cut(logps, len(prompt), longest, "keep_start", sample).sum(dtype=float))
                    for logps, prompt, sample in zip(
                        values, batch["prompt_ids"], batch["sample_id"], strict=True
                    )
                ]
            }

        if self.calculate_KL:
            computed = super()._precompute_ref_logps(dataset, name, batch_size)
            dataset = computed.remove_columns("ref_logps")
        return _added(dataset, references, name)


def _added(
    dataset: Dataset, references: Callable[[Mapping[str, Any]], dict[str, Any]], name: str
) -> Dataset:
    # By default its result is named by a hash of all that the function holds, the policy too, and
    # looked for in the cache: seconds, for what takes less.
    return dataset.map(
        references,
        batched=True,
        desc=f"Reading references of {name}",
        new_fingerprint=generate_random_fingerprint(),
    )


def _checked(reference: PerToken, args: Any) -> PerToken:
    if not args.precompute_ref_log_probs:
        raise ValueError("reference log-probabilities need precompute_ref_log_probs=True")
    reference.expected("log-probabilities").expected_temperature(1.0, "TRL's loss")
    return reference


def _check_ids(dataset: Dataset, name: str) -> None:
    if "sample_id" not in dataset.column_names:
        raise Refused(
            f"{name} dataset: expected a column sample_id, which joins it to the scores, got "
            f"{', '.join(dataset.column_names)}"
        )


def _cut(
    values: np.ndarray, prompt: int, longest: int | None, mode: str, sample_id: str
) -> np.ndarray:
    """The values of the tokens that TRL's collator keeps."""
    if longest is None or prompt + len(values) <= longest:
        return values
    if mode != "keep_start":
        raise Refused(
            f"sample {sample_id} has {amount(prompt + len(values), 'token')}, and max_length is "
            f"{longest}: "
            f"truncation_mode={mode!r} changes what comes before its tokens; score what is left of "
            "it, or use keep_start"
        )
    return values[: max(0, longest - prompt)]


def _summed(
    chosen: np.ndarray, rejected: np.ndarray, ld_alpha: float | None
) -> tuple[float, float]:
    """Sums over tokens; those beyond the shorter one's length count ``ld_alpha`` (LD-DPO)."""
    if ld_alpha is None:
        return float(chosen.sum(dtype=float)), float(rejected.sum(dtype=float))
    shared = min(len(chosen), len(rejected))
    one, other = (
        float(v[:shared].sum(dtype=float) + ld_alpha * v[shared:].sum(dtype=float))
        for v in (chosen, rejected)
    )
    return one, other
