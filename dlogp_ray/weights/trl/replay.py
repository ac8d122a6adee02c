"""GRPO on a fixed corpus of rollouts, with weights from a table.

    trainer = ReplayGRPOTrainer(
        model, rollouts=rows, weights=load_weights("runs/my-run/weights/low_prob"),
        args=GRPOConfig(num_generations=8, ...), processing_class=tokenizer,
    )

Nothing is generated: a batch is `num_generations` rollouts of each of some prompts, with the tokens
and rewards that they have in the corpus. Rewards, advantages and the loss are TRL's own.
"""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

from datasets import Dataset
from torch import Tensor
from trl.trainer.grpo_trainer import GRPOTrainer

from dlogp_ray.amounts import amount
from dlogp_ray.errors import Refused
from dlogp_ray.weights.rollouts import by_others, complete
from dlogp_ray.weights.table import Missing, PerToken
from dlogp_ray.weights.trl.grpo import weighted

logger = logging.getLogger(__name__)

NEEDED = ("sample_id", "group_id", "prompt_ids", "response_ids", "reward")
_Row = dict[str, Any]


class ReplayGRPOTrainer(GRPOTrainer):
    """``GRPOTrainer`` whose completions are given, and whose advantages are weighted a token.

    Args:
        model: As TRL's.
        rollouts: Rows with ``sample_id, group_id, prompt_ids, response_ids, reward``, as a score
            job takes them. Of a group, every ``num_generations`` rows are one of TRL's groups; what
            is left over is not trained on, and logged.
        weights: What ``load_weights`` opened; None for none.
        old_logps: What ``load_logps`` opened for the policy that generated the rollouts: ratios are
            of the current policy to it, and clipped as TRL's config says. None: every batch is
            taken for the current policy's own.
        missing: What samples get that the weights table does not have: an error, or 1.
        args: As TRL's.
        **kwargs: As TRL's, without ``reward_funcs``, ``train_dataset`` and ``eval_dataset``.

    Raises:
        ValueError: There is an evaluation set.
        Refused: Rows lack a column or mask some of their tokens, a reward is not a number, no
            group has enough rollouts; a table does not have a sample, or other tokens for it;
            ``old_logps`` are of another policy than the one that a row's ``generator`` names, or
            at another temperature than the config's.
    """

    def __init__(
        self,
        model: Any,
        *,
        rollouts: Iterable[Mapping[str, Any]],
        weights: PerToken | None = None,
        old_logps: PerToken | None = None,
        args: Any,
        missing: Missing = "error",
        **kwargs: Any,
    ) -> None:
        """See the class."""
        if kwargs.get("eval_dataset") is not None:
            raise ValueError("ReplayGRPOTrainer can't replay an eval_dataset; leave it out")
        if weights is not None:
            weights.expected("weights")
        rows = list(complete(rollouts, NEEDED))
        if old_logps is not None:
            old_logps.expected("log-probabilities")
            old_logps.expected_temperature(args.temperature, "that of the GRPOConfig")
            _check_generators(rows, old_logps)
        self.weights, self.old_logps, self.missing = weights, old_logps, missing
        self._chunks = _chunks(rows, args.num_generations)
        self._check_tables()
        self._replayed: list[_Row] = []
        # TRL wants prompts; those that count are the rollouts' own tokens.
        prompts = {"prompt": [""] * len(self._chunks), "chunk": list(range(len(self._chunks)))}
        super().__init__(
            model,
            reward_funcs=_reward,
            args=args,
            train_dataset=Dataset.from_dict(prompts),
            **kwargs,
        )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        first = self.accelerator.process_index * len(inputs)
        some: Any = self.num_generations
        self._replayed = [
            self._chunks[row["chunk"]][(first + place) % some] for place, row in enumerate(inputs)
        ]
        rows = [
            {**given, "reward": row["reward"]}
            for given, row in zip(inputs, self._replayed, strict=True)
        ]
        output: dict[str, Any] = super()._generate_and_score_completions(rows)
        # Before TRL shuffles them; what is cut or padded otherwise is an error here.
        if self.weights is not None:
            output["loss_weights"] = self._aligned(self.weights, output, self.missing)
        if self.old_logps is not None:
            output["old_per_token_logps"] = self._aligned(self.old_logps, output, "error")
        return output

    def _check_tables(self) -> None:
        """Look all samples up before the first step: the last batch may be hours away."""
        for chunk in self._chunks:
            for table, missing in ((self.weights, self.missing), (self.old_logps, "error")):
                if table is not None:
                    table.of(
                        [row["sample_id"] for row in chunk],
                        [row["response_ids"] for row in chunk],
                        prompt_ids=[row["prompt_ids"] for row in chunk],
                        missing=missing,
                    )

    def _aligned(self, table: PerToken, output: dict[str, Any], missing: Missing) -> Tensor:
        ids = output["completion_ids"]
        batch = table.batch(
            [row["sample_id"] for row in self._replayed],
            ids,
            ids.size(1),
            mask=output["completion_mask"],
            prompt_ids=[row["prompt_ids"] for row in self._replayed],
            missing=missing,
        )
        return batch.to(ids.device)

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [list(row["prompt_ids"]) for row in self._replayed], None, {}

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any
    ) -> tuple[list[list[int]], None]:
        return [list(row["response_ids"]) for row in self._replayed], None

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if self.weights is not None:
            inputs = weighted(inputs, inputs["loss_weights"])
        loss: Tensor = super()._compute_loss(model, inputs)  # type: ignore[no-untyped-call]
        return loss


def _reward(completions: list[Any], reward: list[float], **columns: Any) -> list[float | None]:
    return list(reward)


def _check_generators(rows: Sequence[Mapping[str, Any]], old_logps: PerToken) -> None:
    """Refuse log-probabilities of a policy that did not generate the rollouts."""
    generators = list(dict.fromkeys(row.get("generator") or "" for row in rows))
    scored = old_logps.info.config.policies
    if others := by_others(generators, old_logps.policy, scored):
        raise Refused(
            f"old_logps are of {old_logps.policy}, and rollouts say that they were generated by "
            f"{', '.join(other or 'nobody' for other in others)}: load_logps(run, policy) of the "
            "policy that generated them, and leave out rollouts of others"
        )


def _chunks(rollouts: Sequence[Mapping[str, Any]], size: int) -> list[list[_Row]]:
    """Rollouts of one group, ``size`` at a time, in the order in which they come."""
    groups: dict[str, list[_Row]] = {}
    for row in rollouts:
        if not isinstance(row["reward"], Real) or not math.isfinite(row["reward"]):
            raise Refused(
                f"sample {row['sample_id']}: expected a finite reward, got {row['reward']!r}"
            )
        if not all(map(bool, row.get("response_mask") or ())):
            raise Refused(
                f"sample {row['sample_id']} masks tokens of its response, and GRPO on rollouts "
                "trains on all of them: leave such rows out, or use WeightedSFTTrainer"
            )
        groups.setdefault(row["group_id"], []).append({name: row[name] for name in NEEDED})
    chunks = [
        rows[start : start + size]
        for rows in groups.values()
        for start in range(0, len(rows) - size + 1, size)
    ]
    left = sum(map(len, groups.values())) - sum(map(len, chunks))
    if not chunks:
        raise Refused(
            f"rollouts: no group_id has num_generations={size} rows; there are "
            f"{amount(left, 'row')} of {len(groups)} groups"
        )
    if left:
        logger.warning("%d rollouts are not trained on: their groups have no full %d", left, size)
    return chunks
