"""Supervised fine-tuning with a weight for each token's loss: TRL's SFT trainer.

    trainer = WeightedSFTTrainer(
        model, rollouts=rows, weights=load_weights("runs/my-run/weights/delta"),
        args=SFTConfig(...), processing_class=tokenizer,
    )

The loss is Σ w·(−log p) over the tokens of the responses, divided by their number: TRL's own mean,
not divided by the weights.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from trl.trainer.sft_trainer import SFTTrainer

from dlogp_ray.amounts import amount
from dlogp_ray.errors import Refused
from dlogp_ray.weights.rollouts import complete
from dlogp_ray.weights.table import Missing, PerToken

NEEDED = ("sample_id", "prompt_ids", "response_ids")
_IGNORED = -100


class WeightedSFTTrainer(SFTTrainer):
    """``SFTTrainer`` on rollouts, with weights from a table.

    Args:
        model: As TRL's.
        rollouts: Rows with ``sample_id, prompt_ids, response_ids``, and ``response_mask`` if not
            all tokens of a response are to be learnt.
        weights: What ``load_weights`` opened.
        missing: What samples get that the table does not have: an error, or 1.
        args: As TRL's.
        **kwargs: As TRL's, without ``train_dataset``, ``eval_dataset`` and ``data_collator``.

    Raises:
        Refused: Rows lack a column, are longer than ``max_length``, a sample is not in the table,
            or its tokens are others there.
        ValueError: The config asks for packing, or for a loss that can't be weighted, or there is
            an evaluation set.
    """

    def __init__(
        self,
        model: Any,
        *,
        rollouts: Iterable[Mapping[str, Any]],
        weights: PerToken,
        args: Any,
        missing: Missing = "error",
        **kwargs: Any,
    ) -> None:
        """See the class."""
        weights.expected("weights")
        if kwargs.get("eval_dataset") is not None:
            raise ValueError("WeightedSFTTrainer has no weights for an eval_dataset; leave it out")
        if args.packing or args.padding_free or args.loss_type != "nll":
            raise ValueError(
                "WeightedSFTTrainer: expected packing=False, padding_free=False, loss_type='nll', "
                f"got {args.packing}, {args.padding_free}, {args.loss_type!r}"
            )
        dataset = weighted_dataset(rollouts, weights, args.max_length, missing)
        args.dataset_kwargs = {**(args.dataset_kwargs or {}), "skip_prepare_dataset": True}
        args.remove_unused_columns = False
        super().__init__(
            model, args=args, train_dataset=dataset, data_collator=self._collated, **kwargs
        )

    def _collated(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        padding: Any = self._tokenizer.pad_token_id
        fill = {"input_ids": padding, "labels": _IGNORED, "loss_weights": 0.0}
        batch = {
            name: pad_sequence(
                [torch.tensor(example[name]) for example in examples],
                batch_first=True,
                padding_value=value,
            )
            for name, value in fill.items()
        }
        lengths = torch.tensor([len(example["input_ids"]) for example in examples])
        place = torch.arange(batch["input_ids"].size(1))
        return {**batch, "attention_mask": (place < lengths[:, None]).long()}

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's loss, of log-probabilities that are multiplied by their weights."""
        inputs = dict(inputs)
        weights = inputs.pop("loss_weights")

        def weighted_model(**given: Any) -> Any:
            outputs = model(**given)
            if outputs.log_probs is not None:  # of the token after each: those from the second on
                outputs.log_probs = outputs.log_probs * weights[:, 1:]
            return outputs

        return super().compute_loss(weighted_model, inputs, *args, **kwargs)  # type: ignore[no-untyped-call]


def weighted_dataset(
    rollouts: Iterable[Mapping[str, Any]],
    weights: PerToken,
    max_length: int | None = None,
    missing: Missing = "error",
) -> Dataset:
    """Rows of ``input_ids``, ``labels`` and ``loss_weights`` over prompt and response.

    Labels are -100, and weights 0, where a token is not learnt.

    Raises:
        Refused: As the class.
    """
    rows: dict[str, list[Any]] = {"input_ids": [], "labels": [], "loss_weights": []}
    for row in complete(rollouts, NEEDED):
        prompt, response = list(row["prompt_ids"]), list(row["response_ids"])
        if max_length is not None and len(prompt) + len(response) > max_length:
            raise Refused(
                f"sample {row['sample_id']} has {amount(len(prompt) + len(response), 'token')}, "
                "and "
                f"max_length is {max_length}: a text that is cut has no weights; leave such rows "
                "out, or raise max_length"
            )
        (of_row,) = weights.of([row["sample_id"]], [response], prompt_ids=[prompt], missing=missing)
        mask = row.get("response_mask")
        learnt = [True] * len(response) if mask is None else [bool(learn) for learn in mask]
        if len(learnt) != len(response):
            raise Refused(
                f"sample {row['sample_id']}: its response_mask has {amount(len(learnt), 'value')} "
                f"for {amount(len(response), 'token')}"
            )
        nothing = [_IGNORED] * len(prompt)
        rows["input_ids"].append(prompt + response)
        rows["labels"].append(
            nothing + [t if kept else _IGNORED for t, kept in zip(response, learnt, strict=True)]
        )
        rows["loss_weights"].append(
            [0.0] * len(prompt)
            + [w if kept else 0.0 for w, kept in zip(of_row.tolist(), learnt, strict=True)]
        )
    return Dataset.from_dict(rows)
