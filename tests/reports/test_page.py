"""The page stands alone, escapes what it is given, and says what is missing."""

from __future__ import annotations

import json
import re
import shutil
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import pytest

from rayssl.reports.comparison.reading import facts
from rayssl.reports.run import clock
from rayssl.reports.run.page import render
from rayssl.reports.run.reading import Record, Run, read_run
from tests.reports.example_run import write_run


class Elements(HTMLParser):
    """All elements with their attributes, and the text outside of styles and scripts; fails on tags that do not match.

    A place where a key may be broken is no end of its text.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(page.replace("<wbr>", ""))
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text.append(data.strip())


def text_of(page: str) -> str:
    return " ".join(part for part in Elements(page).text if part)


def scripts(page: str) -> list[str]:
    return re.findall(r"<script>(.*?)</script>", page, re.DOTALL)


def needs_nothing_else(page: str) -> None:
    """It asks nobody for anything: the only script is the page's own, and a browser is told to allow no other."""
    elements = Elements(page).elements
    assert not {"link", "iframe", "img", "image", "object", "embed", "base"} & {tag for tag, _ in elements}
    own = (resources.files("rayssl.reports") / "templates/page.js").read_text(encoding="utf-8")
    assert scripts(page) == [own] and [tag for tag, _ in elements].count("script") == 1
    (policy,) = (str(a["content"]) for tag, a in elements if a.get("http-equiv") == "Content-Security-Policy")
    assert f"script-src 'sha256-{b64encode(sha256(own.encode()).digest()).decode()}'" in policy
    assert "default-src 'none'" in policy
    for _, attributes in elements:
        for name, value in attributes.items():
            assert name != "src" and not name.startswith("on")
            assert not name.endswith("href") or str(value).startswith("#")
    assert not re.search(r"https?:|@import|url\((?!#)", page)


def readable_without_seeing(page: str) -> None:
    """Every picture has a name and a description of its own, every table a caption and heads."""
    elements = Elements(page).elements
    pictures = [a for tag, a in elements if tag == "svg" and a.get("class") != "swatch"]
    described = [a["id"] for tag, a in elements if tag == "desc"]
    assert all(a.get("role") == "img" and a.get("aria-label") for a in pictures)
    assert [a.get("aria-describedby") for a in pictures] == described and len(set(described)) == len(described)
    assert all(a.get("aria-hidden") == "true" for tag, a in elements if tag == "svg" and a.get("class") == "swatch")
    tags = [tag for tag, _ in elements]
    assert tags.count("table") == tags.count("caption") == tags.count("thead")
    ids = [a["id"] for _, a in elements if "id" in a]
    assert len(set(ids)) == len(ids), "two elements share an id"


def test_page_needs_nothing_else(page: str) -> None:
    needs_nothing_else(page)
    readable_without_seeing(page)


def test_page_shows_the_figures_and_the_command(page: str, small_run: Path) -> None:
    text = text_of(page)
    eer = json.loads((small_run / "evaluation/result.json").read_text())["eer"]
    assert f"{100 * eer:.2f} %" in text
    assert f"95 % interval over speakers {88 * eer:.2f} to {113 * eer + 1:.2f} %" in text
    assert "0.413 minDCF at p = 0.01" in text
    assert "rayssl train configs/ssps.yaml seed=7 method.clusters=512" in text
    assert "at commit 0123abc, with seed 7, on 2 ranks" in text
    assert page.count("<figcaption>") == 10


def test_configuration_says_where_values_come_from(page: str) -> None:
    text = text_of(page)
    assert "method.clusters 512 override" in text and "method.start_epoch 10 file" in text
    assert "optim.lr 0.001 default" in text and "7 values left at their default" in text
    assert page.count('class="given"') == 2


def test_text_of_the_run_is_escaped(page: str) -> None:
    assert "<b> it" not in page and "<i>odd" not in page and len(scripts(page)) == 1
    whole = page.replace("<wbr>", "")
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; &#39;quoted&#39; &lt;script&gt;alert(1)&lt;/script&gt;" in whole


def test_every_field_is_escaped() -> None:
    evil = "<script>x</script>"
    line = {"kind": "step", "step": 1, "loss": 1.0, evil: 1.0}
    run = Run(
        uri=f"/runs/{evil}",
        config={"method": {"name": evil}, "encoder": {"backbone": {"name": evil}}, evil: evil},
        origin={"argv": ["rayssl", evil], "commit": evil, "seed": evil, "world_size": evil, "versions": {evil: evil},
                "origins": {evil: evil}, evil: evil},
        metrics=[line, {**line, "step": 2, evil: 2.0}],
        results=[{"eer": 0.1, "checkpoint": evil, "norm": evil, "trials": evil, "min_dcf_001": evil}],
        problems=[evil],
    )  # fmt: skip
    page = render(run)
    needs_nothing_else(page)
    assert page.count("&lt;script&gt;") > 12


def test_report_without_evaluation(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", epochs=2, steps=5, ssps=False, evaluated=False)
    text = text_of(render(read_run(str(folder))))
    assert f"This run has not been evaluated yet; rayssl evaluate {folder} does that." in text
    assert "Sampled positives" not in text and "EER" not in text


def test_report_without_labels(small_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(small_run, folder)
    (folder / "evaluation/embeddings.parquet").unlink()
    (folder / "evaluation/scores.parquet").unlink()
    (folder / "metrics.jsonl").unlink()
    text = text_of(render(read_run(str(folder))))
    assert "There is no map: it needs embeddings of utterances whose speakers are known." in text
    assert "There are no scored trials to draw" in text


def test_report_of_a_run_that_has_only_begun(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    text = text_of(render(read_run(str(tmp_path))))
    assert "No training steps have been logged yet" in text
    assert "The command is not known" in text and "Versions were not recorded" in text
    assert "seed 1 not recorded" in text


def test_problems_are_on_the_page(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: [")
    text = text_of(render(read_run(str(tmp_path))))
    assert "config.yaml cannot be used" in text and "There is no usable config.yaml" in text


def test_one_run_has_one_duration() -> None:
    """Started at 100 s, and again at 1000 s after 30 s of training; the last step is at 1090 s; evaluated later."""
    times = enumerate((110, 130, 1090))
    lines: list[Record] = [{"kind": "step", "step": step, "time": time, "loss": 1.0} for step, time in times]
    starts = [{"time": f"1970-01-01T00:{t // 60:02}:{t % 60:02}Z"} for t in (100, 1000)]
    run = Run("/r", metrics=[*lines, {"kind": "probe", "step": 3, "time": 5000.0}], origin={"starts": starts})
    assert clock.training_seconds(run) == 120
    assert re.findall(r"trained for [^·]*", text_of(render(run))) == ["trained for 120 s "]
    assert facts(run)["seconds"] == 120
    assert clock.training_seconds(Run("/r")) is None


@pytest.mark.parametrize(
    ("low", "high", "speakers", "said"),
    [
        (0.0, 0.0, 2, "is a single point: trials of 2 speakers give"),
        (0.1, 0.1, None, "is a single point: so few speakers give"),
        (0.05, 0.2, 4, "rests on trials of 4 speakers"),
        (0.05, 0.2, 40, None),
        (0.05, 0.2, None, None),
        (None, None, 2, None),
    ],
)
def test_an_interval_that_says_nothing_is_called_out(
    low: float | None, high: float | None, speakers: int | None, said: str | None
) -> None:
    result = {"eer": 0.1, "eer_low": low, "eer_high": high, "speakers": speakers, "trials": 100}
    text = text_of(render(Run("/r", results=[result])))
    assert ("The interval of the EER" in text) == (said is not None) and (said or "") in text
    assert ("95 % interval over speakers" in text) == (low is not None and low != high)


def test_model_and_hardware_are_named() -> None:
    hardware = {"parameters": 1_234_567, "trainable": 1_000_000, "ranks": 2, "device": "CPU <b>", "cores": 8}
    text = text_of(render(Run("/r", origin={"hardware": hardware})))
    assert "1.23 M parameters" in text and "Parameters 1,234,567 Of them trained 1,000,000 Ranks 2" in text
    assert "Device of a rank CPU <b>" in text and "hardware.parameters" not in text
    assert "Model and hardware" not in text_of(render(Run("/r")))


def test_starts_and_changes_are_listed() -> None:
    starts = [{"time": "T1", "argv": ["/x/rayssl", "train", "a b.yaml"], "commit": "0123abc"}]
    origin = {"argv": ["rayssl", "train"], "starts": starts, "components": {}, "versions": {"torch": "2"},
              "changes": [{"step": 40, "key": "training.batch", "before": 8, "after": 16}]}  # fmt: skip
    text = text_of(render(Run("/r", origin=origin)))
    assert "All starts of the run: 1" in text and "T1 0123abc rayssl train 'a b.yaml'" in text
    assert "All changes of the run: 1" in text and "40 training.batch 8 16" in text and "components" not in text
