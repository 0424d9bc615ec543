"""The pictures are there when their data is, draw what they say, and stay what HTML can hold."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from rayssl.reports.drawing import svg_text
from rayssl.reports.run.figures import (
    _thin,
    _thin_path,
    det_picture,
    embedding_map,
    loss_curve,
    other_curves,
    positives_curves,
    score_histogram,
)
from rayssl.reports.run.reading import EmbeddingSample, Run, Scores, read_run
from tests.reports.example_run import write_run


def words(svg: str) -> list[str]:
    """All text in a picture."""
    root = ET.fromstring(svg.replace("<svg", '<svg xmlns:xlink="x"', 1))
    return ["".join(node.itertext()).strip() for node in root.iter("text")]


def two_kinds(seed: int, shift: float, count: int = 300) -> Scores:
    draw = np.random.default_rng([seed])
    label = np.arange(count) % 2
    return Scores(label, draw.normal(size=count) + shift * label)


def test_all_pictures_of_a_whole_run(drawn: dict[str, str]) -> None:
    assert list(drawn) == ["loss", "schedule", "others", "positives", "det", "histogram", "map"]
    for name, axis in {"loss": "Step", "positives": "Epoch", "det": "Misses (% of target trials)"}.items():
        assert axis in words(drawn[name])


def test_pictures_have_no_links_out_and_ids_of_their_own(drawn: dict[str, str]) -> None:
    seen: set[str] = set()
    for svg in drawn.values():
        root = ET.fromstring(svg.replace("<svg", '<svg xmlns:xlink="x"', 1))
        ids = [node.attrib["id"] for node in root.iter() if "id" in node.attrib]
        assert not seen & set(ids), "two pictures on one page share an id"
        seen |= set(ids)
        links = [value for node in root.iter() for key, value in node.attrib.items() if key.endswith("href")]
        assert all(link.startswith("#") and link[1:] in ids for link in links)
        assert "http" not in svg and "#010203" not in svg and "#040506" not in svg


def test_pictures_are_repeatable(drawn: dict[str, str], page: str) -> None:
    assert [name for name, svg in drawn.items() if svg not in page] == []


def test_ssps_start_is_marked_only_with_ssps(drawn: dict[str, str], tmp_path: Path) -> None:
    plain = read_run(str(write_run(tmp_path / "r", epochs=2, steps=10, ssps=False, evaluated=False)))
    assert "positives sampled from here on" in words(drawn["loss"])
    assert "positives sampled from here on" not in words(str(loss_curve(plain)))
    assert positives_curves(plain) is None


def test_metric_names_are_text_and_not_formulas(drawn: dict[str, str]) -> None:
    assert "pair_$x$" in words(drawn["others"])


@pytest.mark.parametrize(("shift", "eer"), [(2.0, 0.16), (-3.0, 0.5), (50.0, 0.0), (2.0, None)])
def test_scores_of_any_quality_can_be_drawn(shift: float, eer: float | None) -> None:
    scores = two_kinds(0, shift)
    det, histogram = words(det_picture(scores, eer)), words(score_histogram(scores))
    assert ("EER 16.00 %" in det) == (eer == 0.16)
    assert any(word.startswith("Threshold at EER") for word in histogram)


def test_histogram_counts_both_kinds() -> None:
    assert "Target: one speaker (150)" in words(score_histogram(two_kinds(1, 1.0)))


def test_a_map_needs_a_few_points_and_survives_equal_ones() -> None:
    few = EmbeddingSample(np.eye(5), np.arange(5), np.arange(5))
    assert embedding_map(few) is None
    draw = np.random.default_rng([0])
    some = EmbeddingSample(draw.normal(size=(9, 4)), np.repeat([3, 7, 8], 3), np.arange(9))
    assert "Coloured by speaker (3)" in words(str(embedding_map(some)))
    assert "Coloured by recording of that speaker (up to 3)" in words(str(embedding_map(some)))


def test_metrics_that_never_change_are_not_drawn() -> None:
    lines = [{"kind": "step", "step": s, "ranks": 2, "loss": 1.0} for s in range(5)]
    assert other_curves(Run("r", metrics=lines)) is None


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    steps = np.arange(100_000.0)
    x, y = _thin(steps, steps * 2)
    assert len(x) <= 900 and x[0] == 0 and x[-1] == 99_999 and (y == 2 * x).all()
    x, y = _thin_path(np.sort(np.random.default_rng([1]).normal(size=50_000)), np.zeros(50_000))
    assert len(x) <= 3600 and (np.diff(x) > 0).all()


def test_svg_scales_to_the_page() -> None:
    from matplotlib.figure import Figure

    opening = svg_text(Figure(figsize=(2, 1)), "x").partition(">")[0]
    assert "width=" not in opening and "height=" not in opening and 'viewBox="0 0 144 72"' in opening
