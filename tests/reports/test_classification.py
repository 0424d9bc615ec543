"""The page of a classification run: cards, table, pictures, escaping, and nothing of it on other pages."""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from rayssl.reports.run import classification
from rayssl.reports.run.page import render
from rayssl.reports.run.reading import Run, read_run
from tests.reports.example_classes import write_class_run
from tests.reports.test_page import needs_nothing_else, readable_without_seeing, text_of

PICTURES = ["classes", "confusion", "efficiency", "over_time", "pseudo", "pseudo_map", "bias"]


@pytest.mark.long
def test_page_needs_nothing_else_and_has_every_picture_with_its_caption(class_page: str) -> None:
    needs_nothing_else(class_page)
    readable_without_seeing(class_page)
    assert class_page.count("<figcaption>") == len(PICTURES) + 2  # loss and rate


@pytest.mark.long
def test_page_shows_the_figures_of_the_first_head(class_page: str, class_run: Path) -> None:
    records = json.loads((class_run / "evaluation/result.json").read_text())
    model, text = records[0], text_of(class_page)
    low, high = 100 * model["balanced_accuracy_low"], 100 * model["balanced_accuracy_high"]
    card = f"balanced accuracy (the model's own classifier), 95 % interval {low:.1f} to {high:.1f} %"
    assert f"{100 * model['balanced_accuracy']:.1f} % {card}" in text
    assert f"{100 * model['geometric_mean']:.1f} % geometric mean" in text
    assert f"{100 * model['macro_f1']:.1f} % macro F1" in text
    for record in records[1:]:
        name = {"linear": "Linear probe", "knn": "Nearest neighbours", "finetune": "Fine-tuned"}[record["head"]]
        assert f"{name} {100 * record['share']:g} % {100 * record['balanced_accuracy']:.1f} " in text
    assert "The next pictures show the first row: the model's own classifier." in text
    assert "Checkpoint step-400." in text


@pytest.mark.long
def test_a_run_without_trials_is_told_nothing_of_trials_or_speakers(class_page: str, tmp_path: Path) -> None:
    bare = write_class_run(tmp_path / "run", classes=3, epochs=2, steps=2, evaluated=False)
    told = text_of(render(read_run(str(bare))))
    for text in (text_of(class_page), told):
        assert "Classification" in text
        assert not re.search(r"Speaker verification|scored trials|no map", text)
    assert f"This run has not been evaluated yet; rayssl evaluate {bare} does that." in told


@pytest.mark.long
def test_a_run_of_trials_has_no_word_of_classification(small_run: Path, page: str) -> None:
    run = read_run(str(small_run))
    assert not classification.is_classification(run)
    assert classification.class_pictures(run) == {} and classification.cards(run) == []
    assert [s for s in classification.sections(run, {}) if s.blocks] == [] and "Classification" not in page


@pytest.mark.long
def test_results_of_both_kinds_share_a_page(small_run: Path, class_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(small_run, folder)
    results = [json.loads((small_run / "evaluation/result.json").read_text())]
    results += json.loads((class_run / "evaluation/result.json").read_text())
    (folder / "evaluation/result.json").write_text(json.dumps(results))
    text = text_of(render(read_run(str(folder))))
    assert "Classification" in text and "Speaker verification" in text and "Embeddings" in text
    assert text.count("minDCF at p = 0.01") == 1 and text.count("step-1200") == 1


def test_checkpoints_are_a_column_where_there_are_several() -> None:
    base = {"balanced_accuracy": 0.5, "head": "linear", "share": 1.0}
    run = Run("r", results=[{**base, "checkpoint": "step-1"}, {**base, "checkpoint": "step-2"}])
    text = text_of(render(run))
    assert "Linear probe step-1 100 % 50.0" in text and "Linear probe step-2 100 % 50.0" in text


def test_every_field_is_escaped() -> None:
    evil = "<script>x</script>"
    row = {"name": evil, "recall": 1.0, "precision": evil, "train_count": 1}
    result = {"balanced_accuracy": 0.5, "head": evil, "share": evil, "checkpoint": evil, "n": evil, "accuracy": evil,
              "per_class": [row, row], "confusion": [[1, 1], [0, 2]]}  # fmt: skip
    counts = {name: [1, 2] for name in ("predicted", "confident", "right", "truth")}
    lines = [{"kind": "classes", "epoch": e, "names": [evil, evil], **counts} for e in (0, 1)]
    page = render(Run(f"/runs/{evil}", results=[result], metrics=lines))
    needs_nothing_else(page)
    assert page.count("&lt;script&gt;") > 8


def test_records_that_hold_little_are_shown_as_far_as_they_go() -> None:
    text = text_of(render(Run("r", results=[{"balanced_accuracy": None}, {"balanced_accuracy": 0.25}])))
    assert "25.0" in text and "Classification" in text and "next pictures" not in text


@pytest.mark.long
def test_pictures_have_ids_of_their_own_and_are_repeatable(class_run: Path, class_page: str) -> None:
    drawn = classification.class_pictures(read_run(str(class_run)))
    assert list(drawn) == PICTURES
    seen: set[str] = set()
    for svg in (svg for each in drawn.values() for svg in (each.wide, each.narrow)):
        assert svg in class_page and "#010203" not in svg and 'id="crisp"' not in svg
        root = ET.fromstring(svg.replace("<svg", '<svg xmlns:xlink="x"', 1))
        ids = {node.attrib["id"] for node in root.iter() if "id" in node.attrib}
        assert not seen & ids, "two pictures on one page share an id"
        seen |= ids
