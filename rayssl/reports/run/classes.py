"""The pictures of classification results: figures by class, confusions, shares of labels, accuracy over time.

Classes have the same order in all pictures: by falling number of labelled training rows, if that is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from rayssl.reports.content import Column, Row, Table
from rayssl.reports.drawing import (
    BLUE,
    CRISP,
    GREEN,
    GREY,
    HALF,
    INK,
    ORANGE,
    VERMILION,
    Canvas,
    Drawing,
    picture,
)  # fmt: skip
from rayssl.reports.run.reading import HEADS, Record, Run, is_number

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NAMED = 60  # the most classes whose names have room
_WITH_NUMBERS = 12  # the most classes whose confusion matrix has room for numbers
_FAINTEST = 0.005  # a smaller share of a row cannot be seen
_LEVELS = 50  # the number of strengths of a colour
_CELL = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5], [-0.5, -0.5]])
_CELL_CODES = np.array([Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY])
_LISTED = 12  # how many of the most frequent confusions are listed
_OVER_TIME = {"balanced_accuracy": "Balanced accuracy", "accuracy": "Accuracy"}
_HEAD_STYLES = {"model": (VERMILION, "D"), "linear": (BLUE, "o"), "finetune": (GREEN, "s"), "knn": (ORANGE, "^")}


def class_rows(result: Record) -> list[Record]:
    """The result's figures of each class, by falling training count if every class has one; empty if unusable."""
    rows = _rows(result)
    return [rows[c] for c in by_count([row.get("train_count") for row in rows])]


def train_counts(result: Record) -> dict[str, int]:
    """The labelled training rows of each class name; empty unless they are known for every class."""
    rows = class_rows(result)
    known = all(is_number(row.get("train_count")) for row in rows)
    return {str(row["name"]): int(row["train_count"]) for row in rows} if known else {}


@picture()
def class_bars(canvas: Canvas, result: Record) -> Drawing | None:
    """Recall and precision of every class, and above them its number of training rows; None without such figures."""
    rows = class_rows(result)
    if not rows:
        return None
    counts = list(train_counts(result).values())
    place = np.arange(len(rows))
    _, all_axes = canvas.figure(4.6 if counts else 3.5, rows=2 if counts else 1)
    axes = np.ravel(all_axes)[-1]
    if counts:
        top = np.ravel(all_axes)[0]
        top.get_gridspec().set_height_ratios([1, 2.6])
        top.bar(place, counts, 0.84, color=GREY)
        top.set(yscale="log", ylabel="Labelled rows", xlim=(-0.6, len(rows) - 0.4), xticks=[])
        top.set_ylim(0.7 * max(1, min(counts)), 1.5 * max(1, *counts))
        top.minorticks_off()
    for key, shift, colour in (("recall", -0.21, BLUE), ("precision", 0.21, ORANGE)):
        values = np.array([float(row[key]) if is_number(row.get(key)) else np.nan for row in rows])
        known = np.isfinite(values)
        axes.bar(place[known] + shift, values[known], 0.42, color=colour, label=key.capitalize())
        axes.plot(place[~known] + shift, np.full((~known).sum(), 0.025), "x", color=GREY, markersize=4)
    axes.set(ylim=(0, 1.02), ylabel="Share of rows", xlim=(-0.6, len(rows) - 0.4))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(False, axis="x")
    name_classes(axes, [str(row["name"]) for row in rows])
    _mark_thirds(axes, result, len(rows), canvas.narrow)
    # the legend is on the right of the upper panel, where its bars are low
    handles, texts = axes.get_legend_handles_labels()
    place_of: Any = {"loc": "upper right"} if counts else {"loc": "lower right", "bbox_to_anchor": (1, 1.0)}
    np.ravel(all_axes)[0].legend(handles, texts, ncols=2, **place_of)
    heads = ("Labelled rows", "Test rows", "Recall %", "Precision %")
    table = [Row([str(row["name"]), *_figures_of(row)]) for row in rows]
    title = "Recall and precision by class"
    columns = [Column("Class"), *(Column(head, "number") for head in heads)]
    said = f"{len(rows)} classes. The figures of each are in the table below the picture."
    return Drawing(title, said, Table(f"Figures: {title}", columns, table))


def _figures_of(row: Record) -> list[str]:
    counts = [f"{row[key]:,}" if is_number(row.get(key)) else "-" for key in ("train_count", "support")]
    return counts + [f"{100 * row[key]:.1f}" if is_number(row.get(key)) else "-" for key in ("recall", "precision")]


def _mark_thirds(axes: Any, result: Record, classes: int, narrow: bool) -> None:
    """Writes the mean recall of each third above its classes, and draws lines between the thirds."""
    for index, part in enumerate(np.array_split(np.arange(classes), 3)):
        name = ("many", "medium", "few")[index]
        if not is_number(result.get(name)) or not len(part):
            return
        if index:
            axes.axvline(part[0] - 0.5, color=INK, linestyle=":", linewidth=1)
        said = f"{name} {100 * result[name]:.0f} %" if narrow else f"{name}: recall {100 * result[name]:.1f} %"
        axes.annotate(
            said, (part[0] - 0.5, 1), xycoords=("data", "axes fraction"),
            xytext=(2, 4), textcoords="offset points",
        )  # fmt: skip


@picture()
def confusion_picture(canvas: Canvas, result: Record, title: str = "Confusion of classes") -> Drawing | None:
    """The row-normalised confusion matrix and the most frequent confusions; None without a usable matrix."""
    rows = _rows(result)
    table = _matrix(result.get("confusion"), len(rows))
    if table is None or len(rows) < 2:
        return None
    order = by_count([row.get("train_count") for row in rows])
    table, names = table[np.ix_(order, order)], [str(rows[c]["name"]) for c in order]
    shares = table / np.maximum(1, table.sum(axis=1, keepdims=True))
    few = len(names) <= _WITH_NUMBERS
    _, (axes, right) = canvas.figure(4.9 if few else 6.3, columns=2, narrow=6.8)
    if canvas.narrow:
        axes.get_gridspec().set_height_ratios([1.3, 1])
    else:
        axes.get_gridspec().set_width_ratios([1.75, 1] if few else [2.6, 1])
    diagonal = np.eye(len(names), dtype=bool)
    # the colour follows the square root, so that errors of a few percent can be seen
    draw_cells(axes, np.where(shares >= _FAINTEST, np.sqrt(shares), np.nan), np.where(diagonal, BLUE, VERMILION))
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5), aspect="equal", ylabel="True class")
    axes.set_xlabel("Predicted class")
    axes.grid(False)
    if few:
        for (i, j), share in np.ndenumerate(shares):
            text = (f"{100 * share:.0f}" if share > _FAINTEST else "<1") if share else ""
            axes.text(j, i, text, ha="center", va="center", color="#FFFFFF" if share > 0.72 else INK, fontsize=8.8)
    name_classes(axes, names)
    name_classes(axes, names, vertical=True)
    _frequent_confusions(right, np.where(diagonal, 0, shares), names)
    said = "; ".join(f"{name}: {100 * shares[k, k]:.0f} % right" for k, name in enumerate(names[:_WITH_NUMBERS]))
    if not few:
        return Drawing(title, f"Shares of {len(names)} true classes. The first: {said}.")
    cells = [Row([name, *(f"{100 * share:.1f}" for share in shares[k])]) for k, name in enumerate(names)]
    columns = [Column("True class"), *(Column(f"as {name}, %", "number") for name in names)]
    return Drawing(title, f"{said}.", Table(f"Figures: {title}", columns, cells))


def _frequent_confusions(axes: Any, shares: Floats, names: Sequence[str]) -> None:
    """Bars of the largest ``shares [C, C]`` of a true class's rows predicted as another class, the largest on top."""
    order = np.argsort(-shares, axis=None, kind="stable")[:_LISTED]
    pairs = [divmod(int(cell), len(names)) for cell in order if shares.flat[cell] > 0]
    values = [float(shares[pair]) for pair in pairs]
    axes.barh(range(len(pairs)), values, 0.62, color=VERMILION)
    texts = [_short(f"{names[i]} as {names[j]}", 26) for i, j in pairs]
    axes.set_yticks(range(len(pairs)), texts, fontsize=8.8)
    axes.set(ylim=(_LISTED - 0.4, -0.6), title="Most frequent confusions", xlabel="Share of the true class's rows")
    axes.set_xlim(0, 1.15 * max(values, default=1.0))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_tick_params(length=0)
    axes.grid(False, axis="y")


@picture(HALF)
def efficiency_curve(canvas: Canvas, results: list[Record]) -> Drawing | None:
    """Balanced accuracy over the share of labels, one curve for each head; None unless some head has two shares."""
    usable = [r for r in results if is_number(r.get("share")) and r["share"] > 0 and is_number(r["balanced_accuracy"])]
    curves = {head: [r for r in usable if r.get("head") == head] for head in _HEAD_STYLES}
    curves = {head: sorted(records, key=lambda r: float(r["share"])) for head, records in curves.items() if records}
    if not any(records[0]["share"] < records[-1]["share"] for records in curves.values()):
        return None
    _, axes = canvas.figure(3.9)
    named: list[Row] = []
    for index, (head, records) in enumerate(curves.items()):
        colour, marker = _HEAD_STYLES[head]
        # shifted a little, so that one interval does not hide another
        x = np.array([float(r["share"]) for r in records]) * 1.04 ** (index - (len(curves) - 1) / 2)
        y = np.array([float(r["balanced_accuracy"]) for r in records])
        axes.plot(x, y, marker=marker, color=colour, markersize=5, label=HEADS[head])
        shares = [100 * float(r["share"]) for r in records]
        named.append(
            Row([HEADS[head], ", ".join(f"{v:.1f} % with {s:g} %" for s, v in zip(shares, 100 * y, strict=True))])
        )
        for place, record in zip(x, records, strict=True):
            bounds = [record.get(f"balanced_accuracy_{end}") for end in ("low", "high")]
            if all(is_number(bound) for bound in bounds):
                axes.plot([place, place], bounds, "_-", color=colour, markersize=7, linewidth=1.1)
    ticks = sorted({float(r["share"]) for records in curves.values() for r in records})
    axes.set(xscale="log", xlabel="Share of the labels used (logarithmic)", ylabel="Balanced accuracy")
    axes.set_xticks(ticks, [f"{100 * tick:g} %" for tick in ticks])
    axes.minorticks_off()
    axes.margins(x=0.06)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    title = "Balanced accuracy by share of the labels"
    columns = [Column("Classifier"), Column("Balanced accuracy with a share of the labels")]
    said = " ".join(f"{row.cells[0]}: {row.cells[1]}." for row in named)
    return Drawing(title, said, Table(f"Figures: {title}", columns, named))


@picture(HALF)
def accuracy_over_time(
    canvas: Canvas,
    run: Run,
    figures: dict[str, str] = _OVER_TIME,
    label: str = "Share of rows, or of a class's rows",
) -> Drawing | None:
    """The figures (key and name) of probes during training, over its hours, minutes or seconds."""
    looks = ((BLUE, "-"), (ORANGE, "--"), (GREEN, ":"))
    named = {key: (text, *look) for (key, text), look in zip(figures.items(), looks, strict=False)}
    curves = [(*style, *run.timed(name)) for name, style in named.items()]
    curves = [curve for curve in curves if len(curve[3]) > 1]
    if not curves:
        return None
    longest = max(float(seconds.max()) for *_, seconds, _ in curves)
    unit, length = ("h", 3600) if longest >= 3 * 3600 else ("min", 60) if longest >= 180 else ("s", 1)
    _, axes = canvas.figure(3.9)
    for text, colour, style, seconds, values in curves:
        axes.plot(seconds / length, values, style, color=colour, label=text, marker="o", markersize=3)
        canvas.follow(axes, text, seconds / length, values, over=f"Time in {unit}", unit="%", scale=100)
    axes.set(xlabel=f"Training time ({unit})", ylabel=label)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=canvas.columns(len(curves), 2))
    return Drawing("Figures over the time of training")


def by_count(counts: Sequence[Any]) -> Ints:
    """The order of the classes by falling ``counts [C]``, with ties as given. Unless all are numbers: as given."""
    if not all(is_number(count) for count in counts):
        return np.arange(len(counts))
    return np.argsort(-np.array(counts, np.float64), kind="stable")


def name_classes(axes: Any, names: Sequence[str], vertical: bool = False) -> None:
    """Writes class names along the x axis, or the y axis; with many, turned and small, and none beyond `NAMED`."""
    axis = axes.yaxis if vertical else axes.xaxis
    if len(names) > NAMED:
        axis.set_ticks([])
        axis.set_label_text(f"{axis.get_label_text() or 'Class'} ({len(names)}, too many to name)")
        return
    texts = [_short(name, 18) for name in names]
    room = 8.2 * axes.figure.get_size_inches()[0]  # letters beside each other
    turned = not vertical and max(len(text) for text in texts) * len(texts) > room
    size = 8.8 if len(names) <= 20 else 7.6 if len(names) <= 40 else 6
    axis.set_ticks(range(len(names)), texts, fontsize=size, rotation=90 if turned else 0)
    axis.set_tick_params(length=0)


def draw_cells(axes: Any, values: Floats, colours: str | NDArray[np.str_], undefined: str | None = None) -> None:
    """Draws ``values [R, K]`` in [0, 1] as unit cells around integer coordinates. A larger value has a stronger colour.

    ``colours`` is one colour for all cells, or one for each. NaN cells get a faint ``undefined``, or are left out. All
    cells of one colour and strength (of `_LEVELS`) are one path, since thousands of paths would make a heavy page.
    """
    defined = np.isfinite(values)
    strengths = np.where(defined, np.round(np.nan_to_num(values) * _LEVELS) / _LEVELS, 0.3 if undefined else 0)
    painted = np.where(defined, np.broadcast_to(np.asarray(colours), values.shape), undefined or "")
    for colour in np.unique(painted):
        for strength in np.unique(strengths[(painted == colour) & (strengths > 0)]):
            places = np.argwhere((painted == colour) & (strengths == strength))[:, ::-1]
            codes = np.tile(_CELL_CODES, len(places))
            path = Path((places[:, None] + _CELL).reshape(-1, 2), codes)
            cells = PathPatch(path, facecolor=to_rgba(str(colour), float(strength)), edgecolor="none")
            cells.set_gid(CRISP)
            axes.add_patch(cells)


def _rows(result: Record) -> list[Record]:
    rows = result.get("per_class")
    usable = isinstance(rows, list) and all(isinstance(row, dict) and "name" in row for row in rows)
    return list(rows) if usable and rows is not None else []


def _matrix(values: Any, classes: int) -> Ints | None:
    """``values`` as counts ``[classes, classes]``, or None if they are not such a table."""
    whole = isinstance(values, list) and all(isinstance(row, list) and len(row) == classes for row in values)
    if not whole or len(values) != classes or not all(type(v) is int and v >= 0 for row in values for v in row):
        return None
    return np.array(values, np.int64).reshape(classes, classes)


def _short(text: str, most: int) -> str:
    """``text`` cut to ``most`` characters, with ``$`` escaped: otherwise matplotlib reads a formula."""
    return (text if len(text) <= most else f"{text[: most - 1]}…").replace("$", r"\$")
