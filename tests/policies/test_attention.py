"""Attention over packed texts: against the definition, and against the same texts alone."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_policy_folder
from packed_texts import alone, assert_equal_but_for_rounding

from dlogp_ray.policies import attend as attend_module
from dlogp_ray.policies.attend import Softmax, attend, attend_alike
from dlogp_ray.policies.checkpoint import resolve
from dlogp_ray.policies.layout import Layout, Past
from dlogp_ray.policies.packing import Segment
from dlogp_ray.policies.policy import Policy
from dlogp_ray.policies.split import Batching


def definition(
    query: Any, key: Any, value: Any, allowed: Any, scaling: float, softcap: Any, sinks: Any
) -> Any:
    """softmax over the keys that are allowed, in float64, head by head and query by query."""
    heads, queries, _ = query.shape
    group = heads // len(key)
    out = torch.zeros(heads, queries, value.shape[2], dtype=torch.float64)
    for h in range(heads):
        for i in range(queries):
            weights = {}
            for j in range(key.shape[1]):
                if allowed[i, j]:
                    score = scaling * float(query[h, i].double() @ key[h // group, j].double())
                    if softcap is not None:
                        score = softcap * math.tanh(score / softcap)
                    weights[j] = math.exp(score)
            total = sum(weights.values())
            if sinks is not None:
                total += math.exp(float(sinks[h]))
            for j, weight in weights.items():
                out[h, i] += weight / total * value[h // group, j].double()
    return out


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("scores_bytes", [1, 2**20])
def test_attend_is_the_definition(
    softcap: float | None,
    with_sinks: bool,
    window: int | None,
    scores_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attend_module, "SCORES_BYTES", scores_bytes)
    torch.manual_seed(0)
    queries, keys = 5, 9  # four keys of a prefix
    query, key, value = (
        torch.randn(n, length, 8) for n, length in ((4, queries), (2, keys), (2, keys))
    )
    i, j = torch.arange(queries)[:, None] + keys - queries, torch.arange(keys)[None]
    allowed = j <= i
    if window is not None:
        allowed &= i - j < window
    mask = None if window is None else allowed
    sinks = torch.randn(4) if with_sinks else None
    found = attend(query, key, value, mask, Softmax(0.7, softcap, sinks))
    expected = definition(query, key, value, allowed, 0.7, softcap, sinks)
    # a dozen float32 operations on numbers of size 1
    torch.testing.assert_close(found.double(), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("scores_bytes", [1, 1_000, 2**20])
def test_texts_of_one_length_at_once_are_each_as_alone(
    window: int | None, scores_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    queries, keys, texts = 5, 9, 7
    query, key, value = (
        torch.randn(texts, n, length, 8) for n, length in ((4, queries), (2, keys), (2, keys))
    )
    i, j = torch.arange(queries)[:, None] + keys - queries, torch.arange(keys)[None]
    mask = None if window is None else (j <= i) & (i - j < window)
    alone = [attend(query[r], key[r], value[r], mask, Softmax(0.7)) for r in range(texts)]
    monkeypatch.setattr(attend_module, "SCORES_BYTES", scores_bytes)
    found = attend_alike(query, key, value, mask, Softmax(0.7))
    # The same operations on the same numbers; cut otherwise, products may be rounded otherwise.
    torch.testing.assert_close(found, torch.stack(alone), atol=1e-6, rtol=0)
    others = torch.cat([query[:1], torch.randn(texts - 1, 4, queries, 8)])
    assert torch.equal(attend_alike(others, key, value, mask, Softmax(0.7))[0], found[0])


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(5, 9), (1, 1), (8, 8), (70, 133)])
def test_half_precision_has_the_same_meaning_and_the_error_of_its_roundings(
    queries: int, keys: int, compiled: bool
) -> None:
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(n, m, 8).bfloat16() for n, m in ((4, queries), (2, keys), (2, keys))
    )
    # as a packed row has them: tokens first, heads side by side
    query, key, value = (
        x.transpose(0, 1).contiguous().transpose(0, 1) for x in (query, key, value)
    )
    allowed = torch.arange(keys)[None] <= torch.arange(queries)[:, None] + keys - queries
    found = attend(query, key, value, None, Softmax(0.7), compiled=compiled)
    expected = definition(query, key, value, allowed, 0.7, None, None)
    # values of size 1 have 2^-8 between neighbours in bfloat16, and so have the weights
    torch.testing.assert_close(found.double(), expected, atol=2e-2, rtol=0)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    folder: Path = tmp_path_factory.mktemp("policy")
    make_policy_folder(folder, seed=0, dtype=request.param, num_key_value_heads=2)
    return Policy.load(resolve("p", str(folder)))


def test_packed_texts_do_not_see_each_other(policy: Policy) -> None:
    assert policy.batching is Batching.PACKED
    one, two = torch.arange(2, 9), torch.arange(5, 20)
    together = policy.hidden_packed(torch.cat([one, two]), Layout([Segment(0, 7), Segment(7, 22)]))
    assert_equal_but_for_rounding(together, torch.cat([alone(policy, one), alone(policy, two)]))


def test_responses_see_their_shared_prompt_and_not_each_other(policy: Policy) -> None:
    prompt, one, two = torch.arange(2, 8), torch.arange(9, 12), torch.arange(3, 20)
    layout = Layout([Segment(0, 6), Segment(6, 9, (0, 6)), Segment(9, 26, (0, 6))])
    together = policy.hidden_packed(torch.cat([prompt, one, two]), layout)
    assert_equal_but_for_rounding(together[:9], alone(policy, prompt, one))
    assert_equal_but_for_rounding(together[9:], alone(policy, prompt, two)[6:])


def test_chunks_through_a_past_are_the_whole(policy: Policy) -> None:
    text = torch.arange(40).remainder(22) + 2
    past = Past(40)
    parts = [
        policy.hidden_packed(chunk, Layout([Segment(0, len(chunk))], past, keep=True))
        for chunk in text.split(16)
    ]
    assert past.length == 40
    assert_equal_but_for_rounding(torch.cat(parts), alone(policy, text))


def test_a_past_that_is_not_kept_is_only_looked_at(policy: Policy) -> None:
    prompt, one, two = torch.arange(2, 20), torch.arange(9, 12), torch.arange(3, 8)
    past = Past(18)
    policy.hidden_packed(prompt, Layout([Segment(0, 18)], past, keep=True))
    for _ in range(2):  # the second time finds the past as the first did
        together = policy.hidden_packed(
            torch.cat([one, two]), Layout([Segment(0, 3), Segment(3, 8)], past)
        )
        assert past.length == 18
        expected = [alone(policy, prompt, part)[18:] for part in (one, two)]
        assert_equal_but_for_rounding(together, torch.cat(expected))


def test_a_past_can_be_cut_back_and_go_on_with_another_text(policy: Policy) -> None:
    prompt, one, two = torch.arange(2, 12), torch.arange(9, 12), torch.arange(3, 8)
    past = Past(15)
    for part in (prompt, one):
        policy.hidden_packed(part, Layout([Segment(0, len(part))], past, keep=True))
    past.length = 10
    found = policy.hidden_packed(two, Layout([Segment(0, 5)], past, keep=True))
    assert_equal_but_for_rounding(found, alone(policy, prompt, two)[10:])


def test_compiled_layers_give_the_same_states(tmp_path: Path) -> None:
    folder = make_policy_folder(tmp_path, seed=0)
    eager, compiled = (Policy.load(resolve("p", str(folder))) for _ in range(2))
    compiled.compile()
    for length in (7, 30):
        layout = [Segment(0, 5), Segment(5, length, (0, 5))]
        ids = torch.arange(length).remainder(22) + 2
        found = compiled.hidden_packed(ids, Layout(layout))
        # the same sums in another order
        torch.testing.assert_close(
            found, eager.hidden_packed(ids, Layout(layout)), atol=1e-5, rtol=1e-5
        )


def test_outside_of_a_layout_a_packed_model_says_so(policy: Policy) -> None:
    with pytest.raises(RuntimeError, match="outside attention"):
        policy._model(input_ids=torch.arange(2, 5)[None], use_cache=False)
