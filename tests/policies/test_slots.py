"""Texts that grow in slots: the same states as each text alone in one pass."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_policy_folder
from packed_texts import alone, assert_equal_but_for_rounding

from dlogp_ray.policies.checkpoint import resolve
from dlogp_ray.policies.policy import Policy
from dlogp_ray.policies.slots import SlotPass, Slots


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    folder: Path = tmp_path_factory.mktemp("policy")
    make_policy_folder(
        folder, seed=0, dtype=request.param, num_key_value_heads=2, max_position_embeddings=256
    )
    return Policy.load(resolve("p", str(folder)))


def text(length: int, start: int) -> torch.Tensor:
    return (torch.arange(length) * 7 + start).remainder(22) + 2


def grow(policy: Policy, slots: Slots, parts: dict[int, torch.Tensor]) -> list[torch.Tensor]:
    """The states of each part, which follows in its slot."""
    counts = [len(part) for part in parts.values()]
    row_pass = SlotPass(slots, list(parts), counts)
    hidden = policy.hidden_packed(torch.cat(list(parts.values())), row_pass)
    return list(hidden.split(counts))


def test_texts_of_several_lengths_grow_as_each_alone(policy: Policy) -> None:
    texts = {0: text(50, 0), 1: text(37, 5), 2: text(61, 9)}
    slots = Slots(3)
    found: dict[int, list[torch.Tensor]] = {row: [] for row in texts}
    steps = [(20, 7, 33), (1, 1, 1), (4, 4, 4), (3, 1, 3)]
    for step in steps:
        at = slots.lengths.copy()
        parts = {row: texts[row][at[row] : at[row] + n] for row, n in enumerate(step)}
        for row, hidden in enumerate(grow(policy, slots, parts)):
            found[row].append(hidden)
    assert slots.lengths.tolist() == np.sum(steps, 0).tolist()
    for row, parts_of in found.items():
        expected = alone(policy, texts[row][: slots.lengths[row]])
        assert_equal_but_for_rounding(torch.cat(parts_of), expected)


def test_a_text_that_is_cut_back_goes_on_with_other_tokens(policy: Policy) -> None:
    slots = Slots(2)
    grow(policy, slots, {0: text(12, 0), 1: text(9, 1)})
    slots.lengths[:] = (8, 9)
    first, second = grow(policy, slots, {0: text(5, 3), 1: text(2, 8)})
    assert_equal_but_for_rounding(
        first, alone(policy, torch.cat([text(12, 0)[:8], text(5, 3)]))[8:]
    )
    assert_equal_but_for_rounding(second, alone(policy, torch.cat([text(9, 1), text(2, 8)]))[9:])


def test_a_copied_text_goes_on_by_itself_and_others_are_left_alone(policy: Policy) -> None:
    slots = Slots(3)
    grow(policy, slots, {0: text(6, 0), 2: text(11, 4)})
    slots.copy(0, 1)
    parts = grow(policy, slots, {0: text(3, 1), 1: text(3, 2), 2: text(3, 3)})
    before = [text(6, 0), text(6, 0), text(11, 4)]
    for row, part in enumerate(parts):
        expected = alone(policy, torch.cat([before[row], text(3, row + 1)]))[len(before[row]) :]
        assert_equal_but_for_rounding(part, expected)


def test_rows_that_do_not_lie_side_by_side(policy: Policy) -> None:
    slots = Slots(4)
    grow(policy, slots, {row: text(5, row) for row in range(4)})
    first, last = grow(policy, slots, {3: text(2, 9), 1: text(2, 6)})
    assert slots.lengths.tolist() == [5, 7, 5, 7]
    assert_equal_but_for_rounding(first, alone(policy, torch.cat([text(5, 3), text(2, 9)]))[5:])
    assert_equal_but_for_rounding(last, alone(policy, torch.cat([text(5, 1), text(2, 6)]))[5:])


def test_slots_become_larger_than_they_were_made(policy: Policy) -> None:
    slots = Slots(1)
    whole = text(200, 0)
    parts = [grow(policy, slots, {0: part})[0] for part in whole.split(50)]
    assert_equal_but_for_rounding(torch.cat(parts), alone(policy, whole))


def test_the_models_own_window_holds(tmp_path: Path) -> None:
    """Mistral with a window of 4: the mask function is the model's, asked for each text."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=24,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=4,
    )
    model = MistralForCausalLM(config)
    ids = text(20, 0)
    with torch.inference_mode():
        expected = model.model(ids[None]).last_hidden_state[0]
    policy = Policy("p", model)
    slots = Slots(2)
    parts = [grow(policy, slots, {0: part, 1: part.flip(0)})[0] for part in ids.split([7, 1, 4, 8])]
    assert_equal_but_for_rounding(torch.cat(parts), expected)
