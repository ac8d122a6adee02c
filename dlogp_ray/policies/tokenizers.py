"""Tokenizers of a pair: loading them, and the check that they give the same ids."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from dlogp_ray.config.trust import NO_TRUST, Trust
from dlogp_ray.errors import Refused
from dlogp_ray.policies.checkpoint import Checkpoint

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "vocab.txt")


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The checkpoint's tokenizer; of an adapter without one, its base's.

    Raises:
        Refused: The folder holds none, or it can't be loaded.
        InputChanged: Its files are not those that were hashed.
    """
    label = f"policy {checkpoint.name} ({checkpoint.source})"
    if not any((checkpoint.folder / name).is_file() for name in _FILES):
        if checkpoint.base is not None:
            return load_tokenizer(checkpoint.base)
        raise Refused(
            f"{label}: there is no tokenizer in the folder, so that nothing shows that its token "
            "ids mean what the other policies' do; copy the tokenizer files of the policy there"
        )
    with checkpoint.held_open(weights=False) as folder:
        return load_tokenizer_folder(folder, label, checkpoint.trust)


def load_tokenizer_folder(folder: Path, label: str, trust: Trust = NO_TRUST) -> Any:
    """The tokenizer in ``folder``; ``label`` names it in errors."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust.remote_code)
    except Exception as error:
        raise Refused(f"{label}: its tokenizer can't be loaded: {error}") from error


def surfaces(folder: Path) -> Callable[[int], str]:
    """How each id looks, by the tokenizer in ``folder``; transformers and torch only where needed.

    Raises:
        Refused: It can't be loaded.
    """
    whole, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    tidied = settings.is_file() and '"clean_up_tokenization_spaces": true' in settings.read_text(
        encoding="utf-8"
    )
    if whole.is_file() and not tidied:
        try:
            backend = Tokenizer.from_file(str(whole))
        except Exception as error:  # the library's own are of no other type
            raise Refused(f"{whole}: it can't be loaded: {error}") from error
        return lambda token: backend.decode([token], skip_special_tokens=False)
    tokenizer = load_tokenizer_folder(folder, str(folder))
    return lambda token: str(tokenizer.decode([token]))


def check_same(tokenizers: Mapping[str, Any]) -> None:
    """Check that all policies' tokenizers turn text into the same ids.

    Vocabulary, merges, normalisation, pre-tokenisation and added (special) tokens must be equal.
    Which of the tokens plays the end of sequence or the padding may differ: it changes no id.

    Raises:
        Refused: Two differ; the first difference is named.
    """
    (first_name, first), *others = tokenizers.items()
    for name, tokenizer in others:
        difference = _difference(first_name, first, name, tokenizer)
        if difference:
            raise Refused(
                f"policies {first_name} and {name} have different tokenizers: {difference}. Only "
                "policies with the same token ids can be compared"
            )


def _difference(name_a: str, a: Any, name_b: str, b: Any) -> str | None:
    vocabulary_a, vocabulary_b = a.get_vocab(), b.get_vocab()
    for token in sorted(vocabulary_a.keys() | vocabulary_b.keys()):
        id_a, id_b = vocabulary_a.get(token), vocabulary_b.get(token)
        if id_a != id_b:
            return (
                f"token {token!r} is {_id(id_a)} in {name_a} ({len(vocabulary_a)} tokens) and "
                f"{_id(id_b)} in {name_b} ({len(vocabulary_b)} tokens)"
            )
    special_a, special_b = _added(a), _added(b)
    for token in sorted(special_a.keys() | special_b.keys()):
        if special_a.get(token) != special_b.get(token):
            return f"the added token {token!r} is special in only one of them, or differs"
    parts_a, parts_b = _backend(a), _backend(b)
    for part in sorted(parts_a.keys() | parts_b.keys()):
        if parts_a.get(part) != parts_b.get(part):
            return f"their {part} differ"
    return None


def _id(value: int | None) -> str:
    return "absent" if value is None else f"id {value}"


def _added(tokenizer: Any) -> dict[str, tuple[int, bool]]:
    return {
        token.content: (index, token.special)
        for index, token in tokenizer.added_tokens_decoder.items()
    }


def _backend(tokenizer: Any) -> dict[str, Any]:
    if not tokenizer.is_fast:
        return {}
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    return {
        "merges": model.get("merges"),
        "tokenisation models": {k: v for k, v in model.items() if k not in ("vocab", "merges")},
        "normalizers": state["normalizer"],
        "pre-tokenizers": state["pre_tokenizer"],
    }
