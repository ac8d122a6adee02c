"""What a score job will do, found out before Ray starts: files, checkpoints, units, fingerprint.

Everything that can be refused without loading weights is refused here, and nothing is written.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from dlogp_ray import store
from dlogp_ray.config import BASE, PolicySource, ScoreConfig
from dlogp_ray.corpus.carry import carry_types
from dlogp_ray.corpus.cutting import cut_units
from dlogp_ray.corpus.files import list_corpus
from dlogp_ray.corpus.rows import RowRules
from dlogp_ray.corpus.text import TextTokenizer
from dlogp_ray.corpus.units import Units, unit_name
from dlogp_ray.errors import Refused
from dlogp_ray.policies.adapters import resolve_adapter
from dlogp_ray.policies.checkpoint import Checkpoint, resolve
from dlogp_ray.policies.tokenizers import check_same, load_tokenizer
from dlogp_ray.scoring.engine import TOKEN_BUDGET, Engine, choose_dtype
from dlogp_ray.tables.schemas import SCHEMA_VERSION


@dataclass(frozen=True)
class ScoreJob:
    """What every worker needs to know; small, and the same for all.

    Attributes:
        config: With absolute addresses.
        rules: What rows are checked against.
        run_uri: Where objects are created.
        engine: How the run scores; None until that is chosen.
    """

    config: ScoreConfig
    rules: RowRules
    run_uri: str
    engine: Engine | None = None

    def object_uri(self, index: int) -> str:
        """Address of a unit's object."""
        return f"{self.run_uri}/scores/{unit_name(index)}.parquet"

    @property
    def base(self) -> str | None:
        """The policy that the others are compared with; None for a policy alone."""
        return BASE if len(self.config.policies) > 1 else None

    def checkpoint(self, name: str) -> Checkpoint:
        """The policy's files on this machine.

        Raises:
            Refused: They are missing or may not be loaded.
        """
        return resolve_source(
            name,
            self.config.policies[name],
            self.config.policies.get(BASE),
            trust_remote_code=self.config.trust_remote_code,
            allow_pickle=self.config.allow_pickle,
        )

    def default_engine(self, device: str) -> Engine:
        """What the config says, completed for a machine with such a device."""
        config = self.config
        return Engine(
            dtype={
                name: choose_dtype(config.dtype, self.checkpoint(name).saved_dtype, device)
                for name in config.policies
            },
            token_budget=config.token_budget or TOKEN_BUDGET[device],
            compiled=config.compile == "on",
        )

    def text_tokenizer(self) -> TextTokenizer:
        """What text rows go through; loaded once a process."""
        return _text_tokenizer(
            self.config.tokenizer_policy,
            self.config.policies[self.config.tokenizer_policy],
            self.config.policies.get(BASE),
            self.config.prompt_format,
            self.config.append_eos,
            self.config.trust_remote_code,
            self.config.allow_pickle,
        )


def resolve_source(
    name: str,
    source: PolicySource,
    base: PolicySource | None,
    *,
    trust_remote_code: bool,
    allow_pickle: bool,
) -> Checkpoint:
    """The files of a config's entry; ``base`` is the entry that an adapter needs."""
    if source.adapter is None or base is None:
        return resolve(
            name,
            source.address,
            source.revision,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )
    under = resolve_source(
        BASE, base, None, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
    )
    return resolve_adapter(
        name, source.adapter, source.revision, base=under, allow_pickle=allow_pickle
    )


@lru_cache(maxsize=4)
def _text_tokenizer(
    name: str,
    source: PolicySource,
    base: PolicySource | None,
    prompt_format: Any,
    append_eos: bool,
    trust_remote_code: bool,
    allow_pickle: bool,
) -> TextTokenizer:
    checkpoint = resolve_source(
        name, source, base, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
    )
    tokenizer = load_tokenizer(checkpoint, trust_remote_code=trust_remote_code)
    return TextTokenizer(tokenizer, prompt_format=prompt_format, append_eos=append_eos)


@dataclass(frozen=True)
class ScorePlan:
    """A checked job.

    Attributes:
        job: What the workers need.
        units: All work units.
        fingerprint: Everything that changes numbers, or the units' cut.
    """

    job: ScoreJob
    units: Units
    fingerprint: dict[str, Any]

    @property
    def tokens(self) -> int:
        """Prompt and response tokens of the corpus, about."""
        return self.units.tokens

    @property
    def size_bytes(self) -> int:
        """Bytes of the corpus, as stored."""
        return self.units.size_bytes


def plan_score(config: ScoreConfig) -> ScorePlan:
    """Check corpus, checkpoints and pair; cut the work units.

    Raises:
        Refused: Something is missing or does not fit.
    """
    config = _with_absolute_addresses(config)
    files = list_corpus(config.corpus)
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
    _check_tokenizers(config, checkpoints)
    limits = [c.max_tokens for c in checkpoints.values() if c.max_tokens is not None]
    rules = RowRules(
        vocab_size=min(checkpoint.vocab_size for checkpoint in checkpoints.values()),
        max_tokens=min(limits, default=None),
        columns=config.columns,
        carry=carry_types(config.carry, files[0]),
    )
    fingerprint = {
        "schema_version": SCHEMA_VERSION,
        "corpus": {f.uri: {"size_bytes": f.size_bytes, "version": f.version} for f in files},
        "policies": {
            name: {
                "files": checkpoint.identity(),
                "step": config.policies[name].step,
                "dtype": checkpoint.saved_dtype if config.dtype == "auto" else config.dtype,
            }
            for name, checkpoint in checkpoints.items()
        },
        "columns": config.columns,
        "carry": dict(rules.carry),
        "prompt_format": config.prompt_format,
        "append_eos": config.append_eos,
        "tokenize_with": config.tokenizer_policy,
        "temperature": config.temperature,
        "statistics": config.statistics,
        "unit_tokens": config.unit_tokens,
    }
    store.check_writable(config.run_uri, conditional=not config.single_writer)
    units = cut_units(files, config.unit_tokens, config.columns)
    return ScorePlan(ScoreJob(config, rules, config.run_uri), units, fingerprint)


def _with_absolute_addresses(config: ScoreConfig) -> ScoreConfig:
    output = store.absolute(config.output)
    if "://" not in config.output and "/runtime_resources/working_dir_files/" in output:
        raise Refused(
            f"output {config.output}: in a submitted job the current folder is a temporary copy; "
            "give an absolute path or a URL"
        )
    return config.model_copy(
        update={
            "corpus": tuple(store.absolute(pattern) for pattern in config.corpus),
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


def _check_tokenizers(config: ScoreConfig, checkpoints: dict[str, Checkpoint]) -> None:
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
        append_eos=config.append_eos,
    )
