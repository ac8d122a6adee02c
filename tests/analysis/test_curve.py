"""What a curve says, of points made up by hand; pictures that are pictures."""

import xml.etree.ElementTree as ElementTree
from typing import Any

from dlogp_ray.analysis.curve import Point, first_to_reach_rl
from dlogp_ray.analysis.pictures import curve_picture, extrapolation_picture, extrapolation_rows

SVG = "{http://www.w3.org/2000/svg}"


def point(label: str, rule: str, **fields: Any) -> Point:
    defaults: dict[str, Any] = {
        "primary": "base",
        "gamma": None,
        "threshold": None,
        "rate": None,
        "answers": 100,
        "not_graded": 0,
        "accuracy": 0.5,
        "se": 0.01,
        "trigger_rate": 0.1,
        "effective_rate": 0.05,
        "length": 20.0,
        "against_rl": -0.4,
        "against_rl_ci_low": -0.5,
        "against_rl_ci_high": -0.3,
        "against_rl_p": 0.0,
    }
    return Point(label=label, rule=rule, **(defaults | fields))


ALONE = [
    point("base", "never", accuracy=0.3, trigger_rate=0.0),
    point("rl", "never", primary="rl", accuracy=0.9, trigger_rate=0.0, against_rl=None),
]
CURVE = [
    *ALONE,
    point("kl 0.2", "kl", trigger_rate=0.2, against_rl=0.001),
    point("kl 0.4", "kl", trigger_rate=0.4, against_rl=0.02),
    # Not shown to be worse, and worse all the same.
    point("kl 0.1", "kl", trigger_rate=0.1, against_rl=-0.01, against_rl_ci_high=0.01),
    point("js 0.1", "js", against_rl=-0.2),
    point("d", "delta_logp", threshold=-0.7, trigger_rate=0.03, against_rl=0.0),
]
BEYOND = [
    point(f"d γ={gamma}", "delta_logp", threshold=-0.7, gamma=gamma, trigger_rate=0.03)
    for gamma in (0.1, 0.2)
]


def test_the_rarest_firing_that_has_rl_s_accuracy() -> None:
    found = first_to_reach_rl([*CURVE, *BEYOND])
    assert {rule: one and one.label for rule, one in found.items()} == {
        "delta_logp": "d",
        "js": None,
        "kl": "kl 0.2",
    }


def test_nothing_is_to_be_reached_where_rl_has_nothing_right() -> None:
    nothing = point("rl", "never", primary="rl", accuracy=0.0, against_rl=None)
    same = point("kl 0.2", "kl", accuracy=0.0, against_rl=0.0)
    assert first_to_reach_rl([ALONE[0], nothing, same]) == {}


def test_extrapolation_stands_beside_replacement_of_the_same_rule_and_threshold() -> None:
    labels = [one.label for one in extrapolation_rows([*CURVE, *BEYOND])]
    assert labels == ["d", "rl", "d γ=0.1", "d γ=0.2"]
    assert extrapolation_rows(CURVE) == []


def texts_of(picture: bytes) -> str:
    tree = ElementTree.fromstring(picture.decode())
    assert tree.tag == f"{SVG}svg"
    return " ".join("".join(node.itertext()) for node in tree.iter(f"{SVG}text"))


def test_pictures_name_what_they_show() -> None:
    curve = curve_picture([*CURVE, *BEYOND])
    bars = extrapolation_picture([*CURVE, *BEYOND])
    assert curve is not None
    assert bars is not None
    for label in ("kl", "js", "delta_logp", "base", "rl", "right answers"):
        assert label in texts_of(curve["svg"])
    assert "d γ=0.2" in texts_of(bars["svg"])
    assert curve["png"].startswith(b"\x89PNG")
    assert curve_picture([*CURVE, *BEYOND]) == curve  # the same bytes each time
    assert curve_picture(ALONE) is None
    assert extrapolation_picture(CURVE) is None


def test_what_nobody_could_grade_is_left_out_of_pictures() -> None:
    ungraded = point("js 0.5", "js", accuracy=None, se=None, against_rl=None)
    assert curve_picture([*CURVE, ungraded]) == curve_picture(CURVE)
    assert first_to_reach_rl([*ALONE, ungraded]) == {"js": None}
