"""Weights in verl: tables at the advantages, schemes on the fly in the policy loss.

A table, in the trainer's process (`verl.trainer.main_ppo` of the v0 trainer), before it runs:

    from verl.trainer.ppo import ray_trainer
    ray_trainer.compute_advantage = weighted_advantages(
        ray_trainer.compute_advantage, load_weights("runs/my-run/weights/low_prob")
    )

Rows of the dataset carry their sample ids in ``extra_info``, which verl keeps to the end:
``{"extra_info": {"sample_id": "p17"}}``. For n rollouts a prompt, the table's rows are ``p17/0``,
``p17/1``, ... in the order of the batch.

A scheme on the fly, where workers import it (``VERL_USE_EXTERNAL_MODULES``):

    register_reweighted_loss("low_prob", ["low_prob"])      # policy_loss.loss_mode=low_prob

An estimator of ``register_adv_est`` gets neither tokens nor ids, so that no table can be read in
one. The advantages carry the weights, never the mask: its sum is verl's denominator.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from dlogp_ray.config import WeightsConfig
from dlogp_ray.errors import Refused
from dlogp_ray.weights.applying import SchemeInputs, weigh_batch
from dlogp_ray.weights.table import Missing, PerToken

_IN_THE_LOSS = {"logp_old", "logp_current"}


def loss_weights(
    data: Any, weights: PerToken, *, rollouts: int = 1, missing: Missing = "error"
) -> Tensor:
    """The weights of a ``DataProto``'s responses: [B, T], float32, 0 at padding.

    Args:
        data: With the tensors ``prompts`` [B, P], ``responses`` [B, T] and ``attention_mask``
            [B, P + T], and the ids in ``non_tensor_batch["extra_info"]``.
        weights: What ``load_weights`` opened.
        rollouts: Responses to each row of the dataset; above 1, ``/0``, ``/1``, ... follow the id.
        missing: What samples get that the table does not have.

    Raises:
        Refused: A row has no id, a sample is not in the table, or its tokens are others there,
            those of its prompt too.
        ValueError: The attention mask is not of prompts and responses.
    """
    prompts, responses = data.batch["prompts"], data.batch["responses"]
    length, mask = responses.size(1), data.batch["attention_mask"]
    if mask.size(1) != prompts.size(1) + length:
        raise ValueError(
            f"expected an attention_mask of {prompts.size(1)} + {length} columns, for prompts and "
            f"responses, got {mask.size(1)}"
        )
    # Tokens of tools are part of the response, and not of verl's response_mask.
    there = mask[:, -length:]
    names = _sample_ids(data.non_tensor_batch, rollouts)
    batch = weights.expected("weights").batch(
        names,
        responses,
        length,
        mask=there,
        prompt_ids=[ids[real] for ids, real in zip(prompts, mask[:, :-length].bool(), strict=True)],
        missing=missing,
    )
    return batch.to(responses.device)


def weighted_advantages(
    compute_advantage: Callable[..., Any],
    weights: PerToken,
    *,
    rollouts: int = 1,
    missing: Missing = "error",
) -> Callable[..., Any]:
    """verl's ``compute_advantage``, whose advantages are multiplied by the weights.

    The weights are left in the batch as ``loss_weights``.
    """

    def weighted(data: Any, *args: Any, **kwargs: Any) -> Any:
        data = compute_advantage(data, *args, **kwargs)
        multipliers = loss_weights(data, weights, rollouts=rollouts, missing=missing)
        if data.batch["advantages"].shape != multipliers.shape:
            raise ValueError(
                f"expected an advantage a token, {tuple(multipliers.shape)}, got "
                f"{tuple(data.batch['advantages'].shape)}"
            )
        data.batch["loss_weights"] = multipliers
        data.batch["advantages"] = data.batch["advantages"] * multipliers
        return data

    return weighted


def register_reweighted_loss(name: str, schemes: Sequence[Any], *, mean_one: bool = False) -> None:
    """Register verl's own policy loss under ``name``, with weights on its advantages.

    Args:
        name: For ``actor.policy_loss.loss_mode``.
        schemes: Names, or mappings with ``scheme`` and its parameters.
        mean_one: Divide the weights by their mean over each text.

    Raises:
        Refused: A scheme or parameter is unknown or out of range, or looks at something that
            verl's loss is not given.
    """
    from verl.trainer.ppo import core_algos

    config = WeightsConfig.from_mapping(
        {"schemes": schemes, "mean_one": mean_one}, source="register_reweighted_loss"
    )
    for scheme in config.schemes:
        if unknown := set(scheme.needs) - _IN_THE_LOSS - {"advantages"}:
            raise Refused(
                f"{scheme.scheme} needs {', '.join(sorted(unknown))}, which verl's policy loss "
                "is not given; make a table with `dlogp reweight`"
            )
    plain = core_algos.get_policy_loss_fn("vanilla")

    @core_algos.register_policy_loss(name)  # type: ignore[untyped-decorator]
    def reweighted(
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        texts = SchemeInputs(
            mask=response_mask,
            logp_old=old_log_prob,
            logp_current=log_prob.detach(),
            advantages=advantages.amin(dim=1),  # only its sign: one a text
        )
        weights = weigh_batch(config.schemes, texts, mean_one=config.mean_one)
        return plain(old_log_prob, log_prob, advantages * weights, response_mask, *args, **kwargs)


def _sample_ids(columns: Any, rollouts: int) -> list[str]:
    """The id of each row, with the number of the rollout where there are several."""
    given = columns.get("sample_id")
    if given is None:
        given = [(extra or {}).get("sample_id") for extra in columns.get("extra_info", [])]
    names = [None if name is None else str(name) for name in given]
    if not names or None in names:
        raise Refused(
            "verl batch: expected a sample_id in each row's extra_info, which joins it to the "
            f"weights; got columns {', '.join(sorted(columns))}"
        )
    if rollouts == 1:
        return [str(name) for name in names]
    seen: Counter[str] = Counter()
    numbered = []
    for name in names:
        numbered.append(f"{name}/{seen[str(name)]}")
        seen[str(name)] += 1
    return numbered
