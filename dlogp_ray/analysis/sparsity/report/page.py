"""The page itself: everything that it shows is in it, and it asks nothing of any network."""

import base64
import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from dlogp_ray.analysis.vega import Chart
from dlogp_ray.tables.scores import OF, Statistic

_HERE = "dlogp_ray.analysis.sparsity.report"
_TEMPLATES = Environment(
    loader=PackageLoader(_HERE, ""), autoescape=True, undefined=StrictUndefined
)
_MANTISSA_BITS = 12
"""Of float32's 23: four digits, which is what is shown, and half of the bytes."""


@dataclass(frozen=True)
class Shade:
    """What a token is shaded by.

    Attributes:
        name: A column.
        full: From here on the shade is full; below 0 for what is at most 0.
        least: Below it there is no shade, on a logarithmic scale.
        scale: Of the shade, linear or log.
        signed: Two colours, for values above and below 0.
    """

    name: str
    full: float
    least: float = 0.0
    scale: str = "linear"
    signed: bool = False


MEASURES = (
    Shade("delta_logp", full=2.0, signed=True),
    Shade("kl_rl_base", full=1.0, least=1e-4, scale="log"),
    Shade("js", full=0.5, least=1e-4, scale="log"),
    Shade("entropy_base", full=3.0),
    Shade("entropy_rl", full=3.0),
    Shade("rank_base", full=100.0, least=0.5, scale="log"),
    Shade("logp_base", full=-6.0),
)


@dataclass(frozen=True)
class Sample:
    """A response that is shown.

    Attributes:
        id: Its name.
        group: Whose text it is, under which policy.
        right: Whether it is right, where the run says.
        prompt: Its prompt, where the run has it as text.
        token_ids: [n].
        counts: [n] whether each token counts.
        values: Column -> [n]; NaN where it was not computed.
    """

    id: str
    group: str
    right: bool | None
    prompt: str | None
    token_ids: np.ndarray
    counts: np.ndarray
    values: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Heading:
    """What stands around charts and responses.

    Attributes:
        title: Of the page.
        headlines: A table: its headings, and rows.
        noise: What they have to exceed.
        tables: Title -> another one, below the charts.
        split: What is split by, in words; "" for nothing more.
        footer: Where it comes from.
        floors: Statistic -> a magnitude up to here is unresolved, nats; none for any other.
    """

    title: str
    headlines: Sequence[Sequence[str]]
    noise: str
    tables: Mapping[str, Sequence[Sequence[str]]]
    split: str
    footer: str
    floors: Mapping[str, float]


def page(
    heading: Heading,
    charts: Mapping[str, Sequence[Chart]],
    samples: Sequence[Sample],
    surface: Callable[[int], str | None],
) -> str:
    """The whole page.

    Args:
        heading: What stands around.
        charts: By their heading.
        samples: In any order.
        surface: How a vocabulary id looks; None where nobody knows.
    """
    tokens = np.concatenate([np.zeros(0, np.int32), *(sample.token_ids for sample in samples)])
    ids, places = np.unique(tokens, return_inverse=True)
    arrays = {"token": places.astype(np.int32)}
    arrays["counts"] = np.concatenate(
        [np.zeros(0, np.uint8), *(sample.counts.astype(np.uint8) for sample in samples)]
    )
    measures = [m for m in MEASURES if any(m.name in sample.values for sample in samples)]
    for measure in measures:
        values = [_values(sample, measure.name) for sample in samples]
        arrays[measure.name] = _rounded(np.concatenate([np.zeros(0, np.float32), *values]))
    planes, columns = _planes(arrays)
    data = {
        "policies": _policies(charts),
        "charts": {title: [asdict(chart) for chart in drawn] for title, drawn in charts.items()},
        "measures": [
            asdict(measure) | _as_declared(OF[measure.name], heading.floors) for measure in measures
        ],
        "samples": list(_described(samples)),
        "vocabulary": [_surface(surface, int(token)) for token in ids],
        "ids": ids.tolist(),
        "columns": columns,
    }
    text = json.dumps(data, ensure_ascii=False, allow_nan=False)
    return _TEMPLATES.get_template("page.html").render(
        heading=heading,
        css=_file("page.css"),
        data=_packed(text.encode()),
        tokens=_packed(planes),
        vega=_vega(),
        js=_file("page.js"),
    )


def _as_declared(column: Statistic, floors: Mapping[str, float]) -> dict[str, Any]:
    """Its label, and up to where it is unresolved."""
    floor = floors.get(column.name, 0.0) if column.change else 0.0
    return {"label": column.label, "change": column.change, "floor": floor}


def _policies(charts: Mapping[str, Sequence[Chart]]) -> list[str]:
    """That charts have values of, in their order."""
    values = (
        v for drawn in charts.values() for chart in drawn for v in chart.spec["data"]["values"]
    )
    return list(dict.fromkeys(value["policy"] for value in values if "policy" in value))


def _described(samples: Sequence[Sample]) -> Any:
    start = 0
    chance = np.random.default_rng(0).permutation(len(samples))
    for index, sample in enumerate(samples):
        delta = sample.values["delta_logp"][sample.counts]
        yield {
            "id": sample.id,
            "group": sample.group,
            "right": sample.right,
            "prompt": sample.prompt,
            "start": start,
            "length": len(sample.token_ids),
            "sum": float(np.abs(delta).sum()),
            "chance": int(chance[index]),
        }
        start += len(sample.token_ids)


def _values(sample: Sample, name: str) -> np.ndarray:
    nothing = np.full(len(sample.token_ids), np.nan)
    return np.asarray(sample.values.get(name, nothing), dtype=np.float32)


def _surface(surface: Callable[[int], str | None], token: int) -> str:
    text = surface(token)
    return f"⟨{token}⟩" if text is None or text == "" else text


def _rounded(values: np.ndarray) -> np.ndarray:
    """float32 with ``_MANTISSA_BITS``, to the nearest."""
    dropped = 23 - _MANTISSA_BITS
    bits = values.view(np.uint32).astype(np.uint64) + (1 << (dropped - 1))
    kept = (bits & ~np.uint64((1 << dropped) - 1)).astype(np.uint32).view(np.float32)
    return np.where(np.isfinite(values), kept, np.float32(np.nan))


def _planes(arrays: Mapping[str, np.ndarray]) -> tuple[bytes, list[dict[str, Any]]]:
    """The arrays' bytes, and where each is.

    The first byte of all values comes first, then the second, ...: they pack better.
    """
    planes, columns, start = [], [], 0
    for name, values in arrays.items():
        raw = values.view(np.uint8).reshape(len(values), values.dtype.itemsize).T.tobytes()
        kind = {"float32": "float32", "int32": "int32", "uint8": "uint8"}[values.dtype.name]
        columns.append({"name": name, "start": start, "length": len(values), "kind": kind})
        planes.append(raw)
        start += len(raw)
    return b"".join(planes), columns


def _packed(data: bytes) -> str:
    return base64.b64encode(gzip.compress(data, compresslevel=9, mtime=0)).decode()


def _file(name: str) -> str:
    return files(_HERE).joinpath(name).read_text(encoding="utf-8")


@cache
def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script, packed: 0.9 MB else."""
    import vl_convert

    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return _packed(bundle.encode())
