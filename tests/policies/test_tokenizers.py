"""Policies are compared only when their token ids mean the same; else the difference is named."""

from pathlib import Path
from typing import Any

import pytest
from conftest import make_policy_folder, make_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dlogp_ray.errors import Refused
from dlogp_ray.policies.checkpoint import resolve
from dlogp_ray.policies.tokenizers import check_same, load_tokenizer, surfaces


def make_bpe(merges: list[tuple[str, str]]) -> Any:
    vocabulary = {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocabulary, merges)))


def test_the_same_tokenizer_passes() -> None:
    check_same({"base": make_tokenizer(), "rl": make_tokenizer(), "later": make_tokenizer()})
    check_same({"alone": make_tokenizer()})


def test_a_swapped_vocabulary_is_refused_with_its_first_token() -> None:
    # "a" comes before "b" in sorted order; their ids are 2 and 3, and the other way round
    with pytest.raises(Refused, match=r"base and rl .* token 'a' is id 2 in base .* id 3 in rl"):
        check_same({"base": make_tokenizer("ab"), "rl": make_tokenizer("ba")})


def test_a_token_that_only_one_has_is_refused() -> None:
    with pytest.raises(Refused, match=r"'c' is absent in base \(4 tokens\) and id 4 in rl"):
        check_same({"base": make_tokenizer("ab"), "rl": make_tokenizer("abc")})


def test_the_third_policy_is_checked_too() -> None:
    with pytest.raises(Refused, match=r"policies base and later have different tokenizers"):
        check_same({"base": make_tokenizer(), "rl": make_tokenizer(), "later": make_tokenizer("a")})


def test_another_order_of_merges_is_refused() -> None:
    first, second = ("a", "b"), ("b", "c")
    base, rl = make_bpe([first, second]), make_bpe([second, first])
    # the same vocabulary cuts one text differently: ab|c and a|bc
    assert (base("abc").input_ids, rl("abc").input_ids) == ([3, 2], [0, 4])
    with pytest.raises(Refused, match=r"their merges differ"):
        check_same({"base": base, "rl": rl})


def test_an_additional_special_token_is_refused() -> None:
    rl = make_tokenizer()
    rl.add_special_tokens({"additional_special_tokens": ["<think>"]})
    with pytest.raises(Refused, match=r"'<think>' is absent in base"):
        check_same({"base": make_tokenizer(), "rl": rl})


def test_a_token_that_is_special_in_only_one_is_refused() -> None:
    rl = make_tokenizer()
    rl.add_tokens(["a"], special_tokens=True)
    assert rl.get_vocab() == make_tokenizer().get_vocab()
    with pytest.raises(Refused, match=r"'a' is special in only one"):
        check_same({"base": make_tokenizer(), "rl": rl})


def test_another_normaliser_is_refused() -> None:
    rl = make_tokenizer()
    rl.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(Refused, match=r"their normalizers differ"):
        check_same({"base": make_tokenizer(), "rl": rl})


def test_another_pre_tokeniser_is_refused() -> None:
    rl = make_tokenizer()
    rl.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(Refused, match=r"their pre-tokenizers differ"):
        check_same({"base": make_tokenizer(), "rl": rl})


def test_another_end_of_sequence_role_passes() -> None:
    rl = make_tokenizer()
    rl.eos_token = "<pad>"
    base = make_tokenizer()
    assert rl.eos_token_id != base.eos_token_id
    check_same({"base": base, "rl": rl})


def test_a_saved_tokenizer_is_the_same_after_loading(tmp_path: Path) -> None:
    folder = make_policy_folder(tmp_path, seed=0)
    check_same({"made": make_tokenizer(), "loaded": load_tokenizer(resolve("p", str(folder)))})


def test_a_missing_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = make_policy_folder(tmp_path, seed=0)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(Refused, match=r"policy p .* there is no tokenizer in the folder"):
        load_tokenizer(resolve("p", str(folder)))


def test_a_damaged_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = make_policy_folder(tmp_path, seed=0)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(Refused, match=r"policy p .* its tokenizer can't be loaded"):
        load_tokenizer(resolve("p", str(folder)))


@pytest.mark.parametrize("tidied", [False, True])
def test_ids_look_as_transformers_decodes_them(tidied: bool, tmp_path: Path) -> None:
    """With ``clean_up_tokenization_spaces`` a lone `` .`` is shown without its space."""
    pieces = ["<pad>", "<eos>", "a", "Ġb", " .", "é", "\n"]
    backend = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, "<pad>"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=tidied,
    )
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    look = surfaces(tmp_path)
    seen = [look(token) for token in range(len(pieces))]
    assert seen == [loaded.decode([token]) for token in range(len(pieces))]
    assert seen[4] == (" ." if not tidied else ".")


def test_a_tokenizer_file_that_is_torn_is_refused(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    whole = tmp_path / "tokenizer.json"
    whole.write_text(whole.read_text()[:-100])
    with pytest.raises(Refused, match=r"tokenizer.json: it can't be loaded"):
        surfaces(tmp_path)
