"""The pictures of pseudo-labels during training: precision and recall by class, and the bias towards classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from rayssl.reports.drawing import BLUE, GREY, INK, ORANGE, SKY, VERMILION, Canvas, Drawing, picture
from rayssl.reports.run.classes import NAMED, by_count, draw_cells, name_classes
from rayssl.reports.run.reading import PseudoLabels

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_COLUMNS = 48  # the most epochs of a map
_FURTHEST = 32.0  # the largest ratio in the bias picture: larger ones are drawn at this edge
_THIRDS = (("many", BLUE, "-"), ("medium", ORANGE, "--"), ("few", VERMILION, "-."))
_EPOCHS = ((SKY, ":", "^"), (ORANGE, "--", "s"), (BLUE, "-", "o"))


def sorted_classes(pseudo: PseudoLabels, labelled: Mapping[str, int]) -> PseudoLabels:
    """The same counts with the classes sorted by falling ``labelled`` rows.

    If these are not known for every class, the true rows of the last epoch decide.
    """
    counts = [labelled.get(name) for name in pseudo.names]
    order = by_count(counts if None not in counts else pseudo.truth[-1].tolist())
    parts = (pseudo.predicted, pseudo.confident, pseudo.right, pseudo.truth, pseudo.linear, pseudo.semantic)
    ordered = (None if part is None else part[:, order] for part in parts)
    return PseudoLabels([pseudo.names[c] for c in order], pseudo.epoch, *ordered)  # type: ignore[arg-type]


@picture()
def pseudo_curves(canvas: Canvas, pseudo: PseudoLabels) -> Drawing | None:
    """Precision, recall and the share above the threshold over epochs: faint classes, and the mean of each third.

    None for fewer than two epochs.
    """
    if len(pseudo.epoch) < 2:
        return None
    panels = [("Above the threshold", _ratio(pseudo.confident, pseudo.predicted))]
    if pseudo.truth.any():
        panels = [
            ("Precision", _ratio(pseudo.right, pseudo.predicted)),
            ("Recall", _ratio(pseudo.right, pseudo.truth)),
            *panels,
        ]
    _, all_axes = canvas.figure(3.4, columns=len(panels))
    classes, (thirds, names) = len(pseudo.names), _thirds(pseudo)
    for axes, (title, values) in zip(np.ravel(all_axes), panels, strict=True):
        for part, name, (_, colour, style) in zip(thirds, names, _THIRDS, strict=False):
            if len(part) > 1 and classes <= NAMED:
                axes.plot(pseudo.epoch, values[:, part], color=colour, alpha=0.25, linewidth=0.7)
            mean = _mean(values[:, part])
            axes.plot(pseudo.epoch, mean, style, color=colour, linewidth=2.2, label=name)
            canvas.follow(axes, f"{title}, {name}", pseudo.epoch, mean, over="Epoch", unit="%", scale=100)
    _shares_over_epochs(all_axes, [title for title, _ in panels], "Share of rows")
    return Drawing("Pseudo-labels over epochs")


@picture()
def source_curves(canvas: Canvas, pseudo: PseudoLabels) -> Drawing | None:
    """Recall over epochs of the labels of the linear classifier, of the prototypes and of their blend, in each third.

    None if the method does not blend, if the truth is not known, or for fewer than two epochs.
    """
    if len(pseudo.epoch) < 2 or pseudo.linear is None or pseudo.semantic is None or not pseudo.truth.any():
        return None
    thirds, names = _thirds(pseudo)
    _, all_axes = canvas.figure(3.4, columns=len(thirds))
    sources = ((pseudo.linear, "linear", "--", BLUE), (pseudo.semantic, "prototypes", "-.", ORANGE))
    for axes, part, name in zip(np.ravel(all_axes), thirds, names, strict=False):
        for right, label, style, colour in (*sources, (pseudo.right, "used", "-", INK)):
            recall = _mean(_ratio(right, pseudo.truth)[:, part])
            axes.plot(pseudo.epoch, recall, style, color=colour, linewidth=2.0, label=label)
            canvas.follow(axes, f"{name}, {label}", pseudo.epoch, recall, over="Epoch", unit="%", scale=100)
    _shares_over_epochs(all_axes, names, "Recall of pseudo-labels")
    return Drawing("Recall of the sources of pseudo-labels")


@picture()
def pseudo_map(canvas: Canvas, pseudo: PseudoLabels) -> Drawing | None:
    """Precision and recall of the pseudo-labels: a row for each class, a column for each epoch, and the last values.

    More classes than `NAMED` are pooled with their neighbours into `NAMED` rows. None if the truth is not known, or for
    fewer than two epochs.
    """
    if len(pseudo.epoch) < 2 or not pseudo.truth.any():
        return None
    kept = np.unique(np.linspace(0, len(pseudo.epoch) - 1, _COLUMNS).round().astype(int))
    groups = np.array_split(np.arange(len(pseudo.names)), min(NAMED, len(pseudo.names)))
    right, predicted, truth = (
        np.stack([counts[kept][:, group].sum(axis=1) for group in groups])
        for counts in (pseudo.right, pseudo.predicted, pseudo.truth)
    )
    pooled = len(groups) < len(pseudo.names)
    names = [f"{group[0] + 1} to {group[-1] + 1}" for group in groups] if pooled else pseudo.names
    height = 1.1 + max(1.4, min(0.24 * len(names), 3.6 + 0.06 * len(names)))
    _, panels = canvas.figure(height, columns=2, narrow=2 * height)
    panels_of = (("Precision", _ratio(right, predicted), ORANGE), ("Recall", _ratio(right, truth), BLUE))
    for axes, (title, values, colour) in zip(panels, panels_of, strict=True):
        draw_cells(axes, values, colour, undefined=GREY)
        axes.set(title=title, xlim=(-0.5, len(kept) - 0.5), ylim=(len(names) - 0.5, -0.5), xlabel="Epoch")
        shown = np.arange(0, len(kept), -(-len(kept) // 8))
        axes.set_xticks(shown, [str(pseudo.epoch[kept[column]]) for column in shown])
        axes.grid(False)
        name_classes(axes, names, vertical=True)
        size = axes.yaxis.get_ticklabels()[0].get_fontsize()
        for row, value in enumerate(values[:, -1]):
            text = f"{100 * value:.0f} %" if np.isfinite(value) else "-"
            axes.text(len(kept) - 0.3, row, text, va="center", fontsize=size)
    last = [
        f"{name}: precision {_said(p[-1])}, recall {_said(r[-1])}"
        for name, p, r in zip(names, panels_of[0][1], panels_of[1][1], strict=True)
    ]
    return Drawing("Pseudo-labels by class", f"In the last epoch, {'; '.join(last)}.")


@picture()
def bias_picture(canvas: Canvas, pseudo: PseudoLabels) -> Drawing:
    """The share of each class among the pseudo-labels of the first, middle and last epoch, and among the true rows.

    If the truth is known, their ratio is drawn below: above 1 a class is given too often.
    """
    last = len(pseudo.epoch) - 1
    chosen = sorted({0, last // 2, last})
    known = bool(pseudo.truth[last].any())
    _, all_axes = canvas.figure(5.4 if known else 3.4, rows=2 if known else 1)
    top, place = np.ravel(all_axes)[0], np.arange(len(pseudo.names))
    true_share = _shares(pseudo.truth)
    if known:
        top.bar(place, true_share[last], 0.84, color=GREY, alpha=0.55, label="True share")
    for row, (colour, style, marker) in zip(chosen, _EPOCHS[-len(chosen) :], strict=True):
        share = _shares(pseudo.predicted)[row]
        look: dict[str, Any] = {"color": colour, "linestyle": style, "marker": marker, "markersize": 4.5}
        top.plot(place, share, **look, label=f"Pseudo-labels, epoch {pseudo.epoch[row]}")
        if known:
            ratio = np.clip(_divide(share, true_share[row]), 1 / _FURTHEST, _FURTHEST)
            all_axes[1].plot(place, ratio, **look)
    top.set(ylabel="Share of unlabelled rows", xlim=(-0.6, len(place) - 0.4))
    top.set_ylim(bottom=0)
    top.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))  # 2.5 % would be written as 2 %
    top.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    top.legend(loc="upper right")
    if known:
        _ratio_axis(all_axes[1], len(place))
        top.set_xticks([])
    name_classes(np.ravel(all_axes)[-1], pseudo.names)
    given = _shares(pseudo.predicted)[last]
    said = [f"{name} {100 * share:.1f} %" for name, share in zip(pseudo.names[:NAMED], given, strict=False)]
    return Drawing("Bias of the pseudo-labels", f"Shares of the pseudo-labels of the last epoch: {', '.join(said)}.")


def _shares_over_epochs(all_axes: Any, titles: list[str], label: str) -> None:
    """Formats axes of shares that are side by side. Each has a title; the last one has the legend."""
    for axes, title in zip(np.ravel(all_axes), titles, strict=True):
        axes.set(title=title, xlabel="Epoch", ylim=(-0.02, 1.02))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    np.ravel(all_axes)[0].set_ylabel(label)
    np.ravel(all_axes)[-1].legend(loc="lower right")


def _thirds(pseudo: PseudoLabels) -> tuple[list[Ints], list[str]]:
    """The classes with many, medium and few labels, and the names of these groups. One or two classes: each alone."""
    classes = len(pseudo.names)
    if classes < 3:
        return [np.array([c]) for c in range(classes)], [name.replace("$", r"\$") for name in pseudo.names]
    return np.array_split(np.arange(classes), 3), [name for name, _, _ in _THIRDS]


def _ratio_axis(axes: Any, classes: int) -> None:
    axes.axhline(1, color=INK, linewidth=1)
    low, high = axes.dataLim.intervaly
    far = max(2.0, min(_FURTHEST, 2 ** np.ceil(np.log2(max(high, 1 / low)))))
    axes.set(yscale="log", ylim=(0.87 / far, 1.15 * far), xlim=(-0.6, classes - 0.4), ylabel="Given / true")
    steps = 2.0 ** np.arange(-round(np.log2(far)), round(np.log2(far)) + 1)
    axes.set_yticks(steps, [f"{step:g}" if step >= 1 else f"1/{1 / step:g}" for step in steps])
    axes.minorticks_off()


def _said(share: float) -> str:
    return f"{100 * share:.0f} %" if np.isfinite(share) else "unknown"


def _shares(counts: Ints) -> Floats:
    """Each row of ``counts [E, C]`` divided by its sum; 0 where the sum is 0."""
    return np.asarray(counts / np.maximum(1, counts.sum(axis=1, keepdims=True)))


def _ratio(part: Ints, whole: Ints) -> Floats:
    """``part / whole``, at most 1; NaN where ``whole`` is 0."""
    return np.minimum(_divide(part, whole), 1.0)


def _divide(above: NDArray[Any], below: NDArray[Any]) -> Floats:
    return np.asarray(np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0))


def _mean(values: Floats) -> Floats:
    """The mean ``[E]`` over classes of the defined ``values [E, c]``; NaN where none is defined."""
    known = np.isfinite(values)
    return _divide(np.where(known, values, 0).sum(axis=1), known.sum(axis=1))
