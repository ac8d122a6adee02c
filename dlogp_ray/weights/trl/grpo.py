"""GRPO with weights computed on the fly: TRL's trainer, whose advantages are weighted a token.

    trainer = ReweightedGRPOTrainer(
        model, reward_funcs=verifier, train_dataset=prompts, args=GRPOConfig(...),
        schemes=["low_prob"],
    )

Quantiles and groups' means are of one generation batch, over all processes. π_old is the policy as
it generated, π_current the policy of the step; they differ where a batch is used several times.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from trl.trainer.grpo_trainer import GRPOTrainer

from dlogp_ray.config import AnyScheme, WeightsConfig
from dlogp_ray.errors import Refused
from dlogp_ray.weights.applying import SchemeInputs, Whole, weigh, whole_of_batch
from dlogp_ray.weights.schemes import mean_one


class ReweightedGRPOTrainer(GRPOTrainer):
    """``GRPOTrainer`` with a weight for each token's advantage.

    One forward pass a batch is added for what schemes need of π_old, and one a step for those that
    compare it with the current policy.

    Args:
        schemes: Schemes whose weights are multiplied: names, or mappings with ``scheme`` and its
            parameters, or their models.
        mean_one: Divide the weights by their mean over each text.
        *args: As TRL's.
        **kwargs: As TRL's.

    Raises:
        Refused: A scheme or parameter is unknown or out of range, or can't be computed while
            training.
    """

    def __init__(
        self, *args: Any, schemes: Sequence[Any], mean_one: bool = False, **kwargs: Any
    ) -> None:
        """See the class."""
        config = WeightsConfig.from_mapping(
            {"schemes": schemes, "mean_one": mean_one}, source="ReweightedGRPOTrainer"
        )
        self.schemes, self.mean_one = config.schemes, config.mean_one
        if any("delta_logp" in scheme.needs for scheme in self.schemes):
            raise Refused(
                "schemes: delta compares two policies that were scored beforehand; make a table "
                "with `dlogp reweight` and train with it (ReplayGRPOTrainer)"
            )
        super().__init__(*args, **kwargs)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if any("pixel_values" in name or name == "num_images" for name in output):
            raise ValueError("ReweightedGRPOTrainer weighs texts; the batch has images")
        mask = loss_mask(output)
        ahead = [scheme for scheme in self.schemes if "logp_current" not in scheme.needs]
        entropy_too = any("entropy_old" in scheme.needs for scheme in ahead)
        logp, entropy = self._scored(output, entropy=entropy_too)
        output["logp_old"] = logp
        output["loss_weights"] = torch.ones_like(logp)
        if not ahead:
            return output
        first = self.accelerator.process_index * len(mask)
        model: Any = self.model
        generations: Any = self.num_generations if model.training else self.num_generations_eval
        texts = SchemeInputs(
            mask=mask,
            logp_old=logp,
            entropy_old=entropy,
            groups=torch.arange(first, first + len(mask), device=mask.device) // generations,
        )
        whole: dict[AnyScheme, Whole] = {
            scheme: whole_of_batch(scheme, texts, self._gathered) for scheme in ahead
        }
        output["loss_weights"] = weigh(ahead, texts, whole)
        return output

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        mask = loss_mask(inputs)
        weights = inputs["loss_weights"]
        on = [scheme for scheme in self.schemes if "logp_current" in scheme.needs]
        if on:
            texts = SchemeInputs(
                mask=mask,
                logp_old=inputs["logp_old"],
                logp_current=self._scored(inputs, entropy=False)[0],
                advantages=inputs["advantages"],
            )
            weights = weights * weigh(on, texts, {})
        if self.mean_one:
            weights = mean_one(weights, mask)
        loss: Tensor = super()._compute_loss(model, weighted(inputs, weights))  # type: ignore[no-untyped-call]
        return loss

    def _scored(self, batch: dict[str, Any], *, entropy: bool) -> tuple[Tensor, Tensor | None]:
        """log p of the completions, and the entropy, by the policy as it is now."""
        with torch.no_grad():
            logp, entropies, _ = self._get_per_token_logps_and_entropies(
                self.model,
                torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
                torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
                batch["completion_ids"].size(1),
                batch_size=self.args.per_device_train_batch_size,
                compute_entropy=entropy,
            )
        return logp, entropies

    def _gathered(self, values: Tensor) -> Tensor:
        """Values of all processes, of which each may have another number."""
        sizes = self.accelerator.gather(torch.tensor([len(values)], device=values.device))
        padded = self.accelerator.gather(self.accelerator.pad_across_processes(values))
        parts = padded.view(len(sizes), -1)
        return torch.cat([part[:size] for part, size in zip(parts, sizes.tolist(), strict=True)])


def loss_mask(batch: dict[str, Any]) -> Tensor:
    """1 where a completion's token counts in TRL's loss: no padding, no tool's output."""
    mask: Tensor = batch["completion_mask"]
    return mask if batch.get("tool_mask") is None else mask * batch["tool_mask"]


def weighted(batch: dict[str, Any], weights: Tensor) -> dict[str, Any]:
    """The batch with an advantage a token, as TRL takes it: [texts, positions].

    Raises:
        ValueError: Weights are not one a token of the completions.
    """
    if weights.shape != batch["completion_ids"].shape:
        raise ValueError(
            f"expected a weight for each of the completions' {tuple(batch['completion_ids'].shape)}"
            f" tokens, got {tuple(weights.shape)}"
        )
    return {**batch, "advantages": batch["advantages"][:, None] * weights}
