"""Records, footers and objects of runs that no job has made: the least that each must have."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from dlogp_ray import store
from dlogp_ray.tables.content_hash import content_hash
from dlogp_ray.tables.encoding import Footer, encode_object
from dlogp_ray.tables.info import InterveneInfo, ReweightInfo, ScoreInfo
from dlogp_ray.tables.kinds import GENERATIONS, SCORES, WEIGHTS
from dlogp_ray.tables.object_names import unit_name
from dlogp_ray.tables.stored import StoredRun

_COMMON = {"created": "", "config": {}, "fingerprint": {}, "versions": {}, "compared": []}


def score_info(units: int, said: Mapping[str, Any] | None = None) -> ScoreInfo:
    """Of a score job with so many units."""
    least = {"job": SCORES.job, "units": {"count": units}, "carry": {}, "engine": {"dtype": {}}}
    return ScoreInfo.model_validate(_COMMON | least | dict(said or {}))


def intervene_info(units: int, said: Mapping[str, Any] | None = None) -> InterveneInfo:
    """Of an intervene job."""
    least = {"job": GENERATIONS.job, "units": {"count": units}, "interventions": []}
    least |= {"left_out": [], "calibration_tokens": {}}
    least["engine"] = {"dtype": {}, "answers_per_s": 1.0}
    return InterveneInfo.model_validate(_COMMON | least | dict(said or {}))


def reweight_info(units: int, said: Mapping[str, Any] | None = None) -> ReweightInfo:
    """Of a reweight job."""
    least = {"job": WEIGHTS.job, "units": {"count": units}, "run": "none", "policy": "base"}
    least |= {"compared": ["base"], "fingerprint": {"scores": "none", "schemes": []}, "whole": {}}
    return ReweightInfo.model_validate(_COMMON | least | dict(said or {}))


def footer_of(rows: pa.Table, index: int, origin: str = "", **said: Any) -> Footer:
    """What is true of an object's rows; ``said`` instead of that."""
    true = {
        "unit": index,
        "rows_in": len(rows),
        "tokens": sum(len(ids or ()) for ids in rows["response_ids"].to_pylist()),
        "status": dict(Counter(rows["status"].to_pylist())),
        "summary": {},
        "content_hash": content_hash(rows),
        "schema_version": SCORES.schema_version,
        "origin": origin,
    }
    return Footer.model_validate(true | said)


def put_object(run: StoredRun, index: int, rows: pa.Table, **said: Any) -> None:
    """An object of these rows, in place of what is there."""
    data = encode_object(rows, footer_of(rows, index, run.origin, **said))
    store.replace(run.object_uri(unit_name(index)), data)
