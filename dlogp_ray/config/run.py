"""What the configs of all jobs share that make a run with policies."""

import re
from os import PathLike
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from dlogp_ray.config.explaining import cut
from dlogp_ray.config.job import JobConfig, RunOn, Uri
from dlogp_ray.config.model import ConfigModel
from dlogp_ray.config.prompts import Prompts
from dlogp_ray.config.trust import Trust
from dlogp_ray.errors import Refused

BASE = "base"
"""The name of the policy that the others are compared with."""

_RUN_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_POLICY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class PolicySource(ConfigModel):
    """Where one policy comes from: a local folder, an fsspec URL, or a hub id with a revision."""

    path: Uri | None = None
    adapter: Uri | None = None
    """Instead of a path: a peft adapter (LoRA) for the policy called ``base``, whose weights it
    shares."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    step: Annotated[int, Field(ge=0)] | None = None
    """Training step of the checkpoint, written into the table."""

    @model_validator(mode="after")
    def _one_address(self) -> Self:
        if (self.path is None) == (self.adapter is None):
            raise ValueError("expected either a path (a whole checkpoint) or an adapter")
        return self

    @property
    def address(self) -> str:
        """The path, or the adapter's."""
        return self.path or self.adapter or ""


def _as_source(value: object) -> object:
    return {"path": value} if isinstance(value, str | PathLike) else value


MAX_ROW_BYTES = 64 * 2**20


class ActorRange(ConfigModel):
    """How many actors a job has: so many at least, and more as the cluster has room."""

    min: Annotated[int, Field(ge=1)] = 1
    max: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        return self


def _as_range(value: object) -> object:
    if isinstance(value, dict | ActorRange) or value is None:
        return value
    try:
        count = int(value) if isinstance(value, str | int) and value is not True else 0
    except ValueError:
        count = 0
    if count < 1:
        raise ValueError("expected a whole number of 1 or more, or {min: 1, max: 64}")
    return {"min": count, "max": count}


class RunConfig(JobConfig, Prompts):
    """Policies, where the run goes, and what its actors hold."""

    policies: Annotated[
        dict[
            str,
            Annotated[
                PolicySource, BeforeValidator(_as_source, json_schema_input_type=PolicySource | Uri)
            ],
        ],
        Field(min_length=1, examples=["policies: {base: checkpoints/base, rl: checkpoints/rl}"]),
    ]
    """By name. One alone, or one called ``base`` and any number of others."""
    output: Annotated[Uri, Field(examples=["output: runs"])]
    """Folder or URL under which the run's own folder is made."""
    run_id: Annotated[str, Field(examples=["run_id: my-first-run"])]
    """Name of the run: ``^[a-z0-9][a-z0-9._-]{0,62}$``."""
    tokenize_with: str | None = None
    """Policy whose tokenizer and chat template text rows go through (default: the last one)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of weights and hidden states; auto is what the checkpoint was saved in, or float32 where the
    machine is slower with that. The statistics are always float32."""
    run_on: RunOn = "auto"
    """``here``: in this process, one unit after the other. ``ray``: by actors of a Ray, which is
    started on this machine where ``RAY_ADDRESS`` names none. ``auto``: here, where one actor is
    enough and all units take it less time than Ray's start."""
    actors: Annotated[
        ActorRange | None,
        BeforeValidator(_as_range, json_schema_input_type=ActorRange | int | None),
    ] = Field(None, examples=["actors: 4", "actors: {min: 1, max: 8}"])
    """Scoring actors, each with all policies in memory: a number, or a range as in
    ``{min: 1, max: 64}``, for a cluster that adds nodes while units wait (default: one a GPU, else
    as many as ``threads_per_actor`` leaves CPUs for)."""
    gpus_per_actor: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """A fraction for small policies, several for large ones: each policy's layers are spread over
    them (default: 1 where the cluster has GPUs, else 0)."""
    threads_per_actor: Annotated[int, Field(ge=1)] | None = None
    """CPU threads of one actor's tensor operations (default: the CPUs divided among
    ``actors`` where these are given; else as few as memory allows, or, in a long job, what scores
    most on a node; 1 on a GPU)."""
    timeout_start: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Seconds that a job through Ray waits for room in the cluster, before policies are tried and
    again before units are done, and is refused then (default: for ever; what it waits for is
    said)."""
    max_unit_attempts: Annotated[int, Field(ge=1)] = 3
    """How often a unit is tried when the process that scores it dies."""
    max_rejected: Annotated[int, Field(ge=0)] = 0
    """More rejected rows than this end the job with exit code 3 (all others are in the table)."""
    seal_partial: bool = False
    """Seal the run although units failed; they are left out for good."""
    single_writer: bool = False
    """Nobody else writes to this run. For stores that can't create objects conditionally: there two
    jobs at once on one run could undo each other's work."""
    trust_remote_code: bool = False
    """Run Python code that comes with a checkpoint."""
    allow_pickle: bool = False
    """Load checkpoints that hold no safetensors file; unpickling runs code."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not _RUN_ID.fullmatch(self.run_id):
            raise ValueError(
                f"run_id {cut(self.run_id)!r} must match ^{_RUN_ID.pattern}$ "
                "(lower case, no path separators)"
            )
        for name in self.policies:
            if not _POLICY_NAME.fullmatch(name):
                raise ValueError(f"policy name {cut(name)!r} must match ^{_POLICY_NAME.pattern}$")
        if len(self.policies) > 1 and BASE not in self.policies:
            raise ValueError(
                f"policies {', '.join(self.policies)}: with more than one, one must be called "
                f"{BASE!r}: the others are compared with it"
            )
        gpus = self.gpus_per_actor
        if gpus is not None and gpus > 1 and gpus != int(gpus):
            raise ValueError(f"gpus_per_actor {gpus:g}: above 1 they must be whole GPUs")
        adapters = [name for name, source in self.policies.items() if source.adapter is not None]
        if adapters and (BASE not in self.policies or BASE in adapters):
            raise ValueError(
                f"policies.{adapters[0]}.adapter: an adapter needs a policy called {BASE!r} with "
                "a path, on whose weights it is"
            )
        if self.tokenize_with is not None and self.tokenize_with not in self.policies:
            raise ValueError(
                f"tokenize_with: no policy is called {self.tokenize_with!r}; "
                f"there are {', '.join(self.policies)}"
            )
        return self

    def _fill(self, values: dict[Any, Any], source: str) -> None:
        missing = [name for name in _required(type(self)) if name not in values]
        for other in RunConfig.__subclasses__():
            if missing and set(_required(other)) <= values.keys():
                job = other.__name__.removesuffix("Config").lower()
                raise Refused(
                    f"{source}: it has no {' and no '.join(missing)}, and what the job of another "
                    f"command needs: `dlogp {job}` takes it"
                )
        super()._fill(values, source)

    @property
    def trust(self) -> Trust:
        """What of the checkpoints may be run."""
        return Trust(self.trust_remote_code, self.allow_pickle)

    @property
    def compared(self) -> tuple[str, ...]:
        """The policies that get a row a sample: all but the base, or the only one."""
        others = tuple(name for name in self.policies if name != BASE)
        return others or (BASE,)

    @property
    def tokenizer_policy(self) -> str:
        """The policy whose tokenizer text rows go through."""
        return self.tokenize_with or self.compared[-1]

    @property
    def run_uri(self) -> str:
        """Where the run lives."""
        return f"{self.output.rstrip('/')}/{self.run_id}"


def _required(kind: type[JobConfig]) -> list[str]:
    return [name for name, field in kind.model_fields.items() if field.is_required()]
