"""The pictures of a comparison: learning curves in one picture, final figures with intervals, recall by class.

A group is the runs that differ only in the seed. It has the same colour and line in all pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from rayssl.reports.comparison.reading import (
    Comparison,
    Group,
    classification,
    classifier_name,
    curve,
    seed,
    staging,
    verification,
)
from rayssl.reports.content import Column, Picture, Row, Table
from rayssl.reports.drawing import BLUE, FAINT, INK, Canvas, Drawing, picture
from rayssl.reports.measures import measure
from rayssl.reports.run.classes import class_rows, draw_cells, name_classes
from rayssl.reports.run.reading import Record, is_number

Floats = NDArray[np.float64]

_POINTS = 300  # the most points of a curve; there may be dozens of curves
_BARS = (6, 120)  # the most bars of recall for one class, and in total, that can be distinguished
_HATCHES = {"-": "", "--": "////", ":": "....", "-.": "xxxx"}  # hatches of bars, for each line style
_ROW = 0.3  # inches: the height of one run in a picture that lists runs


@picture()
def learning_curves(canvas: Canvas, comparison: Comparison, name: str) -> Drawing:
    """The metric ``name`` of all runs that have it, over steps and over training time."""
    drawn = [group for group in comparison.groups if any(len(curve(run, name)[0]) for run in group.runs)]
    height = 2.4 + 0.25 * _legend_rows(drawn, canvas)
    figure, (left, right) = canvas.figure(height, columns=2, narrow=4.2 + 0.25 * _legend_rows(drawn, canvas))
    longest = max(float(curve(run, name)[1].max(initial=0)) for run in comparison.runs)
    unit, length = ("h", 3600) if longest >= 3 * 3600 else ("min", 60) if longest >= 180 else ("s", 1)
    what = measure(name)
    for group in drawn:
        for run in group.runs:
            steps, seconds, values = curve(run, name)
            if len(steps):
                look: Any = {"color": group.colour, "linestyle": group.line, "linewidth": 1.3, "alpha": 0.9}
                smooth = what.scale * _smooth(values)
                left.plot(*_thin(steps, smooth), **look)
                right.plot(*_thin(seconds / length, smooth), **look)
                said = f"{group.number} {group.label}" + (f", seed {seed(run)}" if len(group.runs) > 1 else "")
                canvas.follow(left, said, steps, smooth, unit=what.unit)
                canvas.follow(right, said, seconds / length, smooth, over=f"Time in {unit}", unit=what.unit)
    left.set(ylabel=what.axis.replace("$", r"\$"), xlabel="Step")
    right.set(xlabel=f"Time since the start ({unit})")
    right.sharey(left)
    if canvas.narrow:
        right.set_ylabel(what.axis.replace("$", r"\$"))
    else:
        right.tick_params(labelleft=False)
    left.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if left.get_xlim()[1] >= 10_000:
        left.xaxis.set_major_formatter(EngFormatter(sep=""))
    if what.unit == "%":
        left.set_ylim(0, 102)
    elif name == "utterances_per_s":
        left.set_ylim(bottom=0)
    _legend(figure, drawn, "outside upper center", canvas)
    return Drawing(f"{what.label} of the runs")


@picture()
def verification_picture(canvas: Canvas, comparison: Comparison) -> Drawing | None:
    """The EER with its interval, and minDCF at p = 0.01, with a row for each run; None without such results."""
    figures = [("eer", "Equal error rate", True), ("min_dcf_001", "minDCF at p = 0.01", False)]
    wanted = [(key, text, share, verification) for key, text, share in figures]
    return _final(canvas, comparison, wanted, "Speaker verification")


@picture()
def staging_picture(canvas: Canvas, comparison: Comparison) -> Drawing | None:
    """Macro F1 and kappa with their intervals, and accuracy, with a row for each run; None without such results."""
    figures = [("macro_f1", "Macro F1", True), ("kappa", "Cohen's kappa", False), ("accuracy", "Accuracy", True)]
    wanted = [(key, text, share, staging) for key, text, share in figures]
    return _final(canvas, comparison, wanted, "Sleep staging")


@picture()
def classification_picture(canvas: Canvas, comparison: Comparison, which: tuple[str, float | None]) -> Drawing | None:
    """Balanced accuracy with its interval, geometric mean and macro F1 of one classifier, with a row for each run."""
    figures = {"balanced_accuracy": "Balanced accuracy", "geometric_mean": "Geometric mean", "macro_f1": "Macro F1"}
    wanted = [(key, text, True, lambda run: classification(run, which)) for key, text in figures.items()]
    return _final(canvas, comparison, wanted, f"Classification: {classifier_name(which)}")


def recall_picture(comparison: Comparison, which: tuple[str, float | None]) -> Picture | None:
    """The recall of every class in each group (the mean over its runs); None without figures by class.

    It draws bars if they can be distinguished, otherwise a row of cells for each group. Runs whose classes differ from
    the first run's are left out.
    """
    found = {
        group.number: [rows for run in group.runs if (rows := class_rows(classification(run, which)))]
        for group in comparison.groups
    }
    first = next((rows[0] for rows in found.values() if rows), None)
    if first is None:
        return None
    names = [str(row["name"]) for row in first]
    groups, table = [], []
    for group in comparison.groups:
        recalls = [_recalls(rows, names) for rows in found[group.number]]
        usable = [values for values in recalls if values is not None]
        if usable:
            groups.append(group)
            known = np.isfinite(usable).sum(axis=0)
            table.append(np.where(known > 0, np.nansum(usable, axis=0) / np.maximum(1, known), np.nan))
    title = f"Recall of every class: {classifier_name(which)}"
    if len(groups) <= _BARS[0] and len(groups) * len(names) <= _BARS[1]:
        return _recall_bars(groups, np.array(table), names, title)
    return _recall_cells(groups, np.array(table), names, title)


def _recall_table(groups: list[Group], table: Floats, names: list[str], title: str) -> Drawing:
    columns = [Column("Group"), *(Column(f"{name} %", "number") for name in names)]
    cells = [[f"{100 * value:.0f}" if np.isfinite(value) else "-" for value in values] for values in table]
    rows = [Row([f"{g.number} {g.label}", *each]) for g, each in zip(groups, cells, strict=True)]
    said = f"{len(groups)} groups and {len(names)} classes. The table below the picture has the figures."
    return Drawing(title, said, Table(f"Figures: {title}", columns, rows))


@picture()
def _recall_bars(canvas: Canvas, groups: list[Group], table: Floats, names: list[str], title: str) -> Drawing:
    figure, axes = canvas.figure(3.4 + 0.25 * _legend_rows(groups, canvas))
    width = 0.84 / len(groups)
    for index, (group, values) in enumerate(zip(groups, table, strict=True)):
        place = np.arange(len(names)) + (index - (len(groups) - 1) / 2) * width
        known = np.isfinite(values)
        axes.bar(place[known], values[known], 0.92 * width, color=group.colour, hatch=_HATCHES[group.line])
    axes.set(ylim=(0, 1.02), ylabel="Recall", xlim=(-0.6, len(names) - 0.4))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(False, axis="x")
    name_classes(axes, names)
    _legend(figure, groups, "outside lower center", canvas, squares=True)
    return _recall_table(groups, table, names, title)


@picture()
def _recall_cells(canvas: Canvas, groups: list[Group], table: Floats, names: list[str], title: str) -> Drawing:
    _, axes = canvas.figure(1.2 + _ROW * len(groups), narrow=1.2 + _ROW * len(groups))
    draw_cells(axes, table, BLUE)
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(groups) - 0.5, -0.5), xlabel="Class")
    axes.grid(False)
    if len(names) <= (8 if canvas.narrow else 20):
        for (i, j), value in np.ndenumerate(table):
            text = f"{100 * value:.0f}" if np.isfinite(value) else "-"
            axes.text(j, i, text, ha="center", va="center", color="#FFFFFF" if value > 0.85 else INK, fontsize=8)
    name_classes(axes, names)
    axes.set_yticks(range(len(groups)), [_numbered(group, 12 if canvas.narrow else 34) for group in groups])
    axes.yaxis.set_tick_params(length=0)
    return _recall_table(groups, table, names, title)


def _final(
    canvas: Canvas, comparison: Comparison, figures: list[tuple[str, str, bool, Any]], title: str
) -> Drawing | None:
    """A panel for each figure, a row for each run: its value, its 95 % interval if it has one, its group's mean."""
    rows = [(group, run) for group in comparison.groups for run in group.runs]
    rows = [(group, run) for group, run in rows if any(is_number(of(run).get(key)) for key, _, _, of in figures)]
    if not rows:
        return None
    height = 0.9 + _ROW * max(3, len(rows))
    _, all_axes = canvas.figure(height, columns=len(figures), narrow=height * len(figures))
    panels = np.ravel(all_axes)
    for axes, (key, text, share, of) in zip(panels, figures, strict=True):
        for group in comparison.groups:
            _final_group(axes, [(place, of(run)) for place, (own, run) in enumerate(rows) if own is group], group, key)
        axes.set(ylim=(len(rows) - 0.4, -0.6), yticks=[], xlabel=text)
        if axes is panels[0] or canvas.narrow:
            axes.set_yticks(range(len(rows)), [_row_name(group, run, canvas) for group, run in rows])
            axes.yaxis.set_tick_params(length=0)
        axes.grid(False, axis="y")
        axes.margins(x=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        if share:
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        borders = [place for place in range(1, len(rows)) if rows[place][0] is not rows[place - 1][0]]
        for place in borders if len(borders) + 1 < len(rows) else []:
            axes.axhline(place - 0.5, color=FAINT, linewidth=0.8)
    names = ", ".join(text for _, text, _, _ in figures)
    return Drawing(f"{title}: the runs", f"{names} of {len(rows)} runs. The table above has the figures.")


def _final_group(axes: Any, placed: list[tuple[int, Record]], group: Group, key: str) -> None:
    known = [(place, result) for place, result in placed if is_number(result.get(key))]
    for place, result in known:
        bounds = [result.get(f"{key}_{end}") for end in ("low", "high")]
        if all(is_number(bound) for bound in bounds):
            axes.plot(bounds, [place, place], "|-", color=group.colour, markersize=7, linewidth=1.6)
        axes.plot(result[key], place, "o", color=group.colour, markersize=6)
    if len(known) > 1:
        mean = float(np.mean([result[key] for _, result in known]))
        axes.plot([mean, mean], [known[0][0] - 0.4, known[-1][0] + 0.4], ":", color=group.colour, linewidth=1.3)


def _recalls(rows: list[Record], names: list[str]) -> Floats | None:
    by_name = {str(row["name"]): row.get("recall") for row in rows}
    if set(by_name) != set(names):
        return None
    values: list[Any] = [by_name[name] for name in names]
    return np.array([float(value) if is_number(value) else np.nan for value in values])


def _smooth(values: Floats) -> Floats:
    """The running mean over a 60th of the values, as on the page of one run."""
    width = max(1, len(values) // 60)
    if width < 3:
        return values
    padded = np.pad(values, (width // 2, width - 1 - width // 2), mode="edge")
    return np.convolve(padded, np.full(width, 1 / width), mode="valid")


def _thin(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    chosen = np.unique(np.linspace(0, len(x) - 1, min(len(x), _POINTS)).round().astype(int))
    return x[chosen], y[chosen]


def _legend(figure: Any, groups: Sequence[Group], place: str, canvas: Canvas, squares: bool = False) -> None:
    """Adds a legend with an entry for each group."""
    if squares:
        marks: list[Any] = [Patch(facecolor=g.colour, hatch=_HATCHES[g.line]) for g in groups]
    else:
        looks: list[Any] = [{"color": group.colour, "linestyle": group.line} for group in groups]
        marks = [Line2D([], [], linewidth=2.2, **look) for look in looks]
    texts = [_numbered(g) + (f" ({len(g.runs)} seeds)" if len(g.runs) > 1 else "") for g in groups]
    figure.legend(marks, texts, loc=place, ncols=_legend_columns(groups, canvas), handlelength=2.6)


def _legend_columns(groups: Sequence[Group], canvas: Canvas) -> int:
    longest = max((len(_numbered(group)) for group in groups), default=1) + 12
    return max(1, min(len(groups), (50 if canvas.narrow else 130) // longest))


def _legend_rows(groups: Sequence[Group], canvas: Canvas) -> int:
    return -(-len(groups) // _legend_columns(groups, canvas))


def _numbered(group: Group, most: int = 34) -> str:
    return f"{group.number}  {_short(group.label, most)}"


def _row_name(group: Group, run: Any, canvas: Canvas) -> str:
    if len(group.runs) == 1:
        return _numbered(group, 16 if canvas.narrow else 34)
    return f"{_numbered(group, 8 if canvas.narrow else 24)}, seed {seed(run)}"


def _short(text: str, most: int) -> str:
    """``text`` cut in its middle to ``most`` characters: names of a sweep differ at their ends. ``$`` is escaped."""
    if len(text) > most:
        text = f"{text[: most // 2 - 1]}…{text[-(most - most // 2) :]}"
    return text.replace("$", r"\$")
