"""What every worker of a job needs to know, whatever the job is."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from dlogp_ray import store
from dlogp_ray.config import BASE, PolicySource, RunConfig
from dlogp_ray.corpus.text import TextTokenizer
from dlogp_ray.errors import Refused
from dlogp_ray.policies.adapter_files import resolve_adapter
from dlogp_ray.policies.checkpoint import Checkpoint, Files, resolve
from dlogp_ray.policies.tokenizers import check_same, load_tokenizer
from dlogp_ray.tables.kinds import Kind
from dlogp_ray.tables.object_folder import ObjectFolder

Config = TypeVar("Config", bound=RunConfig)


@dataclass(frozen=True)
class Job:
    """Small, and the same for all workers.

    Attributes:
        config: With absolute addresses.
        run_uri: Where objects are created.
        known: Policy -> its files when they were hashed.
        origin: Of the run that they belong to, as ``StoredRun.origin``; empty before it has begun.
    """

    config: RunConfig
    run_uri: str
    known: tuple[tuple[str, Files], ...] = field(default=(), kw_only=True)
    origin: str = field(default="", kw_only=True)

    kind: ClassVar[Kind]
    """Of the table that it makes."""

    @property
    def append_eos(self) -> bool:
        """Whether text responses end with an end-of-sequence token."""
        return False

    @property
    def max_tokens(self) -> int | None:
        """What a row's text may have, where that is checked after it is tokenised."""
        return None

    @property
    @abstractmethod
    def speed(self) -> float | None:
        """The slowest that was measured of one actor, in what units count (``Unit.tokens``)."""

    @property
    def folder(self) -> ObjectFolder:
        """Where the units' objects are created."""
        conditional = not self.config.single_writer
        return ObjectFolder(self.run_uri, self.kind, self.origin, conditional)

    def checkpoint(self, name: str) -> Checkpoint:
        """The policy's files on this machine.

        Raises:
            Refused: They are missing or may not be loaded.
        """
        return resolve_source(
            name,
            self.config.policies[name],
            self.config.policies.get(BASE),
            self.known,
            trust_remote_code=self.config.trust_remote_code,
            allow_pickle=self.config.allow_pickle,
        )

    def dtypes(self, device: str) -> dict[str, str]:
        """Of each policy's weights on a machine with such a device."""
        from dlogp_ray.scoring.products import choose_dtype  # with torch, which readers need not

        return {
            name: choose_dtype(self.config.dtype, self.checkpoint(name).saved_dtype, device)
            for name in self.config.policies
        }

    def text_tokenizer(self) -> TextTokenizer:
        """What text rows go through; loaded once a process and run."""
        return _text_tokenizer(
            self.run_uri,  # its files are the run's own: another run may find others there
            self.config.tokenizer_policy,
            self.config.policies[self.config.tokenizer_policy],
            self.config.policies.get(BASE),
            self.known,
            self.config.prompt_format,
            self.append_eos,
            self.max_tokens,
            self.config.trust_remote_code,
            self.config.allow_pickle,
        )


def resolve_source(
    name: str,
    source: PolicySource,
    base: PolicySource | None,
    known: tuple[tuple[str, Files], ...] = (),
    *,
    trust_remote_code: bool,
    allow_pickle: bool,
) -> Checkpoint:
    """The files of a config's entry.

    Args:
        name: Of the policy.
        source: The entry.
        base: The one that an adapter needs.
        known: Policy -> its files, where they have been hashed.
        trust_remote_code: As the config says.
        allow_pickle: The same.
    """
    files = dict(known).get(name)
    if source.adapter is None or base is None:
        found = resolve(
            name,
            source.address,
            source.revision,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )
        return replace(found, known=files)
    under = resolve_source(
        BASE, base, None, known, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
    )
    adapter = resolve_adapter(
        name, source.adapter, source.revision, base=under, allow_pickle=allow_pickle
    )
    return replace(adapter, known=files)


@lru_cache(maxsize=4)
def _text_tokenizer(
    run_uri: str,
    name: str,
    source: PolicySource,
    base: PolicySource | None,
    known: tuple[tuple[str, Files], ...],
    prompt_format: Any,
    append_eos: bool,
    max_tokens: int | None,
    trust_remote_code: bool,
    allow_pickle: bool,
) -> TextTokenizer:
    checkpoint = resolve_source(
        name, source, base, known, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
    )
    tokenizer = load_tokenizer(checkpoint, trust_remote_code=trust_remote_code)
    return TextTokenizer(
        tokenizer,
        prompt_format=prompt_format,
        append_eos=append_eos,
        ends=checkpoint.end_tokens(tokenizer),
        max_tokens=max_tokens,
    )


def checked_checkpoints(config: RunConfig, *, append_eos: bool = False) -> dict[str, Checkpoint]:
    """The files of all policies, hashed, which speak of the same ids.

    Raises:
        InputChanged: One is written to meanwhile.
        Refused: One is missing or may not be loaded, or their tokenizers or vocabularies differ.
    """
    _text_tokenizer.cache_clear()  # files may have changed since they were looked at last
    checkpoints = {
        name: resolve_source(
            name,
            source,
            config.policies.get(BASE),
            trust_remote_code=config.trust_remote_code,
            allow_pickle=config.allow_pickle,
        )
        for name, source in config.policies.items()
    }
    checkpoints = {name: replace(one, known=one.know()) for name, one in checkpoints.items()}
    tokenizers = {
        name: load_tokenizer(checkpoint, trust_remote_code=config.trust_remote_code)
        for name, checkpoint in checkpoints.items()
    }
    check_same(tokenizers)
    for name, checkpoint in checkpoints.items():
        highest = max(tokenizers[name].get_vocab().values(), default=-1)
        if highest >= checkpoint.vocab_size:
            raise Refused(
                f"policy {name} ({checkpoint.source}): vocab sizes are incompatible: the lm head "
                f"has {checkpoint.vocab_size} rows, and the tokenizer's ids go up to {highest}"
            )
    # Refuses a prompt format that the tokenizer can't serve.
    TextTokenizer(
        tokenizers[config.tokenizer_policy],
        prompt_format=config.prompt_format,
        append_eos=append_eos,
    )
    return checkpoints


def known_files(checkpoints: Mapping[str, Checkpoint]) -> tuple[tuple[str, Files], ...]:
    """Policy -> its files, as workers are told of them."""
    return tuple((name, one.known) for name, one in checkpoints.items() if one.known is not None)


def policies_fingerprint(
    config: RunConfig, checkpoints: Mapping[str, Checkpoint]
) -> dict[str, dict[str, Any]]:
    """What of the policies changes numbers."""
    return {
        name: {
            "files": checkpoint.identity(),
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
            inputs: tuple(store.absolute(pattern) for pattern in getattr(config, inputs)),
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


def _absolute_folder(path: str) -> str:
    """Folders become absolute; what is no folder may be a hub id and stays."""
    folder = Path(path).expanduser()
    return str(folder.resolve()) if "://" not in path and folder.exists() else path
