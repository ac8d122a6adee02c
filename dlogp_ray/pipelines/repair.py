"""Repair of a run: damaged objects are put aside, their units done again, the run sealed anew."""

import hashlib
import posixpath
from collections.abc import Sequence

from dlogp_ray import store
from dlogp_ray.config import InterveneConfig, ScoreConfig
from dlogp_ray.config.trust import NO_TRUST
from dlogp_ray.decoding.grading import VERIFIERS
from dlogp_ray.errors import Refused
from dlogp_ray.pipelines.intervene.intervene import intervene
from dlogp_ray.pipelines.intervene.plan import IntervenePlan, plan_intervene
from dlogp_ray.pipelines.intervene.result import InterveneResult
from dlogp_ray.pipelines.score.plan import ScorePlan, plan_score
from dlogp_ray.pipelines.score.result import ScoreResult
from dlogp_ray.pipelines.score.score import score
from dlogp_ray.tables.fingerprint import check_fingerprint, check_schema
from dlogp_ray.tables.kinds import GENERATIONS, WEIGHTS
from dlogp_ray.tables.object_names import RECORD, UNITS, object_name
from dlogp_ray.tables.run import Run
from dlogp_ray.tables.sealing import quarantine, unseal
from dlogp_ray.tables.stored import MADE_OTHERWISE
from dlogp_ray.tables.verification import Fault


def repair(
    run: Run, problems: Sequence[Fault], *, trusted: bool = False, progress: bool = True
) -> ScoreResult | InterveneResult:
    """Put the objects of ``problems`` aside and do their units again.

    Killed in the middle, it can be called again: the run stays sealed, with objects missing, until
    all that is damaged is out of the way.

    Args:
        run: With what is left of it.
        problems: As ``verify`` names them.
        trusted: Run code that comes with the checkpoints, or a verifier of the user's own, where
            ``run.json`` asks for that.
        progress: Show progress on standard error.

    Raises:
        Refused: It is a weights table, corpus, problems or policies are not there any more, the
            list of units is lost and can't be made again, its rows are of another schema, or
            ``run.json`` asks for code to be run and is not trusted; nothing was touched.
        FingerprintMismatch: They have changed; nothing was touched.
    """
    if run.kind is WEIGHTS:
        raise Refused(f"{run.uri} is a weights table, which follows from its scores. {run.remedy}")
    output, run_id = posixpath.split(run.uri)
    kind: type[InterveneConfig | ScoreConfig] = (
        InterveneConfig if run.kind is GENERATIONS else ScoreConfig
    )
    config = kind.from_mapping(
        run.info.config.model_dump(mode="json", exclude_unset=True)
        | {"output": output, "run_id": run_id},
        source=run.path(RECORD),
    )
    own_verifier = isinstance(config, InterveneConfig) and config.verifier not in VERIFIERS
    if (config.trust != NO_TRUST or own_verifier) and not trusted:
        raise Refused(
            f"{run.path('run.json')} says trust_remote_code or allow_pickle, or names a verifier "
            "that is not ours: doing units again would run code that it names. If the run is your "
            "own, say --trust-run"
        )
    plan: IntervenePlan | ScorePlan
    plan = plan_intervene(config) if isinstance(config, InterveneConfig) else plan_score(config)
    check_fingerprint(run, plan.fingerprint)
    check_schema(run, plan.fingerprint)
    begun = {UNITS: plan.encoded(plan.units), **plan.records}
    lost = [name for name in run.lost_beginnings() if name in begun]
    for name in lost:
        if hashlib.sha256(begun[name]).hexdigest() != run.hashes[name]:
            raise Refused(
                f"{run.path(name)} is lost, and this version of dlogp_ray makes another one than "
                "the run has; repair it with the version that run.json names"
            )
    committed = run.committed()
    foreign = {p.unit for p in problems if p.unit and MADE_OTHERWISE in p.what}
    if committed and len(foreign) == len(committed):
        raise Refused(
            f"{run.path('run.json')} is of another run: all {len(committed)} objects say that they "
            "were made from something else. Put it back from a copy; nothing was touched"
        )
    for unit in sorted({p.unit for p in problems if p.unit is not None and p.unit in committed}):
        quarantine(run, object_name(run.kind.table, unit))
    for name in lost:
        store.replace(run.path(name), begun[name])
    unseal(run)
    if isinstance(config, InterveneConfig):
        return intervene(config, progress=progress)
    return score(config, progress=progress)
