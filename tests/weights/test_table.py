"""Weights in a trainer: looked up by sample id, for exactly the tokens that were scored."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import edit_record
from score_tables import made_up_run, score_rows
from torch.utils.data import DataLoader
from weights_tables import LookedUp, made_up_weights, weights_row

from dlogp_ray.errors import Damaged, Refused, StoreFailed
from dlogp_ray.tables.run import Run, open_run
from dlogp_ray.tables.source import source_hash
from dlogp_ray.weights import cache as on_disk
from dlogp_ray.weights import table
from dlogp_ray.weights.table import PerToken, UnknownSample, WrongTokens, load_logps, load_weights

ROWS = [
    weights_row("s/0", [5, 6, 7], [1.0, 0.5, 2.0]),
    weights_row("s/1", [8], [0.25]),
    weights_row("größe", [9, 10], [3.0, 4.0], prompt_ids=[1]),
]


@pytest.fixture
def weights(tmp_path: Path) -> PerToken:
    rejected = weights_row("s/9", [], [], status="too_long")
    made_up_weights(str(tmp_path / "w"), [ROWS[:2], [ROWS[2], rejected]])
    return load_weights(str(tmp_path / "w"), cache=tmp_path / "cache")


def test_a_batch_is_padded_on_the_right(weights: PerToken) -> None:
    found = weights.batch(["größe", "s/0"], [[9, 10], [5, 6, 7]], 4)
    assert found.dtype == torch.float32
    assert found.tolist() == [[3.0, 4.0, 0.0, 0.0], [1.0, 0.5, 2.0, 0.0]]
    assert len(weights) == 3
    assert "s/1" in weights
    assert "s/9" not in weights  # it has no weights
    assert sorted(weights) == ["größe", "s/0", "s/1"]
    ids, values = weights["s/1"]
    assert (ids.tolist(), values.tolist()) == ([8], [0.25])
    assert weights.batch([], [], 5).shape == (0, 5)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_responses_may_be_lists_arrays_or_tensors(weights: PerToken, kind: Any) -> None:
    found = weights.of(["s/0", "s/1"], [kind([5, 6, 7]), kind([8])])
    assert [one.tolist() for one in found] == [[1.0, 0.5, 2.0], [0.25]]


@pytest.mark.parametrize(
    "response",
    [
        [[5, 6], [7, 0]],
        [[5, 6, 7]],
        ["5", "six", "7"],
        [5, None, 7],
        [5, 6, 7 + 2**32],
        np.eye(2),
        np.array([5.4, 6.4, 7.4]),
        np.array([5, 6, 7 + 2**32]),
    ],
    ids=["padded", "nested", "words", "none", "large", "matrix", "floats", "large array"],
)
def test_what_is_no_list_of_tokens_is_refused(weights: PerToken, response: Any) -> None:
    with pytest.raises(ValueError, match="expected a list of token ids for each sample"):
        weights.of(["s/0"], [response])


def test_whole_numbers_may_be_sample_ids(tmp_path: Path) -> None:
    made_up_weights(str(tmp_path / "w"), [[weights_row("7", [5, 6], [2.0, 3.0])]])
    numbered = load_weights(tmp_path / "w", cache=tmp_path / "cache")
    assert 7 in numbered
    assert numbered.batch([7], [[5, 6]], 2).tolist() == [[2.0, 3.0]]
    with pytest.raises(UnknownSample, match="for sample 8"):
        numbered.of([8], [[5, 6]])


def test_what_a_missing_sample_gets_is_one_of_two(weights: PerToken) -> None:
    with pytest.raises(ValueError, match="missing: expected error or one, got 'zero'"):
        weights._flat(["s/0"], [[5, 6, 7]], None, "zero")  # annotations are not checked outside


@pytest.mark.parametrize("damage", ["cut", "gone", "no record"])
def test_a_cache_that_is_not_whole_is_written_again(
    weights: PerToken, tmp_path: Path, damage: str
) -> None:
    values = weights.folder / "values.f4"
    if damage == "cut":
        values.write_bytes(values.read_bytes()[:8])
    elif damage == "gone":
        values.unlink()
    else:
        (weights.folder / "table.json").unlink()
    again = load_weights(weights.uri, cache=tmp_path / "cache")
    assert again.of(["s/0"], [[5, 6, 7]])[0].tolist() == [1.0, 0.5, 2.0]


def test_a_padded_tensor_has_a_mask(weights: PerToken) -> None:
    ids = torch.tensor([[5, 6, 7, 0], [8, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    found = weights.batch(["s/0", "s/1"], ids, 4, mask=mask)
    assert found.tolist() == [[1.0, 0.5, 2.0, 0.0], [0.25, 0.0, 0.0, 0.0]]
    for some, there, length, said in [
        (ids, mask, 5, r"\[B, 5\], got the shape \(2, 4\)"),
        (ids, [[1, 1, 1], [1]], 4, r"\[B, 4\], got rows of several lengths"),
        ([[5, 6, 7], [8]], mask, 4, r"\[B, 4\], got rows of several lengths"),
        (ids, mask[0], 4, r"\[B, 4\], got the shape \(4,\)"),
        (ids, mask[:1], 4, r"of one shape, got \(2, 4\) and \(1, 4\)"),
    ]:
        with pytest.raises(ValueError, match=said):
            weights.batch(["s/0", "s/1"], some, length, mask=there)


@pytest.mark.parametrize(
    ("response", "position", "said"),
    [
        ([5, 6], None, "has 2 tokens, and the table was made for 3; the rest is the same"),
        ([5, 6, 7, 1], None, "has 4 tokens, and the table was made for 3; the rest is the same"),
        ([6, 7, 8, 1], 0, "they differ from token 0 on"),
        ([5, 7, 6], 1, "token 1 of its response is 7, and the table was made for 6"),
    ],
    ids=["short", "long", "shifted", "shuffled"],
)
def test_other_tokens_are_named_by_sample_and_position(
    weights: PerToken, response: list[int], position: int | None, said: str
) -> None:
    with pytest.raises(WrongTokens, match=f"sample s/0: .*{said}") as caught:
        weights.batch(["s/1", "s/0"], [[8], response], 6)
    assert (caught.value.sample_id, caught.value.position) == ("s/0", position)


def test_another_prompt_is_named(weights: PerToken) -> None:
    weights.batch(["s/0", "größe"], [[5, 6, 7], [9, 10]], 3, prompt_ids=[[2, 3], [1]])
    with pytest.raises(WrongTokens, match="sample größe: its prompt of 2 tokens"):
        weights.batch(["s/0", "größe"], [[5, 6, 7], [9, 10]], 3, prompt_ids=[[2, 3], [2, 3]])


def test_samples_that_are_not_there(weights: PerToken) -> None:
    for name in ("s/9", "nobody"):
        with pytest.raises(UnknownSample, match=f"no loss_weights for sample {name}"):
            weights.batch(["s/1", name], [[8], [4]], 3)
    found = weights.batch(["nobody", "s/1"], [[4, 4], [8]], 3, missing="one")
    assert found.tolist() == [[1.0, 1.0, 0.0], [0.25, 0.0, 0.0]]
    with pytest.raises(UnknownSample, match="with missing='one' such samples weigh 1"):
        weights["nobody"]


def test_numbers_that_do_not_agree_are_refused(weights: PerToken) -> None:
    with pytest.raises(ValueError, match="1 sample ids for 2 responses"):
        weights.batch(["s/1"], [[8], [8]], 3)
    with pytest.raises(ValueError, match="sample s/0: its response has 3 tokens, and length is 2"):
        weights.batch(["s/0"], [[5, 6, 7]], 2)
    with pytest.raises(ValueError, match="with a mask"):
        weights.batch(["s/0"], torch.tensor([[[5, 6, 7]]]), 3)


def test_ids_with_one_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_disk, "name_hash", lambda name: len(name))
    made_up_weights(str(tmp_path / "w"), [ROWS])
    weights = load_weights(str(tmp_path / "w"), cache=tmp_path / "cache")
    assert weights["s/0"][1].tolist() == [1.0, 0.5, 2.0]
    assert weights["s/1"][1].tolist() == [0.25]
    assert "s/2" not in weights


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_data_loader_read_it(weights: PerToken, method: str) -> None:
    weights["s/0"]  # opened in this process too
    loader = DataLoader(
        LookedUp(weights, ROWS, 64), batch_size=8, num_workers=2, multiprocessing_context=method
    )
    seen = {
        int(index): row.tolist()
        for batch in loader
        for index, row in zip(batch["index"], batch["weights"], strict=True)
    }
    assert len(seen) == 64
    for index, row in seen.items():
        expected = ROWS[index % 3]["loss_weights"]
        assert row == expected + [0.0] * (3 - len(expected))


def test_what_is_sent_to_a_process_is_small(weights: PerToken) -> None:
    weights["s/0"]
    assert len(pickle.dumps(weights)) < 2_000


def test_arrays_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up_weights(str(tmp_path / "w"), [ROWS])
    first = load_weights(str(tmp_path / "w"), cache=tmp_path / "cache")
    monkeypatch.setattr(on_disk, "_write", lambda *_: pytest.fail("written again"))
    again = load_weights(str(tmp_path / "w"), cache=tmp_path / "cache")
    assert again.folder == first.folder
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [first.folder.name]
    # A table of the same name with another content is another folder.
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "w")
    made_up_weights(str(tmp_path / "w"), [ROWS[:1]])
    assert load_weights(str(tmp_path / "w"), cache=tmp_path / "cache").folder != first.folder


def test_another_process_may_have_been_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made_up_weights(str(tmp_path / "w"), [ROWS])
    write = on_disk._write

    def slow(*arguments: Any) -> None:
        monkeypatch.setattr(on_disk, "_write", write)
        load_weights(run.uri, cache=tmp_path / "cache")
        write(*arguments)

    monkeypatch.setattr(on_disk, "_write", slow)
    weights = load_weights(run.uri, cache=tmp_path / "cache")
    assert weights["s/1"][1].tolist() == [0.25]
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_tables_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    run = made_up_weights(str(tmp_path / "w"), [ROWS])
    scores = made_up_run(str(tmp_path / "scores"), [score_rows(3)])
    with pytest.raises(Refused, match="is a run of scores; give a weights table"):
        load_weights(scores.uri)
    with pytest.raises(Refused, match="no run there"):
        load_weights(str(tmp_path / "nothing"))
    (tmp_path / "w/_SUCCESS").unlink()
    with pytest.raises(Refused, match="not whole"):
        load_weights(run.uri)


def test_a_damaged_object_is_named(tmp_path: Path) -> None:
    run = made_up_weights(str(tmp_path / "w"), [ROWS])
    path = Path(run.object_uri("part-00000000"))
    data = bytearray(path.read_bytes())
    data[40] ^= 255
    path.write_bytes(data)
    with pytest.raises(Damaged, match="part-00000000"):
        load_weights(run.uri, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_row_that_is_not_what_its_hash_says_is_refused(tmp_path: Path) -> None:
    wrong = {**ROWS[0], "response_ids": [5, 6, 8]}
    run = made_up_weights(str(tmp_path / "w"), [[wrong]])
    with pytest.raises(Damaged, match="tokens of sample s/0 don't have the hash"):
        load_weights(run.uri, cache=tmp_path / "cache")


def test_an_id_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    run = made_up_weights(str(tmp_path / "w"), [ROWS, ROWS[1:2]])
    with pytest.raises(Refused, match="1 sample ids occur twice, first s/1"):
        load_weights(run.uri, cache=tmp_path / "cache")


def test_weights_of_scores_that_have_changed_are_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = made_up_run(str(tmp_path / "r"), [score_rows(3)])
    uri = str(tmp_path / "r/weights/w")
    made_up_weights(uri, [ROWS])
    with pytest.raises(Refused, match=r"stale: the scores of .* have changed.*--name"):
        load_weights(uri, cache=tmp_path / "cache")  # "none" is not these scores' hash
    shutil.rmtree(uri)
    made_up_weights(uri, [ROWS], scores=source_hash(scores))
    assert len(load_weights(uri, cache=tmp_path / "cache")) == len(ROWS)
    elsewhere = str(shutil.move(uri, tmp_path / "elsewhere"))
    assert len(load_weights(elsewhere, cache=tmp_path / "cache")) == 3  # nothing to compare with

    def out_of_reach(uri: str) -> Run:
        if uri != elsewhere:
            raise StoreFailed("no access")
        return open_run(uri)

    with monkeypatch.context() as patch:  # as where the run is in a store of other credentials
        patch.setattr(table, "open_run", out_of_reach)
        assert len(load_weights(elsewhere, cache=tmp_path / "cache")) == 3
    edit_record(elsewhere, lambda info: info.update(run=scores.uri))
    assert len(load_weights(elsewhere, cache=tmp_path / "cache")) == 3
    made_up_run(str(tmp_path / "others"), [score_rows(4)])
    shutil.rmtree(tmp_path / "r")
    shutil.move(tmp_path / "others", tmp_path / "r")
    with pytest.raises(Refused, match=r"elsewhere is stale: the scores of .*/r have changed"):
        load_weights(elsewhere, cache=tmp_path / "cache")


def test_log_probabilities_of_either_policy(tmp_path: Path) -> None:
    table = score_rows(6, seed=1)
    from dlogp_ray.tables.token_hash import token_hash

    for name in ("token_hash", "prompt_hash"):
        ids = table["response_ids"].to_pylist()
        table = table.append_column(name, [[token_hash(one) for one in ids]])
    run = made_up_run(str(tmp_path / "r"), [table])
    for policy, column in (("base", "logp_base"), ("rl", "logp_rl")):
        logps = load_logps(run.uri, policy, cache=tmp_path / "cache")
        rows = table.to_pylist()
        names = [row["sample_id"] for row in rows]
        sums = logps.sums(names, [row["response_ids"] for row in rows])
        for row, found, total in zip(
            rows, logps.of(names, [r["response_ids"] for r in rows]), sums, strict=True
        ):
            np.testing.assert_array_equal(found, np.float32(row[column]))
            assert total == pytest.approx(sum(row[column]), rel=1e-12)
    with pytest.raises(Refused, match="scored base, rl, and not other"):
        load_logps(run.uri, "other")
    with pytest.raises(UnknownSample, match=r"which rows have none and why$"):  # none weighs 1
        load_logps(run.uri, "rl", cache=tmp_path / "cache")["nobody"]
    weights = made_up_weights(str(tmp_path / "w"), [ROWS])
    with pytest.raises(Refused, match="is of weights"):
        load_logps(weights.uri, "base")
