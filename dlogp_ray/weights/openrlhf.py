"""Weights in OpenRLHF: a table's, at the advantages of its experiences.

    from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker
    Maker = weighted_maker(RemoteExperienceMaker, load_weights("runs/my-run/weights/low_prob"))

An experience has a column for each token after the first of prompt and response together: [B, S−1],
where column j is of token j + 1. Ids travel as ``labels``, one a sample.
"""

from typing import Any

from torch import Tensor

from dlogp_ray.errors import Refused
from dlogp_ray.weights.table import Missing, PerToken


def action_weights(experience: Any, weights: PerToken, *, missing: Missing = "error") -> Tensor:
    """The weights of an experience's actions: [B, S−1], float32, 0 where it has none.

    Args:
        experience: With ``sequences`` and ``attention_mask`` [B, S], ``action_mask`` [B, S−1], and
            the ids as ``labels``.
        weights: What ``load_weights`` opened.
        missing: What samples get that the table does not have.

    Raises:
        Refused: There are no ids, a sample is not in the table, or its tokens are others there,
            those of its prompt too.
    """
    if len(experience.labels or ()) != len(experience.sequences):
        raise Refused(
            f"OpenRLHF experience: expected {len(experience.sequences)} labels, the sample ids, "
            f"got {experience.labels!r}; name their column as its label_key"
        )
    tokens = experience.sequences[:, 1:]
    actions, there = experience.action_mask != 0, experience.attention_mask != 0
    batch = weights.expected("weights").batch(
        [str(label) for label in experience.labels],
        tokens,
        tokens.size(1),
        mask=experience.action_mask,
        # All that comes before the first action; where there is none it ends nowhere.
        prompt_ids=[
            ids[: first + 1][some[: first + 1]] if any_action else None
            for ids, some, first, any_action in zip(
                experience.sequences,
                there,
                actions.int().argmax(dim=1).tolist(),
                actions.any(dim=1).tolist(),
                strict=True,
            )
        ],
        missing=missing,
    )
    return batch.to(tokens.device)


def weighted_maker(maker: type, weights: PerToken, *, missing: Missing = "error") -> type:
    """OpenRLHF's ``RemoteExperienceMaker``, whose advantages are multiplied by the weights.

    They are multiplied after whatever OpenRLHF does to advantages, whitening among it.
    """

    class WeightedMaker(maker):  # type: ignore[misc]
        """See ``weighted_maker``."""

        def compute_advantages_and_returns(
            self, experiences: Any, *args: Any, **kwargs: Any
        ) -> Any:
            """OpenRLHF's own, then the weights."""
            experiences = super().compute_advantages_and_returns(experiences, *args, **kwargs)
            for experience in experiences:
                experience.advantages = experience.advantages * action_weights(
                    experience, weights, missing=missing
                )
            return experiences

    return WeightedMaker
