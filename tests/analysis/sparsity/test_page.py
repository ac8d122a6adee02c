"""The report in a real browser: it draws, shades, tells values, and asks nothing of a network."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from score_tables import score_rows

from dlogp_ray.analysis.sparsity.groups import grouped
from dlogp_ray.analysis.sparsity.report.page import Heading, Sample, page
from dlogp_ray.analysis.sparsity.report.report import report
from dlogp_ray.analysis.sparsity.tables import sparsity_tables
from dlogp_ray.analysis.vega import Chart, number, spec

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium in the PATH")
SCREENSHOTS = Path(__file__).parents[3] / "screenshots"
"""Kept by what runs the tests, not by Git."""
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync")
FLOORS = {"delta_logp": 0.02}
WORDS = ["the", " sum", "\n", "</script>", " is", "<b>", " 𝛥", "\t", "&amp;"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield found
        found.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = score_rows(60)
    rows = rows.append_column("correct", [[i % 2 == 0 for i in range(60)]])
    found = grouped(rows, [], FLOORS)
    tables = sparsity_tables(found, (), FLOORS, lambda token: None)
    text = report(
        "a run",
        "Noise floor: unresolved below 1e-06 nats.",
        "made <for> tests",
        tables["figures"],
        (),
        tables,
        FLOORS,
        found.examples,
        lambda token: WORDS[token % len(WORDS)],
        20,
    )
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


class Opened:
    """A page with what it said and asked for."""

    def __init__(self, browser: Browser, path: Path, width: int, scheme: Any) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page: Page = browser.new_page(
            viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-drawn=true]", timeout=300_000)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_it_opens_without_an_error_or_a_request(
    browser: Browser, written: Path, width: int, scheme: str
) -> None:
    opened = Opened(browser, written, width, scheme)
    assert opened.said == []
    assert opened.asked == [written.as_uri()]
    assert opened.page.locator("#charts svg").count() == 19
    assert opened.page.evaluate("document.documentElement.dataset.theme") == scheme
    # Nothing is wider than the window, but for what scrolls by itself.
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    picture = SCREENSHOTS / f"report-{width}-{scheme}.png"
    opened.page.screenshot(path=picture, full_page=True)
    assert picture.stat().st_size > 20_000
    opened.page.close()


def by_hand() -> Sample:
    return Sample(
        id="s",
        group="base's text under rl",
        right=True,
        prompt="1 <b>+</b> 1 =",
        token_ids=np.array([0, 1, 3, 1]),
        counts=np.array([True, True, True, False]),
        values={
            "delta_logp": np.array([0.01, -1.5, 0.75, 3.0]),
            "js": np.array([0.0, 0.25, 1e-5, np.nan]),
        },
    )


@pytest.fixture
def small(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    other = Sample(
        "t",
        "rl's text under rl",
        None,
        None,
        np.array([4]),
        np.array([True]),
        {"delta_logp": np.array([5.0])},
    )
    heading = Heading(
        "<a> & b", [["policy"], ["rl"]], "", {"Moved": [["token"], ["x"]]}, "", "", FLOORS
    )
    path = tmp_path / "small.html"
    path.write_text(page(heading, {}, [by_hand(), other], lambda i: WORDS[i]), encoding="utf-8")
    opened = Opened(browser, path, 1280, "light")
    assert opened.said == []
    yield opened.page
    opened.page.close()


def shades(page: Page) -> list[str]:
    found: list[str] = page.evaluate(
        "[...document.querySelectorAll('#response span')].map((s) => s.style.background)"
    )
    return found


def test_tokens_are_shaded_by_what_is_chosen(small: Page) -> None:
    small.select_option("#group", label="base's text under rl")
    assert small.locator("#response span").all_text_contents() == [
        "the",
        " sum",
        "</script>",
        " sum",
    ]
    assert small.locator("#response span.out").count() == 1
    assert small.locator("#prompt").text_content() == "1 <b>+</b> 1 ="
    # Unresolved; lowered by 1.5 of 2 nats; raised by 0.75; beyond the scale. 0.85 at full shade.
    assert shades(small) == [
        "var(--none)",
        "rgba(var(--lowered), 0.637)",
        "rgba(var(--raised), 0.319)",
        "rgba(var(--raised), 0.850)",
    ]
    small.select_option("#measure", label="JS")
    # Unresolved; log(0.25 / 1e-4) / log(0.5 / 1e-4) = 0.9186; below 1e-4, and unknown: no shade.
    assert shades(small) == [
        "var(--none)",
        "rgba(var(--size), 0.781)",
        "rgba(var(--size), 0.000)",
        "",
    ]


def test_values_of_a_token_are_told_on_hover_and_by_keyboard(small: Page) -> None:
    small.select_option("#group", label="base's text under rl")
    small.hover("#response span:nth-child(2)")
    told = small.locator("#token td").all_text_contents()
    assert told == ['" sum" (id 1)', "1", "-1.500", "0.2500"]
    small.locator("#response span").first.focus()
    small.keyboard.press("ArrowRight")
    small.keyboard.press("ArrowRight")
    told = small.locator("#token td").all_text_contents()
    assert told[:3] == ['"</script>" (id 3)', "2", "0.7500"]
    small.keyboard.press("ArrowRight")
    assert small.locator("#token td").last.text_content() == "–"


def test_samples_are_ordered_as_chosen(small: Page) -> None:
    def names() -> list[str]:
        return [text.split(" ")[0] for text in small.locator("#sample option").all_text_contents()]

    assert names() == ["t", "s"]  # Σ|Δ| 5, and 2.26 of the tokens that count
    small.select_option("#order", label="least shifted")
    assert names() == ["s", "t"]
    small.select_option("#order", label="most shifted")
    small.click("#next")
    assert "sample s" in (small.locator("#about").text_content() or "")
    assert small.title() == "<a> & b"


def test_the_theme_is_switched(small: Page) -> None:
    small.click("#theme")
    assert small.evaluate("document.documentElement.dataset.theme") == "dark"


def test_one_policy_is_drawn_at_a_time(browser: Browser, tmp_path: Path) -> None:
    values = [{"policy": policy, "x": x, "y": x} for policy, x in (("a", 1), ("b", 2), ("b", 3))]
    encoding = {"x": number("x"), "y": number("y")}
    chart = Chart("A chart", "of points", spec(values, [{"mark": "point", "encoding": encoding}]))
    heading = Heading("r", [["policy"], ["a"]], "", {}, "", "", {})
    path = tmp_path / "policies.html"
    path.write_text(page(heading, {"Some": [chart]}, [by_hand()], str), encoding="utf-8")
    opened = Opened(browser, path, 1280, "light").page
    points = opened.locator("#chart-0 .mark-symbol path")
    assert (opened.input_value("#policy"), points.count()) == ("b", 2)
    opened.select_option("#policy", "a")
    opened.wait_for_function("document.querySelectorAll('#chart-0 .mark-symbol path').length == 1")
    opened.close()
