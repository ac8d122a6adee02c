"""One frozen model per job: the only home of defaults, saved with the output.

A config is YAML (or keyword arguments from Python). Unknown fields are refused. Credentials are
never part of it: object stores take theirs from the environment or the usual files.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from dlogp_ray.errors import Refused

BASE = "base"
"""The name of the policy that the others are compared with."""

CORPUS_COLUMNS = (
    "sample_id",
    "prompt_ids",
    "response_ids",
    "prompt",
    "messages",
    "response",
    "generator",
    "temperature",
    "top_p",
    "group_id",
    "reward",
    "response_mask",
)

CarryType = Literal["string", "int64", "float64", "bool"]

_RUN_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_POLICY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


# In any link of a chain (simplecache::s3://…); abfs://container@account names no secret. Or in a
# signed address, which opens an object to whoever reads it.
_CREDENTIALS = re.compile(
    r"(?<!abfs)(?<!abfss)://[^/]*@"
    r"|[?&](x-amz-|x-goog-)?(credential|security-token|signature|sig|token|access_token)=",
    re.IGNORECASE,
)


def check_address(uri: str) -> str:
    """An address as it came, where it is one that a job may keep.

    Raises:
        ValueError: It is empty, or carries credentials; they are not repeated.
    """
    if not uri.rpartition("://")[2]:
        raise ValueError(f"expected a path or URL, got {uri!r}, which names no folder or file")
    if _CREDENTIALS.search(uri):
        raise ValueError(
            "the address carries credentials; take them out and set them in the environment"
        )
    return uri


Uri = Annotated[str, AfterValidator(check_address)]


class JobConfig(BaseModel):
    """What the configs of all jobs share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def from_mapping(cls, values: object, *, source: str = "config") -> Self:
        """Check ``values``; every problem is named with its field and the value that came.

        Raises:
            Refused: A field is unknown, missing, of the wrong type, or contradicts another.
        """
        if not isinstance(values, dict):
            raise Refused(f"{source}: expected a mapping of fields, got {type(values).__name__}")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            lines = [_explain(problem, cls) for problem in error.errors()]
            raise Refused(f"{source}:\n" + "\n".join(f"  {line}" for line in lines)) from None


class PolicySource(BaseModel):
    """Where one policy comes from: a local folder, an fsspec URL, or a hub id with a revision."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    return {"path": value} if isinstance(value, str) else value


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


class ActorRange(BaseModel):
    """How many actors a job has: so many at least, and more as the cluster has room."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min: Annotated[int, Field(ge=1)] = 1
    max: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        return self


def _as_range(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return {"min": value, "max": value}
    return value


class ScoreConfig(JobConfig):
    """A score job: corpus and policies in, a table of per-token statistics out."""

    corpus: Annotated[tuple[Uri, ...], BeforeValidator(_as_list), Field(min_length=1)]
    """JSONL or Parquet files, folders or globs, local or on any fsspec URL."""
    policies: Annotated[
        dict[str, Annotated[PolicySource, BeforeValidator(_as_source)]], Field(min_length=1)
    ]
    """By name. One alone, or one called ``base`` and any number of others."""
    output: Uri
    """Folder or URL under which the run's own folder is made."""
    run_id: str
    """Name of the run: ``^[a-z0-9][a-z0-9._-]{0,62}$``."""

    columns: dict[str, str] = {}
    """Standard column name -> the name that it has in this corpus."""
    carry: tuple[str, ...] | dict[str, CarryType] = ()
    """Metadata columns to carry into the table; a mapping also fixes their types."""
    prompt_format: Literal["raw", "chat"] = "raw"
    """How a text ``prompt`` becomes tokens: as it is, or as one user message of the chat template.
    ``messages`` always go through the chat template."""
    append_eos: bool = False
    """Whether the end-of-sequence token is scored as the last token of a text response."""
    tokenize_with: str | None = None
    """Policy whose tokenizer and chat template text rows go through (default: the last one)."""

    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Logits are divided by it before every statistic."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of weights and hidden states; auto is what the checkpoint was saved in, or float32 where the
    machine is slower with that. The statistics are always float32."""
    statistics: Literal["all", "sampled"] = "all"
    """What to compute: all columns, or only ``logp_base``, ``logp_rl`` and ``delta_logp`` of the
    sampled tokens, which costs less; the other columns are null then."""

    unit_tokens: Annotated[int, Field(ge=1)] = 2_000_000
    """Prompt and response tokens of one work unit, about. One to five minutes of one actor is
    right."""
    token_budget: Annotated[int, Field(ge=1)] | None = None
    """Tokens of one forward pass; a longer sequence runs in several (default: 2,048 on a CPU,
    16,384 on a GPU)."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether ``torch.compile`` fuses the policies' layers and the statistics; auto tries it where
    the job is long enough to pay for it, and keeps what ends sooner."""
    actors: Annotated[ActorRange | None, BeforeValidator(_as_range)] = None
    """Scoring actors, each with all policies in memory: a number, or a range as in
    ``{min: 1, max: 64}``, for a cluster that adds nodes while units wait (default: one a GPU, else
    as many as ``threads_per_actor`` leaves CPUs for)."""
    gpus_per_actor: Annotated[float, Field(ge=0)] | None = None
    """A fraction for small policies, several for large ones: each policy's layers are spread over
    them (default: 1 where the cluster has GPUs, else 0)."""
    threads_per_actor: Annotated[int, Field(ge=1)] | None = None
    """CPU threads of one actor's tensor operations (default: the CPUs divided among
    ``actors`` where these are given; else as few as memory allows, or, in a long job, what scores
    most on a node; 1 on a GPU)."""
    max_unit_attempts: Annotated[int, Field(ge=1)] = 3
    """How often a unit is tried when the process that scores it dies."""
    max_rejected: Annotated[int, Field(ge=0)] = 0
    """More rejected rows than this end the job with exit code 3 (all others are scored)."""
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
                f"run_id {self.run_id!r} must match ^{_RUN_ID.pattern}$ "
                "(lower case, no path separators)"
            )
        for name in self.policies:
            if not _POLICY_NAME.fullmatch(name):
                raise ValueError(f"policy name {name!r} must match ^{_POLICY_NAME.pattern}$")
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
        unknown = sorted(set(self.columns) - set(CORPUS_COLUMNS))
        if unknown:
            raise ValueError(
                f"columns: {', '.join(unknown)} is not a standard column; the left side of each "
                f"entry is one of {', '.join(CORPUS_COLUMNS)}"
            )
        return self

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

    @classmethod
    def from_yaml(cls, path: str | Path, **overrides: Any) -> Self:
        """Read a YAML file; ``overrides`` that are not None replace its fields.

        Raises:
            Refused: The file is missing, is not YAML, or does not pass the checks.
        """
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise Refused(
                f"config file {path}: {error.strerror}; give the path of a YAML file"
            ) from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            cause = str(error)
            # Without the line itself, which str() quotes: credentials may stand in it.
            if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
                cause = f"line {error.problem_mark.line + 1}: {error.problem}"
            raise Refused(f"config file {path} is not valid YAML: {cause}") from None
        if isinstance(values, dict):
            values |= {key: value for key, value in overrides.items() if value is not None}
        return cls.from_mapping(values, source=str(path))


_PARTS: dict[str, type[BaseModel]] = {"policies": PolicySource, "actors": ActorRange}
"""Fields that have fields of their own."""


def _explain(problem: Any, model: type[BaseModel]) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _PARTS[problem["loc"][0]] if len(problem["loc"]) > 1 else model
        return f"{where}: unknown field; the fields are {', '.join(known.model_fields)}"
    if problem["type"] == "missing":
        return f"{where}: is required and missing"
    text = problem["msg"].removeprefix("Value error, ")
    if not where or _CREDENTIALS.search(repr(problem["input"])):
        return f"{where}: {text}".removeprefix(": ")
    return f"{where}: {text} (got {problem['input']!r})"


class BenchConfig(JobConfig):
    """A benchmark: two checkpoints, made-up texts, and what to run over them side by side."""

    base: Uri
    """Folder or hub id of the base policy."""
    rl: Uri
    """Folder or hub id of the other policy."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """As in a score job."""
    texts: Annotated[int, Field(ge=1)] = 32
    """How many texts of random tokens."""
    prompt_tokens: Annotated[int, Field(ge=1)] = 64
    """Tokens of each prompt."""
    min_response_tokens: Annotated[int, Field(ge=1)] = 32
    """The shortest response; lengths are uniform up to the longest."""
    max_response_tokens: Annotated[int, Field(ge=1)] = 512
    """The longest response."""
    groups: Annotated[int, Field(ge=0)] = 2
    """Groups of 8 responses of 128 tokens on a prompt of 512, for the gain of shared prompts."""
    token_budget: Annotated[int, Field(ge=1)] | None = None
    """As in a score job."""
    compile: Literal["on", "off"] = "on"
    """Whether layers and statistics are compiled."""
    processes: Annotated[int, Field(ge=1)] = 1
    """Processes that share the texts, as actors do; the naive loops run in one."""
    threads: Annotated[int, Field(ge=1)] = 1
    """Threads of each; the naive loops have them all."""
    repeats: Annotated[int, Field(ge=1)] = 3
    """Rounds; each runs everything once, in turn."""
    vllm_python: str | None = None
    """A Python that has vLLM, in an environment of its own, to be measured beside."""
    lm_eval_python: str | None = None
    """The same for lm-eval."""
    seed: int = 0
    """Of the texts."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min_response_tokens > self.max_response_tokens:
            raise ValueError(
                f"min_response_tokens {self.min_response_tokens} is more than "
                f"max_response_tokens {self.max_response_tokens}"
            )
        if self.texts < self.processes:
            raise ValueError(
                f"texts {self.texts} is less than processes {self.processes}: each needs one"
            )
        return self
