"""Reference log-probabilities of a scores run in TRL's DPO and KTO: its own ones, to 1e-3."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer

from dlogp_ray.corpus.pairs import split_pairs
from dlogp_ray.corpus.rows import RowRules, check_rows
from dlogp_ray.errors import Refused
from dlogp_ray.policies.checkpoint import resolve
from dlogp_ray.policies.policy import Policy
from dlogp_ray.scoring.scorer import PairScorer
from dlogp_ray.scoring.unit import score_unit
from dlogp_ray.weights.table import PerToken, WrongTokens, load_logps
from dlogp_ray.weights.trl.preferences import ScoredDPOTrainer, ScoredKTOTrainer

PAIRS = [
    ("p0", "1+2=", "3", "4"),
    ("p1", "34+5=", "39+0=39", "93"),
    ("p2", "a", "bcd", "hij0"),
    ("p3", "77=", "7", "1234567"),
]


@pytest.fixture
def pairs() -> Dataset:
    names = ("sample_id", "prompt", "chosen", "rejected")
    return Dataset.from_dict(dict(zip(names, map(list, zip(*PAIRS, strict=True)), strict=True)))


@pytest.fixture
def unpaired() -> Dataset:
    rows = [
        {"sample_id": f"{name}/{role}", "prompt": prompt, "completion": text, "label": label}
        for name, prompt, chosen, rejected in PAIRS
        for role, text, label in (("chosen", chosen, True), ("rejected", rejected, False))
    ]
    return Dataset.from_list(rows)


def scored(tokenised: Dataset, policy: Path, folder: Path) -> PerToken:
    """The base's scores of pairs as TRL has tokenised them."""
    from score_tables import made_up_run

    rules = RowRules(vocab_size=24, max_tokens=None, carry={})
    rows = split_pairs(enumerate(tokenised.to_list()))
    unit = check_rows(rows, "pairs", rules, lambda: pytest.fail("no text"))
    assert set(unit["status"].to_pylist()) == {"ok"}
    scorer = PairScorer(
        {"base": Policy.load(resolve("base", str(policy)))}, base=None, token_budget=64
    )
    scores = score_unit(unit, scorer, base=None, compared=["base"], steps={}, carry={})
    info = {"config": {"policies": {"base": {}}}, "compared": ["base"]}
    run = made_up_run(str(folder / "run"), [scores], info=info)
    return load_logps(run.uri, "base", cache=folder / "cache")


def config(kind: Any, folder: Path, **more: Any) -> Any:
    fields: dict[str, Any] = {
        "output_dir": str(folder / "trainer"),
        "per_device_train_batch_size": 2,
        "max_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "precompute_ref_log_probs": True,
    }
    return kind(**(fields | more))


@pytest.fixture
def reference(
    model: Any, tokenizer: Any, pairs: Dataset, policy_folders: dict[str, Path], tmp_path: Path
) -> PerToken:
    """The base's scores of the pairs, as TRL tokenises them."""
    tokenised = DPOTrainer(
        model,
        args=config(DPOConfig, tmp_path, precompute_ref_log_probs=False),
        train_dataset=pairs,
        processing_class=tokenizer,
    ).train_dataset
    return scored(tokenised, policy_folders["base"], tmp_path)


@pytest.mark.parametrize(
    "more",
    [{}, {"ld_alpha": 0.5}, {"max_length": 8}],
    ids=["plain", "length-desensitised", "cut"],
)
def test_dpo_references_are_trls_own(
    more: dict[str, Any],
    model: Any,
    tokenizer: Any,
    pairs: Dataset,
    policy_folders: dict[str, Path],
    tmp_path: Path,
) -> None:
    theirs = DPOTrainer(
        model,
        args=config(DPOConfig, tmp_path, **more),
        train_dataset=pairs,
        processing_class=tokenizer,
    )
    reference = scored(theirs.train_dataset, policy_folders["base"], tmp_path)
    ours = ScoredDPOTrainer(
        model,
        args=config(DPOConfig, tmp_path, **more),
        train_dataset=pairs,
        processing_class=tokenizer,
        reference=reference,
    )
    for name in ("ref_chosen_logps", "ref_rejected_logps"):
        assert ours.train_dataset[name] == pytest.approx(theirs.train_dataset[name], abs=1e-3)
    if "max_length" in more:  # some texts were cut
        lengths = [len(r["prompt_ids"]) + len(r["rejected_ids"]) for r in ours.train_dataset]
        assert max(lengths) > 8
    ours.train()
    # The policy is its own reference at the first step: −log σ(0).
    if not more:
        assert ours.state.log_history[0]["loss"] == pytest.approx(0.6931, abs=1e-4)


@pytest.mark.parametrize("loss_type", ["apo_zero_unpaired", "kto"])
def test_kto_references_are_trls_own(
    loss_type: str,
    model: Any,
    tokenizer: Any,
    unpaired: Dataset,
    reference: PerToken,
    tmp_path: Path,
) -> None:
    settings = config(KTOConfig, tmp_path, loss_type=loss_type)
    theirs = KTOTrainer(model, args=settings, train_dataset=unpaired, processing_class=tokenizer)
    ours = ScoredKTOTrainer(
        model,
        args=settings,
        train_dataset=unpaired,
        processing_class=tokenizer,
        reference=reference,
    )
    assert ours.train_dataset["ref_logps"] == pytest.approx(
        theirs.train_dataset["ref_logps"], abs=1e-3
    )
    assert ("ref_KL_logps" in ours.train_dataset.column_names) == (loss_type == "kto")
    ours.train()


def test_pairs_that_are_not_those_of_the_scores_are_refused(
    model: Any,
    tokenizer: Any,
    pairs: Dataset,
    reference: PerToken,
    tmp_path: Path,
) -> None:
    def with_changed(name: str, value: str) -> Dataset:
        return pairs.map(lambda row: {name: value if row["sample_id"] == "p1" else row[name]})

    for dataset, said in [
        (with_changed("chosen", "39+0=3"), "sample p1/chosen: its response has 7 tokens"),
        (with_changed("rejected", "83"), "sample p1/rejected: token 0 of its response"),
        (with_changed("prompt", "43+5="), "sample p1/chosen: its prompt of 5 tokens"),
    ]:
        with pytest.raises(WrongTokens, match=said):
            ScoredDPOTrainer(
                model,
                args=config(DPOConfig, tmp_path),
                train_dataset=dataset,
                processing_class=tokenizer,
                reference=reference,
            )
    config_of = reference.info.config.model_copy(update={"temperature": 0.5})
    warm = reference.info.model_copy(update={"config": config_of})
    with pytest.raises(Refused, match=r"scored at temperature 0.5, and TRL's loss is 1: "):
        ScoredDPOTrainer(
            model,
            args=config(DPOConfig, tmp_path),
            train_dataset=pairs,
            processing_class=tokenizer,
            reference=dataclasses.replace(reference, info=warm),
        )
    for dataset, more, error, said in [
        (pairs.remove_columns("sample_id"), {}, Refused, "expected a column sample_id"),
        (pairs, {"precompute_ref_log_probs": False}, ValueError, "precompute_ref_log_probs=True"),
        (
            pairs,
            {"max_length": 8, "truncation_mode": "keep_end"},
            Refused,
            "sample p1/chosen has 13 tokens, and max_length is 8",
        ),
    ]:
        with pytest.raises(error, match=said):
            ScoredDPOTrainer(
                model,
                args=config(DPOConfig, tmp_path, **more),
                train_dataset=dataset,
                processing_class=tokenizer,
                reference=reference,
            )
