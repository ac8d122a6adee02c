"""What an intervene job will do, found out before Ray starts: problems, interventions, units."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from dlogp_ray import store
from dlogp_ray.config import BASE, InterveneConfig, RuleConfig
from dlogp_ray.corpus.files import list_corpus
from dlogp_ray.corpus.problems import PROBLEMS, encode_problems, problem_units, read_problems
from dlogp_ray.corpus.units import Units
from dlogp_ray.decoding.batch import why_not
from dlogp_ray.decoding.distribution import Sampling
from dlogp_ray.decoding.grading import ANSWER, VERIFIERS, load_verifier, verifier_hash
from dlogp_ray.decoding.rules import Intervention, Side
from dlogp_ray.errors import Refused
from dlogp_ray.pipelines.job import (
    Job,
    checked_checkpoints,
    known_files,
    policies_fingerprint,
    with_absolute_addresses,
)
from dlogp_ray.tables.info import SCHEMA
from dlogp_ray.tables.kinds import GENERATIONS, Kind


@dataclass(frozen=True)
class Wanted:
    """An intervention that a job tries.

    Attributes:
        label: Its name in the table.
        rule: As in ``decoding.rules``.
        threshold: τ; None where the rule takes none, or before it is calibrated.
        rate: The share of tokens at which it is to fire, where it is calibrated for one.
        primary: The policy that drafts.
        gamma: Of the extrapolation; None for replacement.
        reached: The share of the calibration's tokens at which it fires with ``threshold``.
    """

    label: str
    rule: str
    threshold: float | None = None
    rate: float | None = None
    primary: Side = "base"
    gamma: float | None = None
    reached: float | None = None

    @property
    def calibrated(self) -> bool:
        """Whether nothing is missing."""
        return self.rate is None or self.threshold is not None

    @property
    def intervention(self) -> Intervention:
        """As the paired loop takes it.

        Raises:
            ValueError: It has no meaning.
        """
        return Intervention(self.rule, self.threshold, self.primary, self.gamma)


@dataclass(frozen=True)
class InterveneJob(Job):
    """What every worker of an intervene job needs to know.

    Attributes:
        interventions: All, in the table's order.
        dtype: Policy -> dtype of its weights; None before it is chosen.
        threads: CPU threads of an actor.
        verifier_sha256: Of the user's own verifier when the job was planned; None for ours.
        answers_per_s: What one actor was seen to do without interventions; None before that.
    """

    kind: ClassVar[Kind] = GENERATIONS

    config: InterveneConfig
    interventions: tuple[Wanted, ...]
    verifier_sha256: str | None = None
    dtype: dict[str, str] | None = None
    threads: int = 1
    answers_per_s: float | None = None

    @property
    def speed(self) -> float | None:
        """In answers/s, of one actor."""
        return self.answers_per_s

    @property
    def sampling(self) -> Sampling:
        """Temperature and filters of all draws."""
        config = self.config
        return Sampling(config.temperature, config.top_k, config.top_p, config.min_p)

    @property
    def answers_per_problem(self) -> int:
        """Of each intervention."""
        return self.config.samples * len(self.config.seeds)


@dataclass(frozen=True)
class IntervenePlan:
    """A checked job.

    Attributes:
        job: What the workers need; thresholds that are to be calibrated are missing.
        problems: [problems] as ``corpus.problems`` has them.
        special_tokens: How many have which, as ``tables.special_tokens`` names them.
        units: All work units.
        fingerprint: Everything that changes the answers.
    """

    job: InterveneJob
    problems: pa.Table
    special_tokens: dict[str, int]
    units: Units
    fingerprint: dict[str, Any]

    @property
    def records(self) -> dict[str, bytes]:
        """What the run begins with beside its list of units."""
        return {PROBLEMS: encode_problems(self.problems, self.job.config.unit_problems)}


def plan_intervene(config: InterveneConfig) -> IntervenePlan:
    """Check problems, policies and interventions; cut the work units.

    Raises:
        Refused: Something is missing, does not fit, or has no meaning.
    """
    config = with_absolute_addresses(config, "problems")
    path, colon, function = config.verifier.rpartition(":")
    if path.endswith(".py"):
        verifier = f"{Path(path).expanduser().resolve()}{colon}{function}"
        config = config.model_copy(update={"verifier": verifier})
    wanted = tuple(wanted_interventions(config))
    _check(wanted)
    try:
        load_verifier(config.verifier)
    except ValueError as error:
        raise Refused(str(error)) from None
    files = list_corpus(config.problems, what="problems")
    checkpoints = checked_checkpoints(config)
    verifier_sha256 = verifier_hash(config.verifier)
    job = InterveneJob(
        config,
        config.run_uri,
        wanted,
        verifier_sha256=verifier_sha256,
        known=known_files(checkpoints),
    )
    limits = [c.max_tokens for c in checkpoints.values() if c.max_tokens is not None]
    width = min(checkpoint.vocab_size for checkpoint in checkpoints.values())
    problems, special_tokens = read_problems(
        files,
        config.columns,
        job.text_tokenizer,
        partial(why_not, context=min(limits, default=None), width=width),
        needed=(ANSWER,) if config.verifier in VERIFIERS else (),
    )
    data = encode_problems(problems, config.unit_problems)
    fingerprint = {
        SCHEMA: GENERATIONS.schema_version,
        "problems": hashlib.sha256(data).hexdigest(),
        "policies": policies_fingerprint(config, checkpoints),
        "interventions": [asdict(one) for one in wanted],
        "verifier": {"name": config.verifier, "sha256": verifier_sha256},
        "samples": config.samples,
        "seeds": config.seeds,
        "calibration_problems": config.calibration_problems,
        "sampling": asdict(job.sampling),
        "max_tokens": config.max_tokens,
        # generation_config.json names some, and is not among the policies' files.
        "end_tokens": sorted(job.text_tokenizer().ends),
        "stop_strings": config.stop_strings,
        "unit_problems": config.unit_problems,
    }
    store.check_writable(config.run_uri, conditional=not config.single_writer)
    answers = job.answers_per_problem * len(wanted)
    uri = f"{config.run_uri}/{PROBLEMS}"
    units = problem_units(uri, data, len(problems), config.unit_problems, answers)
    return IntervenePlan(job, problems, special_tokens, units, fingerprint)


def wanted_interventions(config: InterveneConfig) -> Iterator[Wanted]:
    """Each policy by itself, and each rule at each of its thresholds and rates, with each γ.

    Raises:
        Refused: Two have the same label.
    """
    found = [Wanted(BASE, "never"), Wanted(config.rl, "never", primary="rl")]
    for rule in config.rules:
        for gamma in rule.gammas or (None,):
            found += _of_rule(rule, gamma)
    labels = [one.label for one in found]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise Refused(f"rules: {', '.join(twice)}: there twice; each intervention is tried once")
    yield from found


def _of_rule(rule: RuleConfig, gamma: float | None) -> Iterator[Wanted]:
    ends = "" if rule.primary == "base" else " backward"
    ends += "" if gamma is None else f" gamma={gamma:.15g}"
    one = Wanted("", rule.rule, primary=rule.primary, gamma=gamma)
    if not rule.thresholds and not rule.rates:
        yield replace(one, label=f"{rule.rule}{ends}")
    for threshold in rule.thresholds:
        yield replace(one, label=f"{rule.rule} tau={threshold:.15g}{ends}", threshold=threshold)
    for rate in rule.rates:
        yield replace(one, label=f"{rule.rule} {rate:.15g}{ends}", rate=rate)


def _check(wanted: Sequence[Wanted]) -> None:
    wrong = []
    for one in wanted:
        # A threshold that is yet to be calibrated: any that the rule can have.
        tried = one if one.calibrated else replace(one, threshold=_POSSIBLE[one.rule])
        try:
            _ = tried.intervention
        except ValueError as error:
            wrong.append(f"{one.label}: {error}")
    if wrong:
        raise Refused("rules:\n" + "\n".join(f"  {line}" for line in wrong))


_POSSIBLE = {
    "delta_logp": -0.5,
    "kl": 0.5,
    "kl_base_rl": 0.5,
    "js": 0.5,
    "entropy_base": 0.5,
    "entropy_rl": 0.5,
    "random": 0.5,
}
"""A threshold that each rule can have."""
