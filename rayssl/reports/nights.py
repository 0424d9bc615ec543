"""The picture of a night: its hypnograms, scored and predicted, and the probabilities of the stages below.

`night_picture` makes it for a page, and `night_file` as a file of its own, also for a night that nobody scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context, rcParams
from matplotlib.figure import Figure
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator, MultipleLocator, PercentFormatter
from numpy.typing import NDArray

from rayssl.data.nights.scores import NightScores, consecutive_runs
from rayssl.data.sources.nights import EPOCH_S, STAGES
from rayssl.reports.drawing import (
    BLUE,
    BROWN,
    GREEN,
    NARROW,
    ORANGE,
    PAPER,
    PURPLE,
    SKY,
    VERMILION,
    WIDTH,
    Canvas,
    Drawing,
    file_bytes,
    new_figure,
    picture,
)  # fmt: skip

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_HOURS = EPOCH_S / 3600
_COLOURS = {"Wake": ORANGE, "REM": PURPLE, "Light": SKY, "Deep": BLUE, "NREM": SKY, "N1": GREEN, "N2": SKY, "N3": BLUE}


@picture()
def night_picture(canvas: Canvas, night: NightScores, names: Sequence[str] = STAGES, title: str = "") -> Drawing:
    """The picture for a page, see `night_figure`; the page shows the title."""
    canvas.take(night_figure(night, names, width=canvas.width))
    scored = night.truth >= 0
    right = f" {100 * (night.truth == night.predicted)[scored].mean():.1f} % of them right." if scored.any() else ""
    shares = ", ".join(f"{name} {100 * (night.predicted == k).mean():.0f} %" for k, name in enumerate(names))
    said = f"{len(night.index):,} epochs of 30 s, {scored.sum():,} scored.{right} Predicted: {shares}."
    return Drawing(title or f"Night {night.name}", said)


def night_file(
    night: NightScores,
    names: Sequence[str] = STAGES,
    title: str = "",
    kind: Literal["png", "svg", "pdf"] = "png",
) -> bytes:
    """The picture as a file, dark on white, see `night_figure`. ``title`` is the night's name if it is empty."""
    with rc_context(PAPER):
        return file_bytes(night_figure(night, names, title or night.name), kind)


def night_figure(night: NightScores, names: Sequence[str] = STAGES, title: str = "", width: float = WIDTH) -> Figure:
    """The figure of a night with the stages ``names [C]``, ``width`` inches wide; the caller sets the style.

    From the top: the scored hypnogram and a strip of the epochs in which the prediction differs (both only if some
    epoch is scored), the predicted hypnogram, and the probabilities as bands that sum to 100 %. Wake is on top, then
    REM, then the other stages in their order. The axis counts hours from the beginning of the recording. Where epochs
    are missing, all panels are hatched; unscored epochs are grey in the scored hypnogram.

    Raises `ValueError` for a night without epochs.
    """
    if not len(night.index):
        raise ValueError(f"night {night.name}: no epochs to draw")
    known = bool((night.truth >= 0).any())
    ratios = [1.0, 0.2, 1.0, 1.05] if known else [1.0, 1.05]
    figure, all_axes = new_figure(width, 5.2 if known else 3.7, rows=len(ratios))
    all_axes[0].get_gridspec().set_height_ratios(ratios)
    figure.set_layout_engine("constrained", hspace=0.02, h_pad=0.03)
    gaps = _gaps(night.index)
    if known:
        _hypnogram(all_axes[0], night.index, night.truth, names, "Scored")
        _errors(all_axes[1], night)
    _hypnogram(all_axes[-2], night.index, night.predicted, names, "Predicted")
    _bands(all_axes[-1], night, names)
    for axes in all_axes:
        axes.set_xlim(night.index[0] * _HOURS, (night.index[-1] + 1) * _HOURS)
        axes.tick_params(labelbottom=axes is all_axes[-1])
        _time_ticks(axes, float(night.index[-1] + 1 - night.index[0]) * _HOURS, 8 if width > NARROW else 5)
        for first, after in gaps:
            axes.axvspan(
                first * _HOURS, after * _HOURS, facecolor="none", edgecolor=rcParams["axes.edgecolor"], hatch="////",
                linewidth=0, zorder=0.5,
            )  # fmt: skip
    all_axes[-1].set_xlabel("Hours since the beginning of the recording")
    if title:
        all_axes[0].set_title(title.replace("$", r"\$"), loc="left")
    columns = 10 if width > NARROW else 2
    _legend(figure, names, known, bool(gaps), known and bool((night.truth < 0).any()), columns)
    return figure


def stage_order(names: Sequence[str]) -> list[int]:
    """The stages from the top of a hypnogram: Wake, REM, then the others of ``names`` in their order."""
    first = [names.index(name) for name in ("Wake", "REM") if name in names]
    return first + [stage for stage in range(len(names)) if stage not in first]


def stage_colour(name: str) -> str:
    """The colour of a stage."""
    return _COLOURS.get(name, BROWN)


def _hypnogram(axes: Any, index: Ints, stages: Ints, names: Sequence[str], label: str) -> None:
    """Draws a coloured line for each stretch of a stage, thin lines between stretches, and grey for unscored ones."""
    order = stage_order(names)
    level = {stage: len(order) - 1 - place for place, stage in enumerate(order)}
    stretches = _stretches(index, stages)
    for stage in order:
        mine = [(first, after) for first, after, own in stretches if own == stage]
        _boxes(axes, mine, level[stage] - 0.12, level[stage] + 0.12, facecolor=stage_colour(names[stage]), zorder=2)
    unscored = [(first, after) for first, after, own in stretches if own < 0]
    _boxes(axes, unscored, -0.5, len(order) - 0.5, facecolor=rcParams["axes.edgecolor"], zorder=0.4)
    edges = [
        (one[1] * _HOURS, level[one[2]], level[two[2]])
        for one, two in pairwise(stretches)
        if one[1] == two[0] and min(one[2], two[2]) >= 0
    ]
    codes = np.tile([Path.MOVETO, Path.LINETO], len(edges))
    corners = np.array([[(at, low), (at, high)] for at, low, high in edges]).reshape(-1, 2)
    look: Any = {"edgecolor": rcParams["text.color"], "linewidth": 0.7, "alpha": 0.55, "zorder": 1.5}
    axes.add_patch(PathPatch(Path(corners, codes), facecolor="none", **look))
    axes.set(ylim=(-0.5, len(order) - 0.5), ylabel=label)
    axes.set_yticks(list(level.values()), [names[stage] for stage in level])
    axes.yaxis.set_tick_params(length=0)


def _errors(axes: Any, night: NightScores) -> None:
    """Draws a bar over each stretch of scored epochs whose prediction differs."""
    wrong = np.where((night.truth >= 0) & (night.truth != night.predicted), 1, 0)
    bars = [(first, after) for first, after, own in _stretches(night.index, wrong) if own]
    _boxes(axes, bars, 0, 1, facecolor=VERMILION)
    axes.set(ylim=(0, 1), yticks=[0.5], yticklabels=["Errors"])
    axes.yaxis.set_tick_params(length=0)
    axes.grid(False, axis="y")
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.xaxis.set_tick_params(length=0)


def _bands(axes: Any, night: NightScores, names: Sequence[str]) -> None:
    """Draws the probabilities one on top of the other, in the order of the hypnogram, apart for each run of epochs."""
    upwards = stage_order(names)[::-1]
    heights = np.cumsum(night.probabilities[:, upwards].astype(np.float64), axis=1)
    heights /= heights[:, -1:]
    for first, after in consecutive_runs(night.index):
        edges = np.append(night.index[first:after], night.index[after - 1] + 1) * _HOURS
        # the highest first, each from 0: no background shows between bands that touch
        for place in range(len(upwards) - 1, -1, -1):
            tops = heights[first:after, place]
            at, top = np.repeat(edges, 2), np.concatenate([[0.0], np.repeat(tops, 2), [0.0]])
            if place == len(upwards) - 1:  # the sum of all, a box
                at, top = edges[[0, 0, -1, -1]], np.array([0.0, 1.0, 1.0, 0.0])
            path = Path(np.stack([at, top], axis=1))
            axes.add_patch(PathPatch(path, facecolor=stage_colour(names[upwards[place]]), linewidth=0, zorder=2))
    axes.set(ylim=(0, 1), ylabel="Probability")
    axes.yaxis.set_major_locator(MultipleLocator(0.5))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _boxes(axes: Any, spans: Sequence[tuple[int, int]], low: float, high: float, **look: Any) -> None:
    """Draws boxes over spans of epochs, from ``low`` to ``high``, as one path: a path for each makes a heavy page."""
    corners = [[(a, low), (b, low), (b, high), (a, high), (a, low)] for a, b in np.array(spans).reshape(-1, 2) * _HOURS]
    codes = np.tile([Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY], len(corners))
    axes.add_patch(PathPatch(Path(np.array(corners).reshape(-1, 2), codes), linewidth=0, **look))


def _legend(figure: Figure, names: Sequence[str], errors: bool, gaps: bool, unscored: bool, columns: int) -> None:
    marks = [Patch(facecolor=stage_colour(names[stage]), label=names[stage]) for stage in stage_order(names)]
    faint = rcParams["axes.edgecolor"]
    marks += [Patch(facecolor=VERMILION, label="Predicted differs from scored")] if errors else []
    marks += [Patch(facecolor=faint, label="Unscored")] if unscored else []
    marks += [Patch(facecolor="none", edgecolor=faint, hatch="////", linewidth=0, label="Missing")] if gaps else []
    figure.legend(
        handles=marks, loc="outside lower center", ncols=min(len(marks), columns), handlelength=1.2, columnspacing=1.6
    )


def _time_ticks(axes: Any, hours: float, most: int) -> None:
    axes.xaxis.set_major_locator(MultipleLocator(1) if 3 <= hours <= 2 * most else MaxNLocator(most))


def _gaps(index: Ints) -> list[tuple[int, int]]:
    """The positions of the first missing epoch of each gap, and of the epoch after it."""
    return [(int(index[after - 1]) + 1, int(index[after])) for _, after in consecutive_runs(index)[:-1]]


def _stretches(index: Ints, values: Ints) -> list[tuple[int, int, int]]:
    """Stretches of consecutive epochs with one value: the first position, the position after the last, the value."""
    breaks = np.flatnonzero((np.diff(index) != 1) | (np.diff(values) != 0)) + 1
    edges = [0, *breaks.tolist(), len(index)]
    return [(int(index[first]), int(index[after - 1]) + 1, int(values[first])) for first, after in pairwise(edges)]
