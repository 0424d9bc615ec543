"""The picture of a night, and the page and the comparison of runs that stage nights."""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from matplotlib.patches import PathPatch

from rayssl.data.nights.scores import NightScores, write_stages
from rayssl.data.sources.nights import STAGES
from rayssl.reports.comparison import page as comparisons
from rayssl.reports.drawing import VERMILION
from rayssl.reports.nights import night_figure, night_file, night_picture, stage_colour, stage_order
from rayssl.reports.run.page import render, write_report
from rayssl.reports.run.reading import Run, read_run, shown_nights
from rayssl.reports.run.staging import staging_pictures
from tests.evaluation.nights import DEEP, LIGHT, REM, WAKE, certain, night
from tests.reports.example_classes import write_class_run
from tests.reports.example_nights import write_night_run
from tests.reports.test_page import needs_nothing_else, readable_without_seeing, text_of

EPOCH_H = 1 / 120


def boxes(axes: object, colour: str) -> list[tuple[float, float, float, float]]:
    """Left, right, bottom and top of each box of this colour, in hours and data units."""
    from matplotlib.colors import to_rgba

    found = []
    for patch in axes.patches:  # type: ignore[attr-defined]
        if isinstance(patch, PathPatch) and patch.get_facecolor() == to_rgba(colour):
            for box in patch.get_path().vertices.reshape(-1, 5, 2):
                found.append((box[:, 0].min(), box[:, 0].max(), box[:, 1].min(), box[:, 1].max()))
    return found


@pytest.fixture(scope="module")
def night_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_night_run(tmp_path_factory.mktemp("runs") / "nights", nights=7, epochs=400)


@pytest.fixture(scope="module")
def night_page(night_run: Path) -> str:
    assert write_report(str(night_run)) == f"{night_run}/report.html"
    return (night_run / "report.html").read_text(encoding="utf-8")


def test_hypnograms_show_every_epoch_at_its_stage_and_time() -> None:
    truth = [WAKE, WAKE, LIGHT, DEEP, DEEP, REM, -1, LIGHT]
    predicted = [WAKE, LIGHT, LIGHT, DEEP, REM, REM, REM, LIGHT]
    index = [10, 11, 12, 13, 14, 20, 21, 22]
    figure = night_figure(certain("n", "s", truth, predicted, index))
    scored, errors, found, _ = figure.axes
    level = {WAKE: 3, REM: 2, LIGHT: 1, DEEP: 0}  # Wake on top, REM next
    assert [label.get_text() for label in scored.get_yticklabels()] == ["Wake", "REM", "Light", "Deep"]
    for axes, stages in ((scored, truth), (found, predicted)):
        for stage, name in enumerate(STAGES):
            covered = {
                place
                for left, right, low, high in boxes(axes, stage_colour(name))
                for place in range(round(left / EPOCH_H), round(right / EPOCH_H))
                if low < level[stage] < high
            }
            assert covered == {place for place, own in zip(index, stages, strict=True) if own == stage}, name
    wrong = [(round(left / EPOCH_H), round(right / EPOCH_H)) for left, right, *_ in boxes(errors, VERMILION)]
    assert wrong == [(11, 12), (14, 15)]  # the unscored epoch is no error
    assert scored.get_xlim() == pytest.approx((10 * EPOCH_H, 23 * EPOCH_H))


def test_bands_sum_to_all_and_stop_at_gaps() -> None:
    probabilities = np.random.default_rng([1]).dirichlet(np.ones(4), 5).astype(np.float32)
    each = NightScores("n", "s", np.array([0, 1, 2, 6, 7]), np.full(5, -1), probabilities)
    figure = night_figure(each)
    assert len(figure.axes) == 2  # nobody scored it: neither a scored hypnogram nor errors
    bands = [patch for patch in figure.axes[1].patches if isinstance(patch, PathPatch)]
    assert len(bands) == 2 * 4
    edges = [(0, 3), (6, 8)]
    for run, (first, after) in enumerate(edges):
        rows = probabilities[:3] if run == 0 else probabilities[3:]
        below = np.zeros(len(rows))
        for place, stage in enumerate(stage_order(STAGES)[::-1]):  # from the bottom: Deep, Light, REM, Wake
            corners = bands[4 * run + 3 - place].get_path().vertices
            below = below + rows[:, stage]
            assert (corners[0, 0], corners[-1, 0]) == pytest.approx((first * EPOCH_H, after * EPOCH_H))
            inner = corners[1:-1, 1]
            assert inner == pytest.approx(np.repeat(below, 2) if place < 3 else np.ones(2), abs=1e-6)


def test_what_is_missing_and_unscored_is_in_the_legend_only_if_there_is_any() -> None:
    def legend(each: NightScores) -> list[str]:
        return [text.get_text() for text in night_figure(each).legends[0].get_texts()]

    whole = certain("n", "s", [0, 1, 2], [0, 1, 1])
    assert legend(whole) == ["Wake", "REM", "Light", "Deep", "Predicted differs from scored"]
    assert legend(certain("n", "s", [0, -1, 2], [0, 1, 1], [0, 1, 9]))[-2:] == ["Unscored", "Missing"]
    assert legend(certain("n", "s", [-1, -1], [0, 1])) == ["Wake", "REM", "Light", "Deep"]


@pytest.mark.parametrize("count", [1, 2, 3000])
def test_nights_of_any_length_can_be_drawn(count: int) -> None:
    draw = np.random.default_rng([count])
    truth = draw.integers(-1, 4, count)
    each = NightScores("a $x$ <b>", "s", np.arange(count), truth, draw.dirichlet(np.ones(4), count).astype(np.float32))
    picture = str(night_picture(each, title="a $x$ <b>"))
    ET.fromstring(picture.replace("<svg", '<svg xmlns:xlink="x"', 1))
    assert "a $x$ &lt;b&gt;" in picture and "#010203" not in picture and "#040506" not in picture
    assert len(picture) < 300 * count + 30_000  # bytes: about 250 KB for 8 hours in which every epoch differs


def test_a_night_is_a_file_too() -> None:
    each = certain("n", "s", [-1] * 4, [0, 1, 2, 3])
    assert night_file(each).startswith(b"\x89PNG") and night_file(each, kind="pdf").startswith(b"%PDF")
    svg = night_file(each, title="My night", kind="svg").decode()
    ET.fromstring(svg)
    assert "#010203" not in svg and "#040506" not in svg and "1c2430" in svg.lower()
    with pytest.raises(ValueError, match="night n: no epochs"):
        night_file(certain("n", "s", [], []))


def test_stages_of_other_names_keep_wake_and_rem_on_top() -> None:
    assert stage_order(("Wake", "N1", "N2", "N3", "REM")) == [0, 4, 1, 2, 3]
    picture = night_picture(certain("n", "s", [0, 1, 2], [0, 1, 2], classes=3), ("Wake", "NREM", "REM"))
    assert "NREM" in str(picture)


def test_best_median_and_worst_are_by_kappa() -> None:
    rows = [
        {"night": name, "kappa": kappa} for name, kappa in zip("abcdef", [0.5, 0.1, 0.9, None, 0.6, 0.7], strict=True)
    ]
    assert shown_nights({"per_night": rows}) == {"c": "Best night", "e": "Median night", "b": "Worst night"}
    assert shown_nights({"per_night": rows[:1]}) == {"a": "Best night"}
    assert shown_nights({}) == shown_nights({"per_night": "x"}) == {}


@pytest.mark.long
def test_page_needs_nothing_else_and_has_every_picture(night_page: str, night_run: Path) -> None:
    needs_nothing_else(night_page)
    readable_without_seeing(night_page)
    drawn = staging_pictures(read_run(str(night_run)))
    assert list(drawn) == ["confusion", "kappa", "variables", "night 1", "night 2", "night 3"]
    assert night_page.count("<figcaption>") == len(drawn) + 2  # loss and rate
    seen: set[str] = set()
    for svg in (svg for each in drawn.values() for svg in (each.wide, each.narrow)):
        assert svg in night_page and "#010203" not in svg and "#040506" not in svg
        ids = {
            n.attrib["id"]
            for n in ET.fromstring(svg.replace("<svg", '<svg xmlns:xlink="x"', 1)).iter()
            if "id" in n.attrib
        }
        assert not seen & ids, "two pictures on one page share an id"
        seen |= ids


@pytest.mark.long
def test_page_shows_the_figures_beside_the_majority(night_page: str, night_run: Path) -> None:
    result = json.loads((night_run / "evaluation/result.json").read_text())
    text, majority = text_of(night_page), result["majority"]
    low, high = 100 * result["macro_f1_low"], 100 * result["macro_f1_high"]
    card = f"macro F1, 95 % interval {low:.1f} to {high:.1f} %; majority baseline {100 * majority['macro_f1']:.1f} %"
    assert f"{100 * result['macro_f1']:.1f} % {card}" in text
    assert f"{result['kappa']:.3f} Cohen's kappa, 95 % interval {result['kappa_low']:.3f} to" in text
    assert f"Majority {100 * majority['macro_f1']:.1f} - 0.000 - {100 * majority['accuracy']:.1f} 25.0" in text
    for key, name in (("three_class", "Wake, NREM, REM"), ("two_class", "Wake, Sleep")):
        assert f"{name} Model {100 * result[key]['macro_f1']:.1f} " in text
    assert "the most frequent stage of the training corpus" in text and "Intervals resample subjects." in text
    for row in result["per_class"]:
        assert f"{row['name']} {row['train_count']:,} {row['support']:,} " in text
    by_kappa = sorted(result["per_night"], key=lambda row: row["kappa"])
    for what, row in (("Best", by_kappa[-1]), ("Median", by_kappa[3]), ("Worst", by_kappa[0])):
        assert f"{what} night: {row['night']} (kappa {row['kappa']:.3f}, accuracy" in text
    assert "7 nights" in text and all(row["night"] in text for row in by_kappa)
    tst = next(row for row in result["variables"] if row["name"] == "tst")
    assert f"Total sleep time 7 {tst['scored_mean']:.1f} {tst['predicted_mean']:.1f} {tst['bias']:.1f}" in text
    assert not re.search(r"Classification|Speaker verification|scored trials|no map", text)


def test_a_run_without_results_says_how_to_get_them(tmp_path: Path) -> None:
    bare = write_night_run(tmp_path / "run", evaluated=False)
    text = text_of(render(read_run(str(bare))))
    assert f"Sleep staging This run has not been evaluated yet; rayssl evaluate {bare} does that." in text
    assert "Classification" not in text and "Speaker verification" not in text


def test_an_invalid_macro_f1_is_said_and_not_a_number(tmp_path: Path) -> None:
    from rayssl.evaluation.staging import staging_result

    found = staging_result([certain("n", "s", [0, 1, 2, 1], [0, 1, 2, 2])], STAGES)
    text = text_of(render(Run("r", results=[found.model_dump(mode="json")])))
    assert "invalid macro F1" in text and "Macro F1 is invalid: no scored epoch is REM" in text
    assert "No interval: there is only one subject." in text and "There is no night to draw" in text
    assert "the most frequent stage of the test nights themselves" in text


@pytest.mark.long
def test_damaged_results_are_no_stop(night_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(night_run, folder)
    (folder / "evaluation/stages.parquet").write_bytes(b"PAR1 but not really")
    run = read_run(str(folder))
    assert run.nights == [] and any("stages.parquet cannot be used" in problem for problem in run.problems)
    assert "There is no night to draw" in text_of(render(run))
    table = pq.read_table(night_run / "evaluation/stages.parquet")
    pq.write_table(table.drop_columns(["index"]), folder / "evaluation/stages.parquet")
    assert any("lacks index" in problem for problem in read_run(str(folder)).problems)
    (folder / "evaluation/result.json").unlink()
    pq.write_table(table, folder / "evaluation/stages.parquet")
    assert len(read_run(str(folder)).nights) == 3  # without figures, the first three
    assert read_run(str(folder), drawn=False).nights == []
    for result in ({"task": "staging"}, {"task": "staging", "per_class": [{}], "per_night": [{"night": 1}], "names": 3,
                   "variables": [{}], "majority": 1, "confusion": "x", "three_class": {}}):  # fmt: skip
        assert "Sleep staging" in text_of(render(Run("r", results=[result])))


def test_every_field_is_escaped() -> None:
    evil = "<script>x</script>"
    row = {"name": evil, "night": evil, "subject": evil, "kappa": 0.5, "scored": evil, "support": 1, "recall": 1.0}
    result = {"task": "staging", "names": [evil, "REM"], "checkpoint": evil, "invalid": evil, "no_interval": evil,
              "per_class": [row, row], "per_night": [row] * 3, "variables": [row],
              "confusion": [[1, 1], [0, 2]]}  # fmt: skip
    nights = [certain(evil, evil, [0, 1, 1], [0, 1, 0], classes=2)]
    page = render(Run("r", results=[result], nights=nights))
    needs_nothing_else(page)
    assert page.count("&lt;script&gt;") > 8


def test_checkpoints_over_time_show_staging_figures() -> None:
    lines = [
        {"kind": "probe", "seconds": 60.0 * s, "macro_f1": 0.5 + s / 10, "kappa": 0.4, "accuracy": 0.6}
        for s in (1, 2, 3)
    ]
    run = Run("r", config={"evaluation": {"task": "staging", "corpus": "c"}}, metrics=lines)
    picture = staging_pictures(run)["over_time"].wide
    assert all(text in picture for text in ("Macro F1", "Cohen's kappa", "Accuracy"))
    assert "Balanced accuracy" not in render(run)


@pytest.mark.long
def test_comparison_has_staging_beside_the_rest(night_run: Path, tmp_path: Path) -> None:
    other = write_night_run(tmp_path / "other", nights=7, epochs=400, skill=1.5, seed=0)
    (other / "config.yaml").write_text(
        (other / "config.yaml").read_text().replace("sequential: 1.0", "sequential: 0.0")
    )
    words = write_class_run(tmp_path / "words", classes=3, epochs=2, steps=2)
    found = comparisons.reading.read_comparison([str(night_run), str(other), str(words)])
    text, summary = text_of(comparisons.render(found)), comparisons.summary(found)
    results = [json.loads((run / "evaluation/result.json").read_text()) for run in (night_run, other)]
    for result in results:
        assert f"{100 * result['macro_f1']:.1f} [{100 * result['macro_f1_low']:.1f}, " in text
        assert f"{result['kappa']:.3f} [{result['kappa_low']:.3f}, {result['kappa_high']:.3f}]" in text
        assert f"{result['kappa']:.3f} [" in summary
    gap = 100 * (results[1]["macro_f1"] - results[0]["macro_f1"])
    assert f"{gap:+.1f} (n=1)" in summary and "Classification" in summary
    base = results[0]["majority"]
    assert f"Majority baseline: Macro F1 % {100 * base['macro_f1']:.1f}, Kappa 0.000, Accuracy %" in text
    assert "Not all runs were tested on the same nights" not in text and "Speaker verification" not in text


def test_stages_of_a_model_without_truth_have_a_page_of_pictures(tmp_path: Path) -> None:
    """What `rayssl stage` writes is read back, and drawn without a scored hypnogram."""
    each = night(3, epochs=90)
    blind = NightScores(each.name, each.subject, each.index, np.full_like(each.truth, -1), each.probabilities)
    folder = write_night_run(tmp_path / "run", evaluated=False)
    (folder / "evaluation").mkdir()
    pq.write_table(write_stages([blind]), folder / "evaluation/stages.parquet")
    drawn = staging_pictures(read_run(str(folder)))
    assert "Predicted" in drawn["night 1"].wide and "Scored" not in drawn["night 1"].wide
