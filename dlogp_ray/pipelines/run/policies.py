"""The policies that a job's config names: their files, hashed, and what they speak of."""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from dlogp_ray import store
from dlogp_ray.config import BASE, CorpusEntry, PolicySource, RunConfig, ScoreConfig
from dlogp_ray.config.trust import Trust
from dlogp_ray.corpus.text import TextTokenizer
from dlogp_ray.errors import Refused
from dlogp_ray.events import tell
from dlogp_ray.policies.adapter_files import resolve_adapter
from dlogp_ray.policies.checkpoint import Checkpoint, Files, resolve
from dlogp_ray.policies.tokenizers import check_same, load_tokenizer

Config = TypeVar("Config", bound=RunConfig)
KnownFiles = tuple[tuple[str, Files], ...]
"""Policy -> its files when they were hashed."""


def resolve_source(
    name: str,
    source: PolicySource,
    base: PolicySource | None,
    known: KnownFiles = (),
    *,
    trust: Trust,
) -> Checkpoint:
    """The files of a config's entry.

    Args:
        name: Of the policy.
        source: The entry.
        base: The one that an adapter needs.
        known: Policy -> its files, where they have been hashed.
        trust: As the config says.
    """
    files = dict(known).get(name)
    if source.adapter is None or base is None:
        checkpoint = resolve(
            name,
            source.address,
            source.revision,
            trust=trust,
        )
        return replace(checkpoint, known=files)
    under = resolve_source(BASE, base, None, known, trust=trust)
    adapter = resolve_adapter(name, source.adapter, source.revision, base=under)
    return replace(adapter, known=files)


@lru_cache(maxsize=8)
def text_tokenizer(
    run_uri: str,
    name: str,
    source: PolicySource,
    base: PolicySource | None,
    known: KnownFiles,
    prompt_format: Any,
    append_eos: bool,
    max_tokens: int | None,
    trust: Trust,
    template: str,
) -> TextTokenizer:
    """What text rows go through; loaded once a process and run.

    Args:
        run_uri: Of the run: its files are its own, and another run may find others there.
        name: Of the policy whose tokenizer it is.
        source: Its entry.
        base: As for ``resolve_source``, like the next and the last.
        known: The same.
        prompt_format: How a text prompt becomes tokens.
        append_eos: Whether text responses end with an end-of-sequence token.
        max_tokens: What a row's text may have.
        trust: As the config says.
        template: Arguments of the chat template, as JSON.
    """
    checkpoint = resolve_source(name, source, base, known, trust=trust)
    tokenizer = load_tokenizer(checkpoint)
    return TextTokenizer(
        tokenizer,
        prompt_format=prompt_format,
        append_eos=append_eos,
        template=json.loads(template),
        ends=checkpoint.end_tokens(tokenizer),
        max_tokens=max_tokens,
    )


def checked_checkpoints(config: RunConfig, *, append_eos: bool = False) -> dict[str, Checkpoint]:
    """The files of all policies, hashed, which speak of the same ids.

    Raises:
        InputChanged: One is written to meanwhile.
        Refused: One is missing or may not be loaded, or their tokenizers or vocabularies differ.
    """
    text_tokenizer.cache_clear()  # files may have changed since they were looked at last
    checkpoints = {
        name: resolve_source(
            name,
            source,
            config.policies.get(BASE),
            trust=config.trust,
        )
        for name, source in config.policies.items()
    }
    checkpoints = {name: replace(one, known=one.know()) for name, one in checkpoints.items()}
    tokenizers = {name: load_tokenizer(checkpoint) for name, checkpoint in checkpoints.items()}
    check_same(tokenizers)
    for name, checkpoint in checkpoints.items():
        highest = max(tokenizers[name].get_vocab().values(), default=-1)
        if highest >= checkpoint.vocab_size:
            raise Refused(
                f"policy {name} ({checkpoint.source}): vocab sizes are incompatible: the lm head "
                f"has {checkpoint.vocab_size} rows, and the tokenizer's ids go up to {highest}"
            )
    for prompts in (config, *(config.entries if isinstance(config, ScoreConfig) else ())):
        # Refuses a prompt format that the tokenizer can't serve.
        TextTokenizer(
            tokenizers[config.tokenizer_policy],
            prompt_format=prompts.prompt_format,
            append_eos=append_eos,
        )
    return checkpoints


def known_files(checkpoints: Mapping[str, Checkpoint]) -> KnownFiles:
    """Policy -> its files, as workers are told of them."""
    return tuple(
        (name, checkpoint.known)
        for name, checkpoint in checkpoints.items()
        if checkpoint.known is not None
    )


def policies_fingerprint(
    config: RunConfig, checkpoints: Mapping[str, Checkpoint]
) -> dict[str, dict[str, Any]]:
    """What of the policies changes numbers."""
    files = {name: checkpoint.identity() for name, checkpoint in checkpoints.items()}
    for name in config.compared:
        if name != BASE and files[name] == files.get(BASE):
            said = f"policies {BASE} and {name} have the same files: every Δlog p of theirs is 0"
            tell("same policies", said, policies=[BASE, name])
    return {
        name: {
            "files": files[name],
            "step": config.policies[name].step,
            "dtype": checkpoint.saved_dtype if config.dtype == "auto" else config.dtype,
        }
        for name, checkpoint in checkpoints.items()
    }


def with_absolute_addresses(config: Config, inputs: str) -> Config:
    """The config with absolute addresses of its ``inputs`` (a field), output and policies.

    Raises:
        Refused: The output would be in a submitted job's temporary folder.
    """
    output = store.absolute(config.output)
    if "://" not in config.output and "/runtime_resources/working_dir_files/" in output:
        raise Refused(
            f"output {config.output}: in a submitted job the current folder is a temporary copy; "
            "give an absolute path or a URL"
        )
    return config.model_copy(
        update={
            inputs: tuple(map(_absolute, getattr(config, inputs))),
            "output": output,
            "policies": {
                name: source.model_copy(
                    update={
                        "path" if source.adapter is None else "adapter": _absolute_folder(
                            source.address
                        )
                    }
                )
                for name, source in config.policies.items()
            },
        }
    )


def _absolute(input_: str | CorpusEntry) -> str | CorpusEntry:
    if isinstance(input_, CorpusEntry):
        return input_.model_copy(update={"path": store.absolute(input_.path)})
    return store.absolute(input_)


def _absolute_folder(path: str) -> str:
    """Folders become absolute; what is no folder may be a hub id and stays."""
    folder = Path(path).expanduser()
    return str(folder.resolve()) if "://" not in path and folder.exists() else path
