"""The pictures are there when their data is, draw what they say, and stay what HTML can hold."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from rayssl.reports import measures
from rayssl.reports.content import Picture
from rayssl.reports.drawing import NARROW, WIDTH, svg_text
from rayssl.reports.run.figures import (
    _thin,
    _thin_path,
    cluster_sizes,
    det_picture,
    embedding_map,
    loss_curve,
    other_figures,
    pictures,
    positives_curves,
    score_histogram,
)
from rayssl.reports.run.reading import EmbeddingSample, Run, Scores, read_run
from tests.reports.example_run import write_run


def words(svg: object) -> list[str]:
    """All text in a picture, as it is on a wide page."""
    root = ET.fromstring(str(svg).replace("<svg", '<svg xmlns:xlink="x"', 1))
    return ["".join(node.itertext()).strip() for node in root.iter("text")]


def two_kinds(seed: int, shift: float, count: int = 300) -> Scores:
    draw = np.random.default_rng([seed])
    label = np.arange(count) % 2
    return Scores(label, draw.normal(size=count) + shift * label)


def test_all_pictures_of_a_whole_run(drawn: dict[str, Picture]) -> None:
    others = ["other gradient_norm", "other pair_$x$"]
    assert list(drawn) == [
        "loss",
        "lr",
        "utterances_per_s",
        *others,
        "positives",
        "agreement",
        "det",
        "histogram",
        "map",
    ]
    for name, axis in {"loss": "Step", "positives": "Epoch", "det": "Misses (% of target trials)"}.items():
        assert axis in words(drawn[name])


def test_pictures_have_no_links_out_and_ids_of_their_own(drawn: dict[str, Picture]) -> None:
    seen: set[str] = set()
    for svg in dict.fromkeys(svg for picture in drawn.values() for svg in (picture.wide, picture.narrow)):
        root = ET.fromstring(svg.replace("<svg", '<svg xmlns:xlink="x"', 1))
        ids = [node.attrib["id"] for node in root.iter() if "id" in node.attrib]
        assert not seen & set(ids), "two pictures on one page share an id"
        seen |= set(ids)
        links = [value for node in root.iter() for key, value in node.attrib.items() if key.endswith("href")]
        assert all(link.startswith("#") and link[1:] in ids for link in links)
        assert "http" not in svg and "#010203" not in svg and "#040506" not in svg


def test_pictures_are_repeatable(drawn: dict[str, Picture], page: str) -> None:
    assert [name for name, each in drawn.items() if each.wide not in page or each.narrow not in page] == []


def test_pictures_say_what_they_show(drawn: dict[str, Picture]) -> None:
    """To readers of screens: a name, a description with figures, and a table where there are curves."""
    for name, each in drawn.items():
        for svg in (each.wide, each.narrow):
            root = ET.fromstring(svg.replace("<svg", '<svg xmlns:xlink="x"', 1))
            said = root.find("desc")
            assert root.attrib["role"] == "img" and root.attrib["aria-label"] == each.title
            assert said is not None and re.search(r"[0-9]", str(said.text)), name
            assert root.attrib["aria-describedby"] == said.attrib["id"]
    assert all(each.table is not None for name, each in drawn.items() if name != "map")
    loss = drawn["loss"].table
    assert loss is not None and len(loss.rows) == 1 and loss.rows[0].cells[0] == "Training loss"


def test_hover_places_the_curves_in_both_renditions(drawn: dict[str, Picture], small_run: Path) -> None:
    """A point of the loss lies where the panel's place and its ends of the x axis say, in either rendition."""
    steps, _ = read_run(str(small_run)).series("step", "loss")
    hover = drawn["loss"].hover
    assert hover is not None
    (panel,) = hover["panels"]
    (shown,) = panel["curves"]
    assert shown["x"] == steps.tolist() and len(shown["y"]) == len(steps) and shown["name"] == "Training loss"
    for kind, width in (("wide", 72 * WIDTH), ("narrow", 72 * NARROW)):
        left, top, right, bottom, low, high = panel[kind]
        assert 0 < left < right <= width and 0 < top < bottom and low < steps[0] and steps[-1] < high
    positives = drawn["positives"].hover
    assert positives is not None and {c["unit"] for c in positives["panels"][0]["curves"]} == {"%"}
    assert drawn["map"].hover is None


def test_hover_and_page_do_not_grow_with_the_run() -> None:
    lines = [{"kind": "step", "step": s, "time": s, "loss": 1.0 / (s + 1)} for s in range(50_000)]
    drawing = loss_curve(Run("r", metrics=lines))
    assert drawing is not None and drawing.hover is not None
    (curve,) = drawing.hover["panels"][0]["curves"]
    assert len(curve["x"]) == 240 and curve["x"][0] == 0 and curve["x"][-1] == 49_999
    assert len(drawing.wide) < 60_000


def test_panels_stand_below_each_other_on_a_phone(drawn: dict[str, Picture]) -> None:
    def box(svg: str) -> list[float]:
        return [float(part) for part in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0]]

    (wide, high), (narrow, tall) = box(drawn["map"].wide), box(drawn["map"].narrow)
    assert (wide, narrow) == pytest.approx((72 * WIDTH, 72 * NARROW)) and high < wide and tall > narrow
    other = drawn["other gradient_norm"]
    assert other.wide == other.narrow


def test_cluster_sizes_are_drawn_where_they_were_logged() -> None:
    lines = [
        {
            "kind": "epoch",
            "epoch": e,
            "step": 10 * e,
            "cluster_smallest": 1,
            "cluster_median": 5 + e,
            "cluster_largest": 90,
        }
        for e in (1, 2)
    ]
    found = pictures(Run("r", metrics=lines))["sizes"]
    assert {"Largest cluster", "Median cluster", "Smallest cluster", "Utterances in a cluster"} <= set(words(found))
    assert cluster_sizes(Run("r")) is None


def test_every_known_measure_says_what_it_is() -> None:
    for name in (*measures._KNOWN, *measures._TERMS, "of_my_own"):
        what = measures.measure(name)
        assert what.label and re.fullmatch(r"[A-Z0-9].*\.", what.says) and what.axis.endswith(")"), name


def test_ssps_start_is_marked_only_with_ssps(drawn: dict[str, Picture], tmp_path: Path) -> None:
    plain = read_run(str(write_run(tmp_path / "r", epochs=2, steps=10, ssps=False, evaluated=False)))
    assert "positives sampled from here on" in words(drawn["loss"])
    assert "positives sampled from here on" not in words(str(loss_curve(plain)))
    assert positives_curves(plain) is None


def test_metric_names_are_text_and_not_formulas(drawn: dict[str, Picture]) -> None:
    assert drawn["other pair_$x$"].title == "pair_$x$"


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
    assert other_figures(Run("r", metrics=lines)) == []


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
