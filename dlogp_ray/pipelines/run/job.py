"""What every worker of a job needs to know, whatever the job is."""

import json
from dataclasses import dataclass, field
from typing import ClassVar

from dlogp_ray.config import BASE, RunConfig
from dlogp_ray.config.prompts import Prompts
from dlogp_ray.corpus.text import TextTokenizer
from dlogp_ray.pipelines.run.policies import KnownFiles, resolve_source, text_tokenizer
from dlogp_ray.policies.checkpoint import Checkpoint
from dlogp_ray.tables.kinds import Kind
from dlogp_ray.tables.object_folder import ObjectFolder


@dataclass(frozen=True)
class Job:
    """Small, and the same for all workers.

    Attributes:
        run_uri: Of the run that it makes.
        origin: What that is made from, as ``StoredRun.origin``; empty before it has begun.
        conditional: Whether the store creates objects conditionally.
    """

    run_uri: str
    origin: str = field(default="", kw_only=True)
    conditional: bool = field(default=True, kw_only=True)

    kind: ClassVar[Kind]
    """Of the table that it makes."""

    @property
    def run_id(self) -> str:
        """The run's name."""
        return self.run_uri.rpartition("/")[2]

    @property
    def max_unit_attempts(self) -> int:
        """How often a unit is tried when the process that does it dies."""
        return 3

    @property
    def speed(self) -> float | None:
        """The slowest that was measured of one worker, in what units count (``Unit.tokens``)."""
        return None

    @property
    def folder(self) -> ObjectFolder:
        """Where the units' objects are created."""
        return ObjectFolder(self.run_uri, self.kind, self.origin, self.conditional)


@dataclass(frozen=True)
class PolicyJob(Job):
    """Of a job whose workers hold policies.

    Attributes:
        config: With absolute addresses.
        known: Policy -> its files when they were hashed.
    """

    config: RunConfig
    known: KnownFiles = field(default=(), kw_only=True)

    @property
    def max_unit_attempts(self) -> int:
        """As the config says."""
        return self.config.max_unit_attempts

    @property
    def append_eos(self) -> bool:
        """Whether text responses end with an end-of-sequence token."""
        return False

    @property
    def max_tokens(self) -> int | None:
        """What a row's text may have, where that is checked after it is tokenised."""
        return None

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
            trust=self.config.trust,
        )

    def dtypes(self, device: str) -> dict[str, str]:
        """Of each policy's weights on a machine with such a device."""
        from dlogp_ray.scoring.products import choose_dtype  # with torch, which readers need not

        return {
            name: choose_dtype(self.config.dtype, self.checkpoint(name).saved_dtype, device)
            for name in self.config.policies
        }

    def text_tokenizer(self, prompts: Prompts | None = None) -> TextTokenizer:
        """What text rows go through; loaded once a process and run.

        Args:
            prompts: What is said of them; None for what the job says.
        """
        prompts = prompts or self.config
        return text_tokenizer(
            self.run_uri,
            self.config.tokenizer_policy,
            self.config.policies[self.config.tokenizer_policy],
            self.config.policies.get(BASE),
            self.known,
            prompts.prompt_format,
            self.append_eos,
            self.max_tokens,
            self.config.trust,
            json.dumps(prompts.template, sort_keys=True),
        )
