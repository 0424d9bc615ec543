"""Every kind of page in a real Chromium, wide and on a phone, light and dark: it can be read there, by everybody."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from rayssl.reports.comparison import page as comparisons
from rayssl.reports.run.page import render
from rayssl.reports.run.reading import read_run
from rayssl.reports.sweep.page import read_sweep, render_sweep
from tests.reports.example_classes import write_class_run
from tests.reports.example_nights import write_night_run
from tests.reports.example_run import write_run
from tests.reports.example_sweep import write_sweep

pytestmark = [pytest.mark.pages, pytest.mark.timeout(600)]

VIEWS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]
KINDS = ("run", "classes", "nights", "sweep", "comparison", "begun")
OPENED = "document.querySelectorAll('details').forEach((each) => { each.open = true; })"
#: Words in tables whose letters are not in one line.
BROKEN = """() => {
  const found = [], words = /[\\p{L}\\p{N}]{2,}/gu;
  for (const cell of document.querySelectorAll("td, th")) {
    const walk = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
    for (let node = walk.nextNode(); node; node = walk.nextNode())
      for (const word of node.data.matchAll(words)) {
        const range = document.createRange();
        range.setStart(node, word.index);
        range.setEnd(node, word.index + word[0].length);
        if (new Set([...range.getClientRects()].map((box) => Math.round(box.top))).size > 1) found.push(node.data);
      }
  }
  return found;
}"""
#: The heights in pixels of the letters of all pictures that are shown.
LETTERS = """() => [...document.querySelectorAll("figure svg text")].filter((each) => each.getClientRects().length)
  .map((each) => [parseFloat(getComputedStyle(each).fontSize) * each.ownerSVGElement.getScreenCTM().a,
                  each.textContent])"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that writes a page of a kind, once, with everything that such a page can have."""
    folder = tmp_path_factory.mktemp("pages")

    @cache
    def speech() -> Path:
        run = write_run(folder / "ssps", epochs=8, steps=20, speakers=6, per_speaker=12)
        complete(run)
        return run

    @cache
    def words() -> Path:
        return write_class_run(folder / "words", classes=10, epochs=8, steps=5)

    @cache
    def night() -> Path:
        return write_night_run(folder / "night", nights=7, epochs=300)

    def begun() -> Path:
        (folder / "begun").mkdir()
        long = "a_very_long_section.of_keys.without_an_end: s3://bucket/with/a/long/path/in/it\n"
        (folder / "begun/config.yaml").write_text(long)
        return folder / "begun"

    def compared() -> str:
        other = shutil.copytree(speech(), folder / "ssps-with-a-name-that-is-long-enough-to-be-broken")
        config = (other / "config.yaml").read_text()
        (other / "config.yaml").write_text(config.replace("temperature: 0.03", "temperature: 0.05"))
        runs = [str(each) for each in (speech(), other, words(), night())]
        return comparisons.render(comparisons.reading.read_comparison(runs))

    drawn: dict[str, Callable[[], str]] = {
        "run": lambda: render(read_run(str(speech()))),
        "classes": lambda: render(read_run(str(words()))),
        "nights": lambda: render(read_run(str(night()))),
        "sweep": lambda: render_sweep(read_sweep(str(write_sweep(folder / "sweep", count=24)))),
        "comparison": compared,
        "begun": lambda: render(read_run(str(begun()))),
    }
    assert tuple(drawn) == KINDS

    @cache
    def write(kind: str) -> Path:
        page = folder / f"{kind}.html"
        page.write_text(drawn[kind](), encoding="utf-8")
        return page

    return write


def complete(run: Path) -> None:
    """Adds what only a real run has: hardware, starts, sizes of clusters, and too few speakers."""
    origin = json.loads((run / "origin.json").read_text())
    starts = [{"time": "2026-01-01T00:00:00Z", "argv": origin["argv"], "commit": "0123abc"}]
    hardware = {
        "parameters": 6_200_000,
        "trainable": 6_100_000,
        "ranks": 2,
        "device": "CPU",
        "cores": 8,
        "memory_gb": 24,
    }
    (run / "origin.json").write_text(json.dumps({**origin, "starts": starts, "hardware": hardware}))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if "coverage" in line:
            line |= {"cluster_smallest": 1, "cluster_median": 12, "cluster_largest": 230}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = json.loads((run / "evaluation/result.json").read_text())
    few = {"eer_low": result["eer"], "eer_high": result["eer"], "speakers": 2}
    (run / "evaluation/result.json").write_text(json.dumps({**result, **few}))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The Chromium of the system; skips where it is not installed."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium here (package chromium)")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: it is in the extra test")
    with api.sync_playwright() as started:
        # Chromium's own sandbox does not run as root; the pages are ours
        each = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield each
        each.close()


@pytest.fixture
def opened(browser: Any, written: Callable[[str], Path]) -> Iterator[Callable[..., tuple[Any, list[str]]]]:
    """Opens a page in a window; gives it with the addresses that it asked for."""
    contexts = []

    def open_page(kind: str, width: int, scheme: str = "light") -> tuple[Any, list[str]]:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        shown, asked = context.new_page(), list[str]()
        shown.on("request", lambda request: asked.append(request.url))
        shown.on("pageerror", lambda error: asked.append(f"error: {error}"))
        shown.on("console", lambda message: asked.append(f"console: {message.text}"))
        shown.goto(written(kind).as_uri())
        return shown, asked

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_keeps_anybody_from_reading(opened: Any, kind: str, width: int, scheme: str) -> None:
    """axe-core has no serious finding, and the page asks nobody for anything."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is in the extra test").Axe()
    shown, asked = opened(kind, width, scheme)
    shown.evaluate(OPENED)
    found = axe.run(shown).response["violations"]
    told = [
        f"{each['id']} ({each['impact']}): {node['target']} {node['html'][:160]}"
        for each in found
        for node in each["nodes"]
    ]
    assert [line for line in told if "(serious)" in line or "(critical)" in line] == []
    assert [address for address in asked if not address.startswith("file:")] == [] and len(asked) == 1


@pytest.mark.parametrize("width", [320, 390, 700, 841, 1280])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_wider_than_the_window(opened: Any, kind: str, width: int) -> None:
    """No sideways scroll, no word in a table broken between its letters, and letters in pictures that can be read."""
    shown, _ = opened(kind, width)
    shown.evaluate(OPENED)
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    assert shown.evaluate(BROKEN) == []
    small = [text for height, text in shown.evaluate(LETTERS) if height < 9.5]
    assert small == []


@pytest.mark.parametrize("width", [1280, 390])
def test_the_values_of_a_curve_are_shown_under_the_pointer(
    opened: Any, written: Callable[[str], Path], width: int
) -> None:
    shown, _ = opened("run", width)
    picture = shown.locator("figure[data-hover] svg[aria-label='Training loss over steps']:visible")
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    shown.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.5 * box["height"])
    told = shown.locator(".hover:visible")
    step, loss = told.locator("div span:last-child").all_text_contents()
    lines = [json.loads(line) for line in (written("run").parent / "ssps/metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if line["kind"] == "step"}
    around = [losses[s] for s in range(int(step) - 3, int(step) + 4)]
    assert 60 < int(step) < 120 and min(around) <= float(loss) <= max(around)
    assert told.bounding_box()["x"] >= 0 and told.bounding_box()["x"] + told.bounding_box()["width"] <= width
    shown.mouse.move(box["x"] + 0.6 * box["width"], max(0, box["y"] - 40))
    assert shown.locator(".hover:visible").count() == 0


def test_colours_follow_the_reader(opened: Any) -> None:
    grounds = set()
    for scheme in ("light", "dark"):
        shown, _ = opened("run", 1280, scheme)
        grounds.add(shown.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert grounds == {"rgb(255, 255, 255)", "rgb(20, 24, 30)"}
