"""The pictures of a run's training and of speaker verification, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, PercentFormatter
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.manifold import TSNE
from sklearn.metrics import det_curve

from rayssl.reports.content import Column, Picture, Row, Table
from rayssl.reports.drawing import (
    BLUE,
    COLOURS,
    FAINT,
    GREEN,
    GREY,
    HALF,
    INK,
    ORANGE,
    PURPLE,
    THIRD,
    VERMILION,
    Canvas,
    Drawing,
    picture,
)  # fmt: skip
from rayssl.reports.measures import Measure, measure
from rayssl.reports.run.reading import EmbeddingSample, Run, Scores, is_number

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

OTHER = "other "  # how the names of the pictures of `other_curve` begin
_POINTS = 900  # the most points of a curve; more cannot be seen
_BESIDE = ("loss", "lr", "utterances_per_s")  # figures of steps with a picture of their own; the others follow
_POSITIVES = {
    "coverage": (GREY, "--"),
    "speaker_accuracy": (BLUE, "-"),
    "recording_accuracy": (VERMILION, "-"),
    "useful_rate": (GREEN, "-"),
}
_AGREEMENT = {"nmi_speaker": (BLUE, "-"), "nmi_recording": (VERMILION, "-")}
_KINDS = ("validate", "step", "epoch")  # of lines, those with the fewest figures first
_SIZES = {"cluster_largest": (VERMILION, "-"), "cluster_median": (BLUE, "-"), "cluster_smallest": (GREY, "--")}
_NO_PICTURE = {"version", "seconds", "gpu_total_bytes", *_POSITIVES, *_AGREEMENT, *_SIZES}
_DET_TICKS = np.array([0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5])


@picture()
def loss_curve(canvas: Canvas, run: Run) -> Drawing | None:
    """The training loss over steps: faint logged values, and their running mean on top; None for fewer than two."""
    steps, values = run.series("step", "loss")
    if len(steps) < 2:
        return None
    _, axes = canvas.figure(3.1)
    _curve(canvas, axes, steps, values, measure("loss"), BLUE)
    axes.set(xlabel="Step", ylabel="Training loss (no unit)")
    _mark_start(axes, run, "positives sampled from here on")
    return Drawing("Training loss over steps")


@picture(HALF)
def schedule_curve(canvas: Canvas, run: Run, name: str, colour: str) -> Drawing | None:
    """The learning rate or the throughput over steps, from 0 on; None for fewer than two values."""
    steps, values = run.series("step", name)
    if len(steps) < 2:
        return None
    what = measure(name)
    _, axes = canvas.figure(2.7)
    _curve(canvas, axes, steps, values, what, colour, smooth=name != "lr")
    axes.set(xlabel="Step", ylabel=what.axis, ylim=(0, 1.08 * values.max() or 1))
    _mark_start(axes, run)
    return Drawing(f"{what.label} over steps")


def other_figures(run: Run, most: int = 12) -> list[str]:
    """The names of the other numbers that change during the run, at most ``most``."""
    found: list[str] = []
    for kind in _KINDS:
        for name in run.names(kind):
            values = run.series(kind, name)[1]
            if name not in _BESIDE and name not in _NO_PICTURE and name not in found and not _only_the_loss(run, name):
                found += [name] if len(values) > 1 and np.ptp(values) > 0 else []
    return found[:most]


@picture(THIRD)
def other_curve(canvas: Canvas, run: Run, name: str) -> Drawing | None:
    """The figure ``name`` over steps, from the lines of validations, of steps or else of epochs."""
    steps, values = next(pair for kind in _KINDS if len((pair := run.series(kind, name))[0]) > 1)
    what = measure(name)
    _, axes = canvas.figure(2.2)
    _curve(canvas, axes, steps, values, what, BLUE)
    axes.set(xlabel="Step", ylabel=(what.unit or "no unit"))
    _mark_start(axes, run)
    return Drawing(what.label)


@picture(HALF)
def positives_curves(canvas: Canvas, run: Run) -> Drawing | None:
    """What the sampled positives are, over epochs; None without SSPS."""
    if not len(_by_epoch(run, "coverage")[0]):
        return None
    axes = _over_epochs(canvas, run, _POSITIVES)
    axes.set(ylabel="Share of anchors or positives", ylim=(0, 102))
    axes.yaxis.set_major_formatter(PercentFormatter(100))
    return Drawing("What the sampled positives are")


@picture(HALF)
def agreement_curves(canvas: Canvas, run: Run) -> Drawing | None:
    """How clusters agree with speakers and recordings, over epochs; None where nothing is known of either."""
    if not any(len(_by_epoch(run, name)[0]) for name in _AGREEMENT):
        return None
    axes = _over_epochs(canvas, run, _AGREEMENT)
    axes.set(ylabel="Normalised mutual information", ylim=(0, 1.02))
    return Drawing("Agreement of clusters with labels")


@picture(HALF)
def cluster_sizes(canvas: Canvas, run: Run) -> Drawing | None:
    """The sizes of the smallest, the median and the largest cluster, over epochs; None for runs without them."""
    if not len(_by_epoch(run, "cluster_median")[0]):
        return None
    axes = _over_epochs(canvas, run, _SIZES)
    axes.set(ylabel="Utterances in a cluster", yscale="symlog", ylim=(0, None))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    return Drawing("Sizes of clusters")


@picture(HALF)
def det_picture(canvas: Canvas, scores: Scores, eer: float | None) -> Drawing:
    """The miss rate over the false alarm rate on probit axes, with the EER and the minima of two detection costs."""
    false_alarm, miss, _ = det_curve(scores.label, scores.score)
    _, axes = canvas.figure(4.6)
    low, high = _det_range(eer if eer else float(np.maximum(false_alarm, miss).min()))
    ends = norm.ppf([low, high])
    # on a probit axis, rates of exactly 0 and 1 are at infinity
    x, y = norm.ppf(np.clip(false_alarm, 1e-6, 1 - 1e-6)), norm.ppf(np.clip(miss, 1e-6, 1 - 1e-6))
    axes.plot(*_thin_path(x, y), color=BLUE, drawstyle="default", clip_on=True)
    for p_target, marker, colour in ((0.01, "D", VERMILION), (0.05, "s", ORANGE)):
        best = int((p_target * miss + (1 - p_target) * false_alarm).argmin())
        axes.plot(x[best], y[best], marker, color=colour, markersize=6, label=f"min. cost at p = {p_target}", zorder=3)
    if eer and low <= eer <= high:
        spot = norm.ppf(eer)
        axes.plot([ends[0], spot], [ends[0], spot], color=FAINT, linewidth=0.9)
        axes.plot(spot, spot, "o", color=GREEN, markersize=8, label=f"EER {100 * eer:.2f} %", zorder=4)
    ticks = np.array([tick for tick in _DET_TICKS if low <= tick <= high])
    texts = [f"{100 * tick:g}" for tick in ticks]
    axes.set_xticks(norm.ppf(ticks), texts)
    axes.set_yticks(norm.ppf(ticks), texts)
    axes.set(xlim=ends, ylim=ends, xlabel="False alarms (% of non-target trials)", ylabel="Misses (% of target trials)")
    axes.set_aspect("equal")
    axes.legend(loc="upper right")
    rows = []
    for rate in (tick for tick in (0.001, 0.01, 0.05, 0.1, 0.2, 0.5) if low <= tick <= high):
        below = miss[false_alarm <= rate]
        rows.append(Row([f"{100 * rate:g}", f"{100 * below.min():.2f}" if len(below) else "-"]))
    heads = (Column("False alarms %", "number"), Column("Misses %", "number"))
    said = f"{len(scores.label):,} trials: the curve of misses over false alarms."
    said += "" if eer is None else f" The equal error rate is {100 * eer:.2f} %."
    title = "Detection error trade-off"
    return Drawing(title, said, Table(f"Figures: {title}", heads, rows))


def _det_range(eer: float) -> tuple[float, float]:
    """The ticks that limit the axes, around the EER."""
    low = _DET_TICKS[max(eer / 12, _DET_TICKS[0]) >= _DET_TICKS][-1]
    high = _DET_TICKS[min(max(8 * eer, 0.02), _DET_TICKS[-1]) <= _DET_TICKS][0]
    return float(low), float(high)


@picture(HALF)
def score_histogram(canvas: Canvas, scores: Scores) -> Drawing:
    """The densities of target and non-target scores, with the threshold at which both error rates are equal."""
    _, axes = canvas.figure(4.6)
    rows = []
    edges = np.histogram_bin_edges(scores.score, bins=70)
    for label, text, colour in ((0, "Non-target: two speakers", VERMILION), (1, "Target: one speaker", BLUE)):
        values = scores.score[scores.label == label]
        density, _ = np.histogram(values, edges, density=True)
        axes.stairs(density, edges, fill=True, color=colour, alpha=0.35)
        axes.stairs(density, edges, color=colour, label=f"{text} ({len(values):,})", linewidth=1.4)
        quarters = (f"{value:.3f}" for value in np.quantile(values, (0.05, 0.5, 0.95)))
        rows.append(Row([text, f"{len(values):,}", f"{values.mean():.3f}", *quarters]))
    false_alarm, miss, thresholds = det_curve(scores.label, scores.score)
    threshold = thresholds[np.abs(false_alarm - miss).argmin()]
    axes.axvline(
        threshold, ymax=0.78, color=INK, linestyle=":", linewidth=1.2, label=f"Threshold at EER ({threshold:.3f})"
    )
    axes.set(xlabel="Score (no unit)", ylabel="Density of trials")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.28)  # room for the legend
    axes.legend(loc="upper left")
    heads = [Column("Trials"), *(Column(head, "number") for head in ("Count", "Mean", "5 %", "Median", "95 %"))]
    said = " ".join(f"{row.cells[0]}: median score {row.cells[4]}." for row in rows)
    title = "Scores of both kinds of trial"
    return Drawing(title, f"{said} Threshold at EER {threshold:.3f}.", Table(f"Figures: {title}", heads, rows))


def embedding_map(sample: EmbeddingSample, seed: int = 0) -> Picture | None:
    """t-SNE by cosine distance, coloured by speaker, and again by the recording's number within its speaker.

    None for fewer than 8 utterances.
    """
    if len(sample.embedding) < 8:
        return None
    perplexity = min(30.0, (len(sample.embedding) - 1) / 3)
    lengths = np.linalg.norm(sample.embedding, axis=1, keepdims=True)
    unit = sample.embedding / np.where(lengths > 0, lengths, 1)
    # for unit rows, squared Euclidean distance and cosine distance order pairs in the same way
    points = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(unit)
    speakers, who = np.unique(sample.speaker, return_inverse=True)
    within = np.zeros(len(who), np.int64)
    for index in range(len(speakers)):
        mine = who == index
        within[mine] = np.unique(sample.recording[mine], return_inverse=True)[1]
    return _map(points, who, within)


@picture()
def _map(canvas: Canvas, points: Floats, who: Ints, within: Ints) -> Drawing:
    speakers = int(who.max()) + 1
    _, panels = canvas.figure(4.9, columns=2, narrow=7.2)
    titles = (f"Coloured by speaker ({speakers})", f"Coloured by recording of that speaker (up to {within.max() + 1})")
    for axes, classes, title in zip(panels, (who, within), titles, strict=True):
        for value in np.unique(classes):
            chosen = classes == value
            marker = "o^sDvP*X"[value // len(COLOURS) % 8]
            axes.scatter(*points[chosen].T, s=15, color=COLOURS[value % len(COLOURS)], marker=marker, linewidths=0)
        axes.set_title(title)
        axes.set(xticks=[], yticks=[], xlabel="t-SNE 1 (no unit)", ylabel="t-SNE 2 (no unit)")
        axes.set_aspect("equal", adjustable="datalim")
    said = f"{len(points)} utterances of {speakers} speakers in two dimensions, coloured by speaker and by recording."
    return Drawing("Map of the embeddings", said)


def _curve(
    canvas: Canvas, axes: Any, steps: Floats, values: Floats, what: Measure, colour: str, smooth: bool = True
) -> None:
    """Draws faint values and their running mean, so that both the noise and the trend can be seen."""
    width = max(1, len(values) // 60)
    values = what.scale * values
    if not smooth or width < 3:
        axes.plot(*_thin(steps, values), color=colour)
    else:
        axes.plot(*_thin(steps, values), color=colour, alpha=0.25, linewidth=0.8)
        padded = np.pad(values, (width // 2, width - 1 - width // 2), mode="edge")
        values = np.convolve(padded, np.full(width, 1 / width), mode="valid")
        axes.plot(*_thin(steps, values), color=colour)
    canvas.follow(axes, what.label, steps, values, unit=what.unit)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if steps[-1] >= 10_000:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _over_epochs(canvas: Canvas, run: Run, curves: dict[str, tuple[str, str]]) -> Any:
    """Draws those of the ``curves`` (name, colour and line) that the run has, with points at its epochs."""
    _, axes = canvas.figure(3.6)
    for name, (colour, style) in curves.items():
        epochs, values = _by_epoch(run, name)
        if epochs:
            what = measure(name)
            scaled = [what.scale * value for value in values]
            axes.plot(epochs, scaled, style, color=colour, label=what.label, marker="o", markersize=3)
            canvas.follow(axes, what.label, epochs, scaled, over="Epoch", unit=what.unit)
    axes.set(xlabel="Epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=canvas.columns(2, 1 if len(curves) > 3 else 2))
    return axes


def _mark_start(axes: Any, run: Run, text: str = "") -> None:
    start = run.ssps_start()
    if not start:
        return
    axes.axvline(start, color=GREEN, linestyle="--", linewidth=1.2)
    if text:
        late = start > sum(axes.get_xlim()) / 2
        note = axes.annotate(
            text, (start, 1), xycoords=("data", "axes fraction"), xytext=(-5 if late else 5, -2), va="top",
            textcoords="offset points", ha="right" if late else "left",
        )  # fmt: skip
        note.set_in_layout(False)  # the panel does not shrink for it


def _by_epoch(run: Run, name: str) -> tuple[list[float], list[float]]:
    lines = [
        r for r in run.metrics if r.get("kind") == "epoch" and is_number(r.get("epoch")) and is_number(r.get(name))
    ]
    return [float(r["epoch"]) for r in lines], [float(r[name]) for r in lines]


def _thin(steps: Floats, values: Floats) -> tuple[Floats, Floats]:
    """At most `_POINTS` of the points, evenly spaced by their number; the last one is among them."""
    if len(steps) <= _POINTS:
        return steps, values
    chosen = np.unique(np.linspace(0, len(steps) - 1, _POINTS).round().astype(int))
    return steps[chosen], values[chosen]


def _thin_path(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Points of a path that are about equally far apart along it, at most ``4 * _POINTS``."""
    travelled = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    chosen = np.unique(np.searchsorted(travelled, np.linspace(0, travelled[-1], 4 * _POINTS)).clip(0, len(x) - 1))
    return x[chosen], y[chosen]


def _only_the_loss(run: Run, name: str) -> bool:
    """Whether a term is the whole loss: then it has the same curve."""
    (steps, values), (at, loss) = run.series("step", name), run.series("step", "loss")
    return len(steps) == len(at) and len(steps) > 0 and bool((steps == at).all() and (values == loss).all())


def pictures(run: Run, seed: int = 0) -> dict[str, Picture]:
    """The pictures of training and verification for which the run's folder has data, by name."""
    eer = next((r["eer"] for r in run.results if is_number(r.get("eer"))), None)
    speakers = bool(run.verified) or not (run.classified or run.staged)
    drawn: Sequence[tuple[str, Picture | None]] = (
        ("loss", loss_curve(run)),
        ("lr", schedule_curve(run, "lr", ORANGE)),
        ("utterances_per_s", schedule_curve(run, "utterances_per_s", PURPLE)),
        *((f"{OTHER}{name}", other_curve(run, name)) for name in other_figures(run)),
        ("positives", positives_curves(run)),
        ("agreement", agreement_curves(run)),
        ("sizes", cluster_sizes(run)),
        ("det", det_picture(run.scores, eer) if run.scores else None),
        ("histogram", score_histogram(run.scores) if run.scores else None),
        # the map shows speakers, which are no use for a run that only classifies something else
        ("map", embedding_map(run.sample, seed) if run.sample and speakers else None),
    )
    return {name: each for name, each in drawn if each}
