"""The pictures of staging results: nights by kappa, and sleep variables as scored and as predicted."""

from __future__ import annotations

import numpy as np
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from rayssl.reports.drawing import BLUE, FAINT, GREY, INK, VERMILION, Canvas, Drawing, picture
from rayssl.reports.run.reading import Record, by_kappa, is_number, night_rows

Floats = NDArray[np.float64]

# the title, and what a picture's axis is multiplied by
VARIABLES = {
    "tst": ("Total sleep time (h)", 1 / 60),
    "efficiency": ("Sleep efficiency", 1.0),
    "latency": ("Sleep latency (min)", 1.0),
    "waso": ("Wake after onset (min)", 1.0),
    "rem_latency": ("REM latency (min)", 1.0),
}


@picture()
def kappa_picture(canvas: Canvas, result: Record) -> Drawing | None:
    """Kappa of every night, rising, with the pooled kappa and its interval; None for fewer than three nights."""
    rows = by_kappa(result)
    if len(rows) < 3:
        return None
    _, axes = canvas.figure(2.7, narrow=3.4)
    values = [float(row["kappa"]) for row in rows]
    bounds = [result.get(f"kappa_{end}") for end in ("low", "high")]
    if all(is_number(bound) for bound in bounds):
        axes.axhspan(*bounds, color=BLUE, alpha=0.15, linewidth=0, label="95 % interval over subjects")
    if is_number(result.get("kappa")):
        axes.axhline(result["kappa"], color=BLUE, linewidth=1.3, label=f"All epochs together ({result['kappa']:.3f})")
    axes.axhline(0, color=INK, linestyle=":", linewidth=1.2, label="Majority baseline (0)")
    size = 5 if len(rows) <= 150 else 2.5
    axes.plot(np.arange(1, len(rows) + 1), values, "o", color=VERMILION, markersize=size, label="One night", zorder=3)
    low = min(values)
    axes.set(xlabel="Nights by rising kappa", ylabel="Cohen's kappa", ylim=(min(-0.05, low - 0.05), 1.02))
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=canvas.columns(4))
    middle = values[(len(values) - 1) // 2]
    said = f"{len(values)} nights, from {values[0]:.3f} to {values[-1]:.3f}, with a median of {middle:.3f}."
    return Drawing("Agreement of each night", said)


@picture()
def variables_picture(canvas: Canvas, result: Record) -> Drawing | None:
    """Each sleep variable of every night, predicted over scored, with the line of equality; None without nights."""
    pairs = {name: _pairs(result, name) * scale for name, (_, scale) in VARIABLES.items()}
    if not any(len(each) for each in pairs.values()):
        return None
    _, all_axes = canvas.figure(2.35, columns=len(pairs), narrow=3.0 * len(pairs))
    for axes, (name, values) in zip(np.ravel(all_axes), pairs.items(), strict=True):
        title = VARIABLES[name][0]
        high = 1.0 if name == "efficiency" else 1.06 * float(values.max(initial=0)) or 1.0
        low = 0.0
        if name in ("tst", "efficiency") and len(values):  # nights differ little from each other
            low = max(0.0, float(values.min()) - 0.15 * (high - float(values.min())))
        axes.plot([low, high], [low, high], color=GREY, linewidth=1.1, zorder=1.5)
        axes.plot(*values.T, "o", color=BLUE, markersize=4, alpha=0.7, markeredgewidth=0, zorder=2)
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal", title=title, xlabel="Scored")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 3, 4, 5, 6, 10]))
            if name == "efficiency":
                axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.title.set_fontsize(9)
        axes.spines[["top", "right"]].set_color(FAINT)
    np.ravel(all_axes)[0].set_ylabel("Predicted")
    said = f"{max(map(len, pairs.values()))} nights. The means and differences are in the table below."
    return Drawing("Sleep variables, predicted over scored", said)


def _pairs(result: Record, name: str) -> Floats:
    """Scored and predicted values ``[k, 2]`` of a variable, of the nights that have both."""
    found = []
    for row in night_rows(result):
        both = [side.get(name) if isinstance(side := row.get(key), dict) else None for key in ("scored", "predicted")]
        if all(is_number(value) for value in both):
            found.append(both)
    return np.array(found, np.float64).reshape(-1, 2)
