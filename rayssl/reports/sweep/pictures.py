"""The pictures of a sweep, as inline SVG, and the importance of keys by a random forest."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import permutation_importance

from rayssl.reports.content import Column, Row, Table
from rayssl.reports.drawing import BLUE, FAINT, GREY, INK, ORANGE, PAGE, SKY, VERMILION, Canvas, Drawing, picture
from rayssl.reports.run.reading import Record, is_number

Floats = NDArray[np.float64]

_LEAST_TRIALS = 8  # with fewer trials a forest says nothing
_BEHIND = {"facecolor": PAGE, "edgecolor": "none", "pad": 1, "alpha": 0.85}
_MOST_LABELS = 6  # limits the labels of an axis of choices: at most twice as many


@dataclass(frozen=True)
class Importance:
    """The ``share [k]`` of each of ``keys`` and its standard deviation ``spread [k]``.

    ``explained``: the out-of-bag R² of the forest. ``rows``: the number of rungs that it was fitted to.
    """

    keys: list[str]
    share: Floats
    spread: Floats
    explained: float
    rows: int


@dataclass(frozen=True)
class _Axis:
    """A vertical axis from 0 to 1 for the values of a key: ``scale`` gives a value's height; ``ticks`` have labels."""

    key: str
    ticks: list[tuple[float, str]]
    scale: Any

    def at(self, value: Any) -> float:
        return float(self.scale(value))


def short(key: str, keys: Sequence[str]) -> str:
    """The last part of a dotted key, or the whole key if another one has the same last part."""
    last = key.rpartition(".")[2]
    return last if sum(each.rpartition(".")[2] == last for each in keys) == 1 else key


@picture()
def parallel(
    canvas: Canvas, space: Record, trials: Sequence[Record], metric: str, mode: str, best: int | None
) -> Drawing | None:
    """Parallel coordinates of the judged ``trials``, which are sorted best first; None for fewer than two."""
    if len(trials) < 2:
        return None
    longest = max(trial["epochs"] for trial in trials)
    axes_of = [*(_axis(key, domain, trials) for key, domain in space.items()), _metric_axis(metric, trials, mode)]
    _, axes = canvas.figure(4.2, narrow=1.0 + 0.75 * len(axes_of))
    axes.grid(False)
    full = [trial for trial in trials if trial["epochs"] == longest]
    good = {trial["index"] for trial in full[: max(1, math.ceil(len(full) / 3))]}
    jitter = np.random.default_rng(0).uniform(-0.012, 0.012, (len(trials), len(axes_of)))
    jitter[:, -1] = 0  # jitter is for keys with few values, whose lines would hide each other; not for the metric
    for row, trial in reversed(list(enumerate(trials))):
        values = [*(trial["point"].get(key) for key in space), trial["value"]]
        heights = [axis.at(value) for axis, value in zip(axes_of, values, strict=True)] + jitter[row]
        if trial["index"] == best:
            how: dict[str, Any] = {"color": BLUE, "linewidth": 3.2, "zorder": 5}
        elif trial["index"] in good:
            how = {"color": BLUE, "linewidth": 1.6, "zorder": 4}
        elif trial["epochs"] == longest:
            how = {"color": ORANGE, "linewidth": 1.3, "zorder": 3}
        else:
            how = {"color": GREY, "linewidth": 1.0, "linestyle": "--", "zorder": 2, "alpha": 0.8}
        places = range(len(axes_of))
        axes.plot(*((heights, places) if canvas.narrow else (places, heights)), **how)
    _parallel_axes(canvas, axes, axes_of, [short(key, list(space)) for key in space] + [metric])
    for side in axes.spines.values():
        side.set_visible(False)
    handles = [
        axes.plot([], [], color=BLUE, linewidth=2)[0],
        axes.plot([], [], color=ORANGE)[0],
        axes.plot([], [], color=GREY, linestyle="--")[0],
    ]
    labels = [f"best third of those with {longest} epochs", f"others with {longest} epochs", "fewer epochs"]
    axes.legend(handles, labels, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=canvas.columns(3))
    said = (
        f"{len(trials)} trials over {len(space)} keys, with {metric} from {_ends(trials)}. The table has all of them."
    )
    return Drawing("Values of the trials", said)


def _parallel_axes(canvas: Canvas, axes: Any, axes_of: Sequence[_Axis], names: Sequence[str]) -> None:
    """Draws the axes of the keys: beside each other, or on a narrow page below each other."""
    for place, axis in enumerate(axes_of):
        (axes.axhline if canvas.narrow else axes.axvline)(place, color=INK, linewidth=0.9)
        for height, label in axis.ticks:
            spot = (height, place) if canvas.narrow else (place, height)
            look: dict[str, Any] = {"va": "center", "xytext": (5, 0)}
            if canvas.narrow:
                look = {
                    "va": "bottom",
                    "xytext": (0, 3),
                    "ha": "left" if height < 0.1 else "right" if height > 0.9 else "center",
                }
            axes.annotate(_plain(label), spot, textcoords="offset points", fontsize=8.8, bbox=_BEHIND, zorder=6, **look)
    ticks = range(len(axes_of))
    if canvas.narrow:
        axes.set_yticks(ticks, [_plain(name) for name in names])
        axes.set(ylim=(len(axes_of) - 0.7, -0.7), xlim=(-0.04, 1.04), xticks=[])
    else:
        axes.set_xticks(ticks, [_plain(name) for name in names])
        axes.set(xlim=(-0.15, len(axes_of) - 0.6), ylim=(-0.06, 1.06), yticks=[])


def _ends(trials: Sequence[Record]) -> str:
    values = [float(trial["value"]) for trial in trials]
    return f"{min(values):.4g} to {max(values):.4g}"


@picture()
def learning_curves(
    canvas: Canvas, trials: Sequence[Record], metric: str, mode: str, best: int | None
) -> Drawing | None:
    """The metric of each of the judged ``trials`` over epochs; None if every trial was judged only once."""
    if not any(len(trial["rungs"]) > 1 for trial in trials):
        return None
    _, axes = canvas.figure(3.8)
    for trial in reversed(trials):
        epochs = [rung["epoch"] for rung in trial["rungs"]]
        values = [rung["value"] for rung in trial["rungs"]]
        canvas.follow(axes, f"trial {trial['index']}", epochs, values, over="Epoch", unit=metric)
        first = trial["index"] == best
        colour = BLUE if first else {"stopped": GREY, "failed": VERMILION}.get(trial["state"], SKY)
        axes.plot(epochs, values, color=colour, linewidth=2.8 if first else 1.2, marker="o", markersize=3,
                  zorder=4 if first else 2)  # fmt: skip
        if trial["state"] in ("stopped", "failed"):
            axes.plot(epochs[-1], values[-1], "x", color=colour, markersize=7, zorder=3)
        if trial["state"] == "finished":
            axes.annotate(str(trial["index"]), (epochs[-1], values[-1]), xytext=(5, 0), textcoords="offset points",
                          va="center", fontsize=8.8)  # fmt: skip
    handles = [axes.plot([], [], color=colour, marker=mark, linewidth=1.8)[0]
               for colour, mark in ((BLUE, "o"), (SKY, "o"), (GREY, "x"))]  # fmt: skip
    axes.legend(handles, ["best (numbers: trials)", "others", "stopped"], loc="lower center",
                bbox_to_anchor=(0.5, 1.0), ncols=canvas.columns(3, 2))  # fmt: skip
    better = "lower" if mode == "min" else "higher"
    axes.set(xlabel="Epochs of training", ylabel=f"{_plain(metric)} ({better} is better)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return Drawing("The metric over epochs", f"{len(trials)} trials, with {metric} at the end from {_ends(trials)}.")


def importance(space: Record, trials: Sequence[Record], seed: int = 0) -> Importance | str:
    """How much each key explains of the metric, by permutation in a random forest; a sentence if that says nothing."""
    keys = [key for key in space if len({json.dumps(trial["point"].get(key)) for trial in trials}) > 1]
    least = max(_LEAST_TRIALS, 3 * len(space))
    if len(trials) < least or not keys:
        return (
            f"{len(trials)} judged trials over {len(space)} keys are too few to see which keys matter; {least} or more "
            "are needed."
        )
    rows = [(trial, rung) for trial in trials for rung in trial["rungs"]]
    columns = [_numbers(space[key], [trial["point"].get(key) for trial, _ in rows]) for key in keys]
    epochs = np.array([rung["epoch"] for _, rung in rows], np.float64)
    table = np.stack([*columns, epochs], axis=1)
    values = np.array([rung["value"] for _, rung in rows], np.float64)
    forest = RandomForestRegressor(300, min_samples_leaf=2, oob_score=True, random_state=seed, n_jobs=1)
    forest.fit(table, values)
    found = permutation_importance(forest, table, values, n_repeats=20, random_state=seed, n_jobs=1)
    share = np.maximum(found.importances_mean[:-1], 0)
    total = share.sum()
    if total <= 0:
        return "No key explains any of the differences between trials."
    order = np.argsort(-share)
    spread = found.importances_std[:-1] / total
    named = [short(keys[k], list(space)) for k in order]
    return Importance(named, share[order] / total, spread[order], float(forest.oob_score_), len(rows))


@picture()
def importance_bars(canvas: Canvas, found: Importance) -> Drawing:
    """The shares as bars, with the largest on top."""
    height = 0.9 + 0.38 * len(found.keys)
    _, axes = canvas.figure(height, narrow=height)
    places = np.arange(len(found.keys))[::-1]
    axes.barh(places, 100 * found.share, 0.62, color=BLUE, xerr=100 * found.spread, ecolor=INK, error_kw={"lw": 0.9})
    axes.set_yticks(places, [_plain(key) for key in found.keys])
    axes.set(xlabel="Share of importance (%)", xlim=(0, min(101, axes.get_xlim()[1])))
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", color=FAINT, length=0)
    rows = [
        Row([key, f"{100 * share:.1f}", f"{100 * spread:.1f}"])
        for key, share, spread in zip(found.keys, found.share, found.spread, strict=True)
    ]
    title = "Importance of the keys"
    columns = [Column("Key", "code"), Column("Share %", "number"), Column("Standard deviation", "number")]
    said = ", ".join(f"{row.cells[0]} {row.cells[1]} %" for row in rows)
    return Drawing(title, f"{said}.", Table(f"Figures: {title}", columns, rows))


def _numbers(domain: Any, values: Sequence[Any]) -> Floats:
    """The values of a key as numbers: as they are, or else their place among the choices (-1 if they are not there)."""
    if all(is_number(value) for value in values):
        return np.array(values, np.float64)
    choices = [json.dumps(each) for each in domain.get("choices", [])]
    return np.array([choices.index(json.dumps(v)) if json.dumps(v) in choices else -1 for v in values], np.float64)


def _axis(key: str, domain: Any, trials: Sequence[Record]) -> _Axis:
    choices = domain.get("choices") if isinstance(domain, dict) else None
    if choices is None:
        low, high = float(domain["low"]), float(domain["high"])
        log = bool(domain.get("log"))
        scale = _line(math.log(low), math.log(high), math.log) if log else _line(low, high)
        middle = [math.sqrt(low * high)] if log else [(low + high) / 2]
        return _Axis(key, [(scale(v), f"{v:.3g}") for v in (low, *middle, high)], scale)
    ordered = sorted(choices) if all(is_number(value) for value in choices) else list(choices)
    texts = [json.dumps(value) for value in ordered]
    count = max(1, len(texts) - 1)
    heights = {text: k / count if len(texts) > 1 else 0.5 for k, text in enumerate(texts)}
    step = max(1, math.ceil(len(texts) / (2 * _MOST_LABELS)))
    shown = [(heights[text], text.strip('"')[:24]) for text in texts[::step]]
    return _Axis(key, shown, lambda value: heights.get(json.dumps(value), 0.5))


def _metric_axis(metric: str, trials: Sequence[Record], mode: str) -> _Axis:
    """The axis of the metric, with the best value on top."""
    values = [float(trial["value"]) for trial in trials]
    low, high = min(values), max(values)
    ends = (high, low) if mode == "min" else (low, high)
    scale = _line(*ends) if low < high else (lambda value: 0.5)
    ticks = np.unique(np.linspace(low, high, 5))
    return _Axis(metric, [(scale(v), f"{v:.4g}") for v in ticks], scale)


def _line(start: float, end: float, of: Any = float) -> Any:
    return lambda value: (of(value) - start) / (end - start)


def _plain(text: str) -> str:
    """``text`` with ``$`` escaped: otherwise matplotlib reads a formula."""
    return text.replace("$", r"\$")
