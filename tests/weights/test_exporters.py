"""Weights in the layouts of other trainers: where each token's weight lies, and what is refused.

verl's and OpenRLHF's own code is run on them in test_other_trainers.py.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from weights_tables import made_up_weights, weights_row

from dlogp_ray.errors import Refused
from dlogp_ray.weights import nemo_rl, openrlhf, slime, verl
from dlogp_ray.weights.table import PerToken, UnknownSample, WrongTokens, load_weights

# Prompts of 2 and 3 tokens, responses of 4 and 2.
PROMPTS = {"a": [11, 12], "b": [11, 12, 13]}
RESPONSES = {"a": [21, 22, 23, 24], "b": [31, 32]}
WEIGHTS = {"a": [0.5, 1.0, 2.0, 0.25], "b": [1.5, 0.75]}
PAD = 0


@pytest.fixture
def weights(tmp_path: Path) -> PerToken:
    rows = [
        weights_row(name, RESPONSES[name], WEIGHTS[name], prompt_ids=PROMPTS[name])
        for name in RESPONSES
    ]
    made_up_weights(str(tmp_path / "w"), [rows])
    return load_weights(str(tmp_path / "w"), cache=tmp_path / "cache")


def padded(rows: list[list[int]], length: int) -> torch.Tensor:
    return torch.tensor([row + [PAD] * (length - len(row)) for row in rows])


def whole(responses: dict[str, list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts and responses, right-padded, and where responses are."""
    length = max(len(PROMPTS[name] + responses[name]) for name in responses)
    rows = [PROMPTS[name] + responses[name] for name in responses]
    there = [[0] * len(PROMPTS[name]) + [1] * len(responses[name]) for name in responses]
    return padded(rows, length), padded(there, length)


Ids = list[str]
Exporter = Callable[[PerToken, Ids, dict[str, list[int]], str], Any]


def to_verl(weights: PerToken, names: Ids, responses: Any, missing: Any) -> Any:
    length = max(map(len, responses.values()))
    ids = padded(list(responses.values()), length)
    left = torch.tensor([[PAD, 11, 12], [11, 12, 13]])  # prompts are padded on the left
    attention = torch.cat([left != PAD, ids != PAD], dim=1).long()
    data = SimpleNamespace(
        batch={"prompts": left, "responses": ids, "attention_mask": attention},
        non_tensor_batch={"extra_info": [{"sample_id": name} for name in names]},
    )
    return verl.loss_weights(data, weights, missing=missing)


def to_openrlhf(weights: PerToken, names: Ids, responses: Any, missing: Any) -> Any:
    sequences, there = whole(responses)
    experience = SimpleNamespace(
        sequences=sequences,
        attention_mask=(sequences != PAD).long(),
        action_mask=there[:, 1:],
        labels=names,
    )
    return openrlhf.action_weights(experience, weights, missing=missing)


def to_nemo_rl(weights: PerToken, names: Ids, responses: Any, missing: Any) -> Any:
    sequences, there = whole(responses)
    return nemo_rl.full_length_weights(weights, names, sequences, there, missing=missing)


def to_slime(weights: PerToken, names: Ids, responses: Any, missing: Any) -> Any:
    rows = [
        {"sample_id": name, "prompt_ids": PROMPTS[key], "response_ids": responses[key]}
        for name, key in zip(names, responses, strict=True)
    ]
    path = weights.folder.parent / "samples.jsonl"
    slime.write_jsonl(path, rows, weights, missing=missing)
    return [json.loads(line)["loss_weights"] for line in path.read_text().splitlines()]


EXPORTERS = {"verl": to_verl, "openrlhf": to_openrlhf, "nemo_rl": to_nemo_rl, "slime": to_slime}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("verl", [[0.5, 1.0, 2.0, 0.25], [1.5, 0.75, 0, 0]]),
        # Column j is of token j + 1: responses begin at 1 and 2.
        ("openrlhf", [[0, 0.5, 1.0, 2.0, 0.25], [0, 0, 1.5, 0.75, 0]]),
        ("nemo_rl", [[0, 0, 0.5, 1.0, 2.0, 0.25], [0, 0, 0, 1.5, 0.75, 0]]),
        ("slime", [[0.5, 1.0, 2.0, 0.25], [1.5, 0.75]]),
    ],
)
def test_each_weight_lies_at_its_token(name: str, expected: Any, weights: PerToken) -> None:
    found = EXPORTERS[name](weights, ["a", "b"], RESPONSES, "error")
    if isinstance(found, torch.Tensor):
        assert found.dtype == torch.float32
        found = found.tolist()
    assert found == expected


@pytest.mark.parametrize("name", EXPORTERS)
@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"b": [31, 32, 33]}, WrongTokens, "sample b: its response has 3 tokens"),
        ({"a": [22, 21, 23, 24]}, WrongTokens, "sample a: token 0 of its response is 22"),
        ({"a": [21, 22, 230, 24]}, WrongTokens, "sample a: token 2 of its response is 230"),
        ({"names": ["b", "a"]}, WrongTokens, "sample b: its response has 4 tokens"),
        ({"names": ["a", "c"]}, UnknownSample, "no loss_weights for sample c"),
    ],
    ids=["length", "shuffled", "tokenised anew", "rows shuffled", "unknown"],
)
def test_what_the_table_was_not_made_for_is_refused(
    name: str, change: dict[str, Any], error: type[Refused], said: str, weights: PerToken
) -> None:
    names = change.get("names", ["a", "b"])
    responses = RESPONSES | {key: value for key, value in change.items() if key != "names"}
    with pytest.raises(error, match=said):
        EXPORTERS[name](weights, names, responses, "error")


@pytest.mark.parametrize("name", EXPORTERS)
def test_samples_of_one_response_are_told_apart_by_their_prompts(name: str, tmp_path: Path) -> None:
    same = {"a": RESPONSES["b"], "b": RESPONSES["b"]}
    rows = [
        weights_row(sample, same[sample], [weight] * 2, prompt_ids=PROMPTS[sample])
        for sample, weight in (("a", 0.5), ("b", 2.0))
    ]
    made_up_weights(str(tmp_path / "same"), [rows])
    weights = load_weights(str(tmp_path / "same"), cache=tmp_path / "cache")
    found = EXPORTERS[name](weights, ["a", "b"], same, "error")
    assert {float(max(row)) for row in found} == {0.5, 2.0}
    with pytest.raises(WrongTokens, match="sample b: its prompt of 2 tokens has the hash"):
        EXPORTERS[name](weights, ["b", "a"], same, "error")


@pytest.mark.parametrize("name", EXPORTERS)
def test_log_probabilities_are_no_weights(name: str, weights: PerToken) -> None:
    logps = dataclasses.replace(weights, column="logp_base")
    with pytest.raises(Refused, match=r"expected weights, as load_weights opens them.*logp_base"):
        EXPORTERS[name](logps, ["a", "b"], RESPONSES, "error")


@pytest.mark.parametrize("name", EXPORTERS)
def test_samples_without_weights_weigh_1_where_asked(name: str, weights: PerToken) -> None:
    found = EXPORTERS[name](weights, ["a", "c"], RESPONSES, "one")
    last = found[1].tolist() if isinstance(found, torch.Tensor) else found[1]
    assert sorted(last)[-2:] == [1.0, 1.0]
    assert set(last) <= {0.0, 1.0}


def test_verls_advantages_are_multiplied(weights: PerToken) -> None:
    data = SimpleNamespace(
        batch={
            "prompts": torch.tensor([[PAD, 11, 12], [11, 12, 13]]),
            "responses": padded([RESPONSES["a"], RESPONSES["b"]], 4),
            "attention_mask": torch.tensor([[0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]]),
        },
        non_tensor_batch={"sample_id": ["a", "b"]},
    )

    def compute_advantage(data: Any, sign: float) -> Any:
        data.batch["advantages"] = sign * torch.ones(2, 4)
        return data

    found = verl.weighted_advantages(compute_advantage, weights)(data, sign=-1.0)
    expected = [[-0.5, -1.0, -2.0, -0.25], [-1.5, -0.75, 0.0, 0.0]]
    assert found.batch["advantages"].tolist() == expected


def test_verls_rollouts_of_a_row_are_numbered() -> None:
    columns = {"extra_info": [{"sample_id": name} for name in ("p", "p", "q", "q")]}
    assert verl._sample_ids(columns, 2) == ["p/0", "p/1", "q/0", "q/1"]
    assert verl._sample_ids({"sample_id": [7, "x"]}, 1) == ["7", "x"]
    for missing in ({"uid": ["u"]}, {"extra_info": [{"sample_id": "p"}, {}]}):
        with pytest.raises(Refused, match="extra_info"):
            verl._sample_ids(missing, 1)


def test_an_experience_without_ids_is_refused(weights: PerToken) -> None:
    sequences, there = whole(RESPONSES)
    for labels in (None, [], ["a"]):
        experience = SimpleNamespace(
            sequences=sequences,
            attention_mask=(sequences != PAD).long(),
            action_mask=there[:, 1:],
            labels=labels,
        )
        with pytest.raises(Refused, match="expected 2 labels, the sample ids"):
            openrlhf.action_weights(experience, weights)


def test_a_response_at_the_first_position_has_no_loss(weights: PerToken) -> None:
    with pytest.raises(ValueError, match="sample a: its response begins at position 0"):
        nemo_rl.full_length_weights(
            weights, ["a"], torch.tensor([RESPONSES["a"]]), torch.ones(1, 4)
        )


def test_slimes_advantages_are_multiplied_by_index(weights: PerToken, tmp_path: Path) -> None:
    rows = [
        {
            "sample_id": name,
            "prompt_ids": PROMPTS[name],
            "response_ids": RESPONSES[name],
            "response_mask": [1] * (len(RESPONSES[name]) - 1) + [0],
            "reward": 0.5,
        }
        for name in RESPONSES
    ]
    path = tmp_path / "samples.jsonl"
    assert slime.write_jsonl(path, rows, weights) == 2
    first = json.loads(path.read_text().splitlines()[0])
    assert first["tokens"] == PROMPTS["a"] + RESPONSES["a"]
    assert (first["response_length"], first["loss_mask"]) == (4, [1, 1, 1, 0])
    assert all(type(one) is int for one in first["loss_mask"])
    weighted = slime.read_jsonl(path)
    rollout = {
        "sample_indices": [1, 0],
        "tokens": [torch.tensor(PROMPTS[n] + RESPONSES[n]) for n in ("b", "a")],
        "response_lengths": [2, 4],
        "advantages": [torch.full((2,), 2.0), torch.full((4,), -1.0)],
    }
    slime.weigh_advantages(rollout, weighted)
    assert [one.tolist() for one in rollout["advantages"]] == [
        [3.0, 1.5],
        [-0.5, -1.0, -2.0, -0.25],
    ]
    for change, said in [
        ({"sample_indices": [1, 5]}, "slime sample 5 has no weights"),
        ({"response_lengths": [3, 4]}, r"slime sample 1 \(b\)"),
        ({"tokens": rollout["tokens"][::-1]}, r"slime sample 1 \(b\)"),
    ]:
        with pytest.raises(Refused, match=said):
            slime.weigh_advantages({**rollout, **change}, weighted)
    with pytest.raises(Refused, match="row 0 has no prompt_ids"):
        slime.write_jsonl(path, [{"sample_id": "a", "response_ids": [1]}], weights)
