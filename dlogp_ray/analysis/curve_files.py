"""The curve of a sealed run beside its table: a table of its own, and pictures."""

from dataclasses import asdict

import pyarrow as pa

from dlogp_ray import store
from dlogp_ray.analysis.curve import Point, curve
from dlogp_ray.analysis.pictures import curve_picture, extrapolation_picture
from dlogp_ray.tables.derived import CURVE_RECORD, write_derived
from dlogp_ray.tables.run import Run

_TYPES = {
    **dict.fromkeys(("label", "rule", "primary"), pa.string()),
    **dict.fromkeys(("answers", "not_graded"), pa.int64()),
    "pass_at": pa.list_(
        pa.struct([("k", pa.int32()), ("value", pa.float64()), ("se", pa.float64())])
    ),
}
_SCHEMA = pa.schema([(name, _TYPES.get(name, pa.float64())) for name in Point.__dataclass_fields__])


def write_curve(run: Run) -> list[Point]:
    """Write the curve and its pictures beside the table of a sealed run; returns the curve."""
    points = curve(run)
    table = pa.Table.from_pylist([asdict(point) for point in points], schema=_SCHEMA)
    write_derived(run, run.uri, CURVE_RECORD, {"curve": table}, {})
    pictures = {"curve": curve_picture(points), "extrapolation": extrapolation_picture(points)}
    for name, picture in pictures.items():
        for kind, data in (picture or {}).items():
            store.replace(run.path(f"{name}.{kind}"), data)
    return points
