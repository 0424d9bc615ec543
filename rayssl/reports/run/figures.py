"""The pictures of a run's training and of speaker verification, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.manifold import TSNE
from sklearn.metrics import det_curve

from rayssl.reports.drawing import (
    BLUE,
    COLOURS,
    FAINT,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    STYLE,
    VERMILION,
    WIDTH,
    new_figure,
    svg_text,
)  # fmt: skip
from rayssl.reports.run.reading import EmbeddingSample, Run, Scores, is_number

Floats = NDArray[np.float64]

_POINTS = 900  # the most points of a curve; more cannot be seen
_GPU = ("gpu_allocated_bytes", "gpu_peak_bytes", "gpu_reserved_bytes", "gpu_total_bytes")
_SPECIAL = ("loss", "lr", "utterances_per_s", *_GPU)
_POSITIVES = {
    "coverage": ("Coverage", GREY, "--"),
    "speaker_accuracy": ("Same speaker", BLUE, "-"),
    "recording_accuracy": ("Same recording", VERMILION, "-"),
    "useful_rate": ("Same speaker, other recording", GREEN, "-"),
}
_CLUSTERS = {"nmi_speaker": ("NMI with speakers", BLUE, "-"), "nmi_recording": ("NMI with recordings", VERMILION, "-")}
_DET_TICKS = np.array([0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5])


@rc_context(STYLE)
def loss_curve(run: Run) -> str | None:
    """The training loss over steps: faint logged values, and their running mean on top; None for fewer than two."""
    steps, values = run.series("step", "loss")
    if len(steps) < 2:
        return None
    figure, axes = new_figure(WIDTH, 3.1)
    _curve(axes, steps, values, BLUE)
    axes.set(xlabel="Step", ylabel="Training loss")
    _mark_start(axes, run, "positives sampled from here on")
    return svg_text(figure, "loss")


@rc_context(STYLE)
def schedule_curves(run: Run) -> str | None:
    """Learning rate and throughput over steps, side by side; None if neither was logged."""
    panels = [("lr", "Learning rate", ORANGE), ("utterances_per_s", "Utterances per second", PURPLE)]
    found = [(label, colour, *run.series("step", name)) for name, label, colour in panels]
    found = [panel for panel in found if len(panel[2]) > 1]
    if not found:
        return None
    figure, all_axes = new_figure(WIDTH, 2.5, columns=len(found))
    for axes, (label, colour, steps, values) in zip(np.ravel(all_axes), found, strict=True):
        if colour == ORANGE:
            axes.plot(*_thin(steps, values), color=colour)
        else:
            _curve(axes, steps, values, colour)
        axes.set(xlabel="Step", ylabel=label, ylim=(0, 1.08 * values.max() or 1))
        _mark_start(axes, run)
    return svg_text(figure, "schedule")


@rc_context(STYLE)
def other_curves(run: Run, most: int = 9) -> str | None:
    """One small picture for each other number that changes during the run, at most ``most``; None without any."""
    drawn = {*_SPECIAL, *_POSITIVES, *_CLUSTERS}
    panels: dict[str, tuple[Floats, Floats]] = {}
    for kind in ("validate", "step", "epoch"):
        for name in run.names(kind):
            steps, values = run.series(kind, name)
            if name not in drawn and name not in panels and len(values) > 1 and np.ptp(values) > 0:
                panels[name] = (steps, values)
    if not panels:
        return None
    shown = list(panels.items())[:most]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure, all_axes = new_figure(WIDTH, 2.1 * rows, rows=rows, columns=columns)
    for axes in np.ravel(all_axes)[len(shown) :]:
        axes.set_visible(False)
    for axes, (name, (steps, values)) in zip(np.ravel(all_axes), shown, strict=False):
        _curve(axes, steps, values, BLUE)
        axes.set_title(name.replace("$", r"\$"))
        axes.set_xlabel("Step")
        _mark_start(axes, run)
    return svg_text(figure, "others")


@rc_context(STYLE)
def positives_curves(run: Run) -> str | None:
    """What the sampled positives are, and how clusters agree with speakers and recordings, over epochs.

    None without SSPS.
    """
    groups = [("Share of anchors or positives", _POSITIVES), ("Normalised mutual information", _CLUSTERS)]
    found = []
    for label, curves in groups:
        series = {name: _by_epoch(run, name) for name in curves}
        series = {name: pair for name, pair in series.items() if len(pair[0])}
        if series:
            found.append((label, curves, series))
    if not any("coverage" in series for _, _, series in found):
        return None
    figure, all_axes = new_figure(WIDTH, 3.6, columns=len(found))
    for axes, (label, curves, series) in zip(np.ravel(all_axes), found, strict=True):
        for name, (epochs, values) in series.items():
            text, colour, style = curves[name]
            axes.plot(epochs, values, style, color=colour, label=text, marker="o", markersize=3)
        axes.set(xlabel="Epoch", ylabel=label, ylim=(0, 1.02))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if curves is _POSITIVES:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return svg_text(figure, "positives")


@rc_context(STYLE)
def det_picture(scores: Scores, eer: float | None) -> str:
    """The miss rate over the false alarm rate on probit axes, with the EER and the minima of two detection costs."""
    false_alarm, miss, _ = det_curve(scores.label, scores.score)
    figure, axes = new_figure(WIDTH / 2, 4.6)
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
    return svg_text(figure, "det")


def _det_range(eer: float) -> tuple[float, float]:
    """The ticks that limit the axes, around the EER."""
    low = _DET_TICKS[max(eer / 12, _DET_TICKS[0]) >= _DET_TICKS][-1]
    high = _DET_TICKS[min(max(8 * eer, 0.02), _DET_TICKS[-1]) <= _DET_TICKS][0]
    return float(low), float(high)


@rc_context(STYLE)
def score_histogram(scores: Scores) -> str:
    """The densities of target and non-target scores, with the threshold at which both error rates are equal."""
    figure, axes = new_figure(WIDTH / 2, 4.6)
    edges = np.histogram_bin_edges(scores.score, bins=70)
    for label, text, colour in ((0, "Non-target: two speakers", VERMILION), (1, "Target: one speaker", BLUE)):
        values = scores.score[scores.label == label]
        density, _ = np.histogram(values, edges, density=True)
        axes.stairs(density, edges, fill=True, color=colour, alpha=0.35)
        axes.stairs(density, edges, color=colour, label=f"{text} ({len(values):,})", linewidth=1.4)
    false_alarm, miss, thresholds = det_curve(scores.label, scores.score)
    threshold = thresholds[np.abs(false_alarm - miss).argmin()]
    axes.axvline(
        threshold, ymax=0.78, color=INK, linestyle=":", linewidth=1.2, label=f"Threshold at EER ({threshold:.3f})"
    )
    axes.set(xlabel="Score", ylabel="Density")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.28)  # room for the legend
    axes.legend(loc="upper left")
    return svg_text(figure, "histogram")


@rc_context(STYLE)
def embedding_map(sample: EmbeddingSample, seed: int = 0) -> str | None:
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
    figure, (left, right) = new_figure(WIDTH, 4.9, columns=2)
    for axes, classes, title in (
        (left, who, f"Coloured by speaker ({len(speakers)})"),
        (right, within, f"Coloured by recording of that speaker (up to {within.max() + 1})"),
    ):
        for value in np.unique(classes):
            chosen = classes == value
            marker = "o^sDvP*X"[value // len(COLOURS) % 8]
            axes.scatter(*points[chosen].T, s=15, color=COLOURS[value % len(COLOURS)], marker=marker, linewidths=0)
        axes.set_title(title)
        axes.set(xticks=[], yticks=[], xlabel="t-SNE 1 (no unit)", ylabel="t-SNE 2 (no unit)")
        axes.set_aspect("equal", adjustable="datalim")
    return svg_text(figure, "map")


def _curve(axes: Any, steps: Floats, values: Floats, colour: str) -> None:
    """Draws faint values and their running mean, so that both the noise and the trend can be seen."""
    width = max(1, len(values) // 60)
    if width < 3:
        axes.plot(*_thin(steps, values), color=colour)
    else:
        axes.plot(*_thin(steps, values), color=colour, alpha=0.25, linewidth=0.8)
        padded = np.pad(values, (width // 2, width - 1 - width // 2), mode="edge")
        axes.plot(*_thin(steps, np.convolve(padded, np.full(width, 1 / width), mode="valid")), color=colour)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if steps[-1] >= 10_000:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _mark_start(axes: Any, run: Run, text: str = "") -> None:
    start = run.ssps_start()
    if not start:
        return
    axes.axvline(start, color=GREEN, linestyle="--", linewidth=1.2)
    if text:
        axes.annotate(
            text, (start, 1), xycoords=("data", "axes fraction"), xytext=(5, -2), textcoords="offset points",
            va="top", color=GREEN,
        )  # fmt: skip


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


def pictures(run: Run, seed: int = 0) -> dict[str, str]:
    """The pictures of training and verification for which the run's folder has data, by name."""
    eer = next((r["eer"] for r in run.results if is_number(r.get("eer"))), None)
    speakers = bool(run.verified) or not (run.classified or run.staged)
    drawn: Sequence[tuple[str, str | None]] = (
        ("loss", loss_curve(run)),
        ("schedule", schedule_curves(run)),
        ("others", other_curves(run)),
        ("positives", positives_curves(run)),
        ("det", det_picture(run.scores, eer) if run.scores else None),
        ("histogram", score_histogram(run.scores) if run.scores else None),
        # the map shows speakers, which are no use for a run that only classifies something else
        ("map", embedding_map(run.sample, seed) if run.sample and speakers else None),
    )
    return {name: picture for name, picture in drawn if picture}
