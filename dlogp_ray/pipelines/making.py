"""How a run is made, whatever the job: begin it or join it, do what is missing, seal it.

What is committed is what is there: a unit that has no object afterwards has failed, whatever the
receipts say.
"""

import hashlib
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import numpy as np
import ray

from dlogp_ray import store
from dlogp_ray.config import RunConfig
from dlogp_ray.corpus.units import Units, decode_units, encode_units
from dlogp_ray.errors import StoreFailed
from dlogp_ray.pipelines.chain import Outcome, Stages, do_units
from dlogp_ray.pipelines.cluster import Placement, start_ray
from dlogp_ray.pipelines.events import say
from dlogp_ray.pipelines.failures import Failures
from dlogp_ray.pipelines.job import Job
from dlogp_ray.pipelines.stopping import StopRequest, stop_on_sigterm
from dlogp_ray.tables.run import Run, begin_run, check_fingerprint, find_run
from dlogp_ray.tables.sealing import seal

PACKAGES = ("dlogp_ray", "ray", "torch", "transformers", "tokenizers", "pyarrow", "numpy")

AnyJob = TypeVar("AnyJob", bound=Job)


@dataclass(frozen=True)
class Ready:
    """What was found out before the first unit.

    Attributes:
        placement: Of the actors.
        info: ``run.json``, where the run begins with this call.
    """

    placement: Placement
    info: Mapping[str, Any]


@dataclass(frozen=True)
class Made:
    """A run after a call.

    Attributes:
        run: With what is there now.
        outcome: What came of the units of this call.
        failed: Units that this call could not do -> cause; earlier calls' are recorded.
    """

    run: Run
    outcome: Outcome
    failed: Mapping[str, str]


def make_run(
    job: AnyJob,
    units: Units,
    fingerprint: Mapping[str, Any],
    stages: Stages,
    prepare: Callable[[Units, Run | None], Ready],
    as_recorded: Callable[[AnyJob, Run], AnyJob],
    *,
    records: Mapping[str, bytes] | None = None,
    progress: bool,
) -> Made:
    """Do what is missing of a run.

    Args:
        job: Before anything was measured for it.
        units: As they would be cut now; a run that exists has its own.
        fingerprint: Of everything that changes what comes out.
        stages: What becomes of each unit.
        prepare: Called with what is missing, and the run that exists, once Ray is there: loads and
            measures.
        as_recorded: The job as the run's record has it: another call may have begun the run.
        records: More objects that the run begins with: name -> content.
        progress: Show progress on standard error.

    Raises:
        FingerprintMismatch: The run exists and was made from something else.
        Damaged: An object of the run is missing or can't be read; it is named.
        StoreFailed: The run's own records can't be read or written.
        Stopped: SIGTERM came; what is committed stays.
    """
    run = existing_run(job.run_uri, fingerprint)
    if run is not None:
        units = _own_units(run, units)
    outcome, failures, failed = Outcome(), Failures(job.run_uri), dict[str, str]()
    if run is not None and run.sealed:
        run.check_objects()
        return Made(run, outcome, failed)
    missing = units if run is None else units.take(~np.isin(units.index, run.committed().index))
    if run is None or len(missing):
        with ray_session() as stop:
            tokens, left = missing.tokens, len(missing)
            say("planned", run=job.run_uri, units=len(units), missing=left, tokens=tokens)
            ready = prepare(missing, run)
            with _store_failures(job.run_uri):
                begun = {"units.parquet": encode_units(units), **(records or {})}
                run = begin_run(job.run_uri, ready.info, begun)
                job = as_recorded(job, run)
                engine = run.info["engine"]
                say("scoring", engine=engine, placement=asdict(ready.placement))
                outcome = do_units(
                    job,
                    stages,
                    ready.placement,
                    missing,
                    stop,
                    failed=failures.add,
                    progress=progress,
                )
    with _store_failures(run.uri):
        committed = run.committed()
        failed = failures.settle(committed)
        partial = job.config.seal_partial
        # Units that Ray's end left untried have not failed.
        if len(committed) == run.planned or (partial and not outcome.ended):
            seal(run, partial=partial)
    return Made(run, outcome, failed)


def existing_run(uri: str, fingerprint: Mapping[str, Any]) -> Run | None:
    """The run that is there, if any.

    Raises:
        FingerprintMismatch: It was made from something else.
    """
    run = find_run(uri)
    if run is not None:
        check_fingerprint(run, fingerprint)
    return run


def common_info(
    job: str, config: RunConfig, units: Units, fingerprint: Mapping[str, Any]
) -> dict[str, Any]:
    """What every ``run.json`` says."""
    return {
        "job": job,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": config.model_dump(mode="json"),
        "units": {
            "count": len(units),
            "tokens": units.tokens,
            "sha256": hashlib.sha256(encode_units(units)).hexdigest(),
        },
        "fingerprint": fingerprint,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


@contextmanager
def ray_session() -> Iterator[StopRequest]:
    """Ray for as long as the context lasts; a session that was there stays."""
    ours = start_ray()
    try:
        with stop_on_sigterm() as stop:  # again: starting Ray puts its own handler in place
            yield stop
    finally:
        if ours:
            ray.shutdown()


@contextmanager
def _store_failures(uri: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreFailed(
            f"{uri}: {error}; what is committed stays, the same command goes on"
        ) from error


def _own_units(run: Run, units: Units) -> Units:
    """The run's own list of units where it has one: another version may cut another way."""
    if not store.exists(run.path("units.parquet")):
        return units
    return decode_units(store.read(run.path("units.parquet")))
