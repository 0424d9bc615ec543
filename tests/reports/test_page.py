"""The page stands alone, escapes what it is given, and says what is missing."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

from rayssl.reports.run.page import render
from rayssl.reports.run.reading import Run, read_run
from tests.reports.example_run import write_run


class Elements(HTMLParser):
    """All elements with their attributes, and the text outside of styles; fails on tags that do not match."""

    VOID = ("meta", "path", "use", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data.strip())


def text_of(page: str) -> str:
    return " ".join(part for part in Elements(page).text if part)


def test_page_needs_nothing_else(page: str) -> None:
    elements = Elements(page).elements
    assert not {"script", "link", "iframe", "img", "object", "embed", "base"} & {tag for tag, _ in elements}
    for _, attributes in elements:
        for name, value in attributes.items():
            assert name != "src" and not name.startswith("on")
            assert not name.endswith("href") or str(value).startswith("#")
    assert not re.search(r"https?:|@import|url\((?!#)", page)


def test_page_shows_the_figures_and_the_command(page: str, small_run: Path) -> None:
    text = text_of(page)
    eer = json.loads((small_run / "evaluation/result.json").read_text())["eer"]
    assert f"{100 * eer:.2f} %" in text
    assert f"95 % interval over speakers {88 * eer:.2f} to {113 * eer:.2f} %" in text
    assert "0.413 minDCF at p = 0.01" in text
    assert "rayssl train configs/ssps.yaml seed=7 method.clusters=512" in text
    assert "at commit 0123abc, with seed 7, on 2 ranks" in text
    assert page.count("<svg") == page.count("<figcaption>") == 7


def test_configuration_says_where_values_come_from(page: str) -> None:
    text = text_of(page)
    assert "method.clusters 512 override" in text and "method.start_epoch 10 file" in text
    assert "optim.lr 0.001 default" in text and "7 values left at their default" in text
    assert page.count('class="given"') == 2


def test_text_of_the_run_is_escaped(page: str) -> None:
    assert "<b> it" not in page and "<i>odd" not in page and "<script" not in page
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; &#x27;quoted&#x27; &lt;script&gt;alert(1)&lt;/script&gt;" in page


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
    assert "<script" not in page
    assert "script" not in {tag for tag, _ in Elements(page).elements}
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
