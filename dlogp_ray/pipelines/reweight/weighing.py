"""What a reweight job means for a run: whose texts are weighed, by which columns."""

from dlogp_ray.analysis.summary import Summary
from dlogp_ray.config import BASE, AnyScheme, ReweightConfig
from dlogp_ray.errors import Refused
from dlogp_ray.tables.kinds import SCORES
from dlogp_ray.tables.run import Run
from dlogp_ray.weights.rollouts import by_others
from dlogp_ray.weights.rows import Weighing


def weighing_of(run: Run, config: ReweightConfig) -> Weighing:
    """What the config means for this run.

    Raises:
        Refused: It can't be done; says what to do.
    """
    _check_whole_scores(run)
    scored = tuple(run.info.config.policies)
    compared = run.info.compared
    generators = _generators(run) if any(map(_looks_at_old, config.schemes)) else []
    policy = config.policy or _generating(run, generators, scored)
    if policy not in scored:
        raise Refused(
            f"--policy {policy}: run {run.uri} scored {', '.join(scored)}; name the one of them "
            "that generated the texts"
        )
    rl = config.rl or (policy if policy in compared else _only_compared(run, config.schemes))
    if rl not in compared:
        raise Refused(f"--rl {rl}: run {run.uri} compares {', '.join(compared)}")
    if policy != BASE and rl != policy:
        raise Refused(
            f"--policy {policy} --rl {rl}: the scores of {rl} stand beside those of the base, not "
            f"beside {policy}'s"
        )
    others = by_others(generators, policy, scored)
    weighing = Weighing(
        config.schemes,
        policy,
        rl,
        tuple(others),
        config.mean_one,
        temperature=run.info.config.temperature,
    )
    _check_columns(run, weighing, scored)
    if generators and set(others) == set(generators):
        raise Refused(
            f"--policy {policy}: no text of run {run.uri} is of it; their generator says "
            f"{', '.join(generators)}"
        )
    return weighing


def _check_whole_scores(run: Run) -> None:
    """Refuse what is no scores table, or not all of one."""
    if run.kind is not SCORES:
        raise Refused(
            f"run {run.uri} is of {run.kind.table}, and weights are made of scores; score its "
            "texts with `dlogp score`"
        )
    if not run.sealed:
        share = f"{len(run.committed())} of {run.planned} units"
        raise Refused(
            f"run {run.uri} is not sealed ({share} are there), and quantiles and groups' means are "
            "of all rows; end it with `dlogp score`"
        )


def _only_compared(run: Run, schemes: tuple[AnyScheme, ...]) -> str:
    """The policy that the base is compared with, where a scheme looks at it.

    Raises:
        Refused: There are several.
    """
    compared = run.info.compared
    two = {"delta_logp", "logp_current"} & {need for scheme in schemes for need in scheme.needs}
    if two and len(compared) > 1:
        raise Refused(
            f"run {run.uri} compares {', '.join(compared)} with the base: name with --rl "
            "whose Δlog p, or current log p, is meant"
        )
    return compared[0]


def _check_columns(run: Run, weighing: Weighing, scored: tuple[str, ...]) -> None:
    """Refuse schemes whose columns the run does not have.

    Raises:
        Refused: It names the scheme, the column, and how to get it.
    """
    alone = len(scored) == 1
    sampled = run.info.config.statistics == "sampled"
    for scheme in weighing.schemes:
        of = scheme.needs
        if alone and {"delta_logp", "logp_current"} & set(of):
            raise Refused(
                f"{scheme.scheme} compares two policies, and run {run.uri} scored "
                f"{scored[0]} alone; score the corpus with the base and the other policy"
            )
        if "logp_current" in of and weighing.policy != BASE:
            raise Refused(
                f"{scheme.scheme} compares π_old with the current policy: from a table that is "
                f"possible where π_old was scored as {BASE} and the current policy as the other; "
                f"here π_old is {weighing.policy}. Score with π_old as {BASE}, or weigh on the fly "
                "in the trainer"
            )
        if sampled and "entropy_old" in of:
            column = weighing.columns["entropy_old"]
            raise Refused(
                f"{scheme.scheme} needs {column}, and run {run.uri} has only the sampled tokens' "
                "log-probabilities (statistics: sampled); score it again under another run_id with "
                "statistics: all"
            )


def _generators(run: Run) -> list[str]:
    """Who wrote texts of the run, as its rows say; "" where they don't."""
    parts = (footer.said.summary for _, footer in run.footers(run.entries()))
    groups = Summary.merge(map(Summary.model_validate, parts)).groups
    return sorted({generator for by_generator in groups.values() for generator in by_generator})


def _generating(run: Run, generators: list[str], scored: tuple[str, ...]) -> str:
    """The policy that generated all texts, as their ``generator`` says.

    Args:
        run: The scores.
        generators: What its rows say, where a scheme looks at π_old.
        scored: Its policies.

    Raises:
        Refused: It does not say, or there are several.
    """
    if not generators:
        return BASE if BASE in scored else scored[0]
    if len(generators) == 1 and generators[0] in scored:
        return generators[0]
    told = ", ".join(name or "nothing" for name in generators)
    raise Refused(
        f"run {run.uri}: name with --policy the scored policy ({', '.join(scored)}) that "
        f"generated the texts; their generator says {told}"
    )


def _looks_at_old(scheme: AnyScheme) -> bool:
    return bool({"logp_old", "entropy_old"} & set(scheme.needs))
