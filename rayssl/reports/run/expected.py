"""The expected course of a configuration: where each figure lay, epoch by epoch, in runs of several seeds.

``rayssl report RUN RUN RUN --band FILE`` writes such a file. ``rayssl report RUN --against FILE`` draws a run on it, so
that its user sees at epoch 9 whether it is on track. Without ``--against`` the file ``bands/NAME.json`` beside the
run's configuration ``NAME.yaml`` is taken, if it is still there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator

from rayssl import storage
from rayssl.errors import ConfigError
from rayssl.reports.content import Block, Column, Figure, Grid, Row, Section, Table, text
from rayssl.reports.drawing import BLUE, GREY, THIRD, Canvas, Drawing, picture
from rayssl.reports.measures import measure
from rayssl.reports.run.reading import Run, is_number
from rayssl.schema import Config, flatten, parse

_KINDS = ("probe", "validate", "epoch")  # of lines: what is known of an epoch of the training
_DECIDE = ("corpus", "labels", "views", "encoder", "method", "training")  # sections that decide what the figures are
_FREE = (  # of these sections: places, and what changes no figure
    *("corpus.uri", "corpus.readers", "encoder.start_from", "training.checkpoints", "training.trackers"),
    *("training.log_every", "training.verify_every", "training.validate", "training.compile"),
)
_OF_SPEED = {"utterances_per_s", "data_wait", "memory_wait"}
_NOT_OF_LEARNING = {"step", "time", "epoch", "seconds", "lr", "n", "share"} | _OF_SPEED
_NOT_OF_LEARNING |= {"trials", "targets", "speakers", "eer_low", "eer_high", "version"}
_MOST = 12  # figures that are drawn
_DIGITS = 1e-5  # of a value, what rounding may have taken from the file
_FIRST = ("loss", "eer", "balanced_accuracy", "macro_f1", "pseudo_eer", "effective_rank")


class Course(Config):
    """The least and the most of a figure, over the runs, at the end of each epoch, counted from 1."""

    epoch: list[float]
    low: list[float]
    high: list[float]


class Band(Config):
    """The courses of several runs that differ in nothing but the seed. ``settings``: what decided their figures."""

    config: str
    commit: str
    seeds: list[int]
    settings: dict[str, Any]
    figures: dict[str, Course]


def band_of(runs: Sequence[Run]) -> Band:
    """The band of at least two ``runs``.

    Raises `ConfigError` for fewer, if two runs differ in more than the seed, or if they have no figure in common.
    """
    if len(runs) < 2:
        raise ConfigError("a band needs runs of at least two seeds; name more runs")
    first = _settings(runs[0])
    for run in runs[1:]:
        differing = _differing(first, _settings(run))
        if differing:
            raise ConfigError(
                f"{run.uri}: differs from {runs[0].uri} in {', '.join(differing[:5])}, not in the seed alone"
            )
    courses = [_courses(run) for run in runs]
    figures = dict[str, Course]()
    for name in sorted({name for each in courses for name in each}, key=_place):
        shared = sorted(set.intersection(*({*each.get(name, {})} for each in courses)))
        if shared:
            values = [[each[name][epoch] for each in courses] for epoch in shared]
            course = Course(epoch=shared, low=[min(each) for each in values], high=[max(each) for each in values])
            if min(course.low) < max(course.high) and course != figures.get("loss"):  # a term may be the whole loss
                figures[name] = course
    if not figures:
        raise ConfigError(
            f"{runs[0].uri}: no figure of an epoch is in all runs; train them to the end of an epoch first"
        )
    seeds = [int(run.origin.get("seed", 0)) for run in runs]
    name = os.path.basename(_file_of(runs[0]) or "")
    return Band(config=name, commit=str(runs[0].origin.get("commit")), seeds=seeds, settings=first, figures=figures)


def write_band(runs: Sequence[Run], out: str) -> Band:
    """Writes the band of ``runs`` to the file or URI ``out``; see `band_of`."""
    found = band_of(runs)
    # six digits, see `_DIGITS`
    rounded = json.loads(found.model_dump_json(), parse_float=lambda digits: float(f"{float(digits):.6g}"))
    storage.write_text(out, json.dumps(rounded, indent=1) + "\n")
    return found


def read_band(where: str) -> Band:
    """The band in the file or URI ``where``. Raises `ConfigError` naming it if it is none."""
    try:
        tree = json.loads(storage.read_text(where))
    except ValueError as error:
        raise ConfigError(f"{where}: not a band ({error}); rayssl report RUN RUN --band FILE writes one") from error
    return parse(Band, tree, where)


def beside(run: Run) -> str | None:
    """The band that lies beside the configuration of ``run``, if it does."""
    config = _file_of(run)
    if config is None:
        return None
    folder, name = os.path.split(config)
    found = os.path.join(folder, "bands", f"{os.path.splitext(name)[0]}.json")
    return found if os.path.isfile(found) else None


def section(run: Run, band: Band | None) -> Section:
    """What a page says of ``run`` against ``band``; nothing without one."""
    title = "Against the expected course"
    if band is None:
        return Section(title, [])
    courses, rows, figures = _courses(run), list[Row](), list[Figure]()
    for name, course in band.figures.items():
        own = courses.get(name, {})
        shared = [epoch for epoch in course.epoch if epoch in own]
        if not shared:
            continue
        rows.append(_row(name, course, shared[-1], own[shared[-1]]))
        drawn = _picture(course, name, own) if len(figures) < _MOST and len(own) > 1 else None
        if drawn is not None:
            figures.append(Figure(drawn, measure(name).says))
    if not rows:
        return Section(title, [text("The run has no figure at an epoch of the band yet.")])
    inside = sum(row.cells[-1] == "inside" for row in rows)
    whose = f"{len(band.seeds)} seeds ({band.config}, {band.commit[:9]})"
    said = f"{inside} of {len(rows)} figures lie in the band of {whose}."
    origins = run.origin.get("origins")
    defaults = {key for key, origin in origins.items() if origin == "default"} if isinstance(origins, dict) else set()
    # a key that is younger than the band, and that the run leaves at its default, is as it was then
    given = {key: value for key, value in _settings(run).items() if key in band.settings or key not in defaults}
    differing = _differing(band.settings, given)
    blocks: list[Block] = [text(said)]
    if differing:
        blocks.append(text(f"The run has other settings than the band: {', '.join(differing)}.", "problem"))
    heads = [Column("Figure"), *(Column(head, "number") for head in ("Epoch", "Run", "Band")), Column("Place")]
    return Section(title, [*blocks, Grid(figures, 3), Table("The last epoch that run and band have", heads, rows)])


def _row(name: str, course: Course, epoch: float, value: float) -> Row:
    what, at = measure(name), course.epoch.index(epoch)
    low, high = course.low[at], course.high[at]
    slack = _DIGITS * max(abs(low), abs(high))
    place = "inside" if low - slack <= value <= high + slack else "above" if value > high else "below"
    unit = f" {what.unit}" if what.unit else ""
    shown, least, most = (f"{what.scale * each:.4g}" for each in (value, low, high))
    return Row([what.label, f"{epoch:g}", shown + unit, f"{least} to {most}{unit}", place])


@picture(THIRD)
def _picture(canvas: Canvas, course: Course, name: str, own: dict[float, float]) -> Drawing:
    """The band as a grey area, and the run's own course."""
    what = measure(name)
    _, axes = canvas.figure(2.2)
    low, high = ([what.scale * each for each in side] for side in (course.low, course.high))
    axes.fill_between(course.epoch, low, high, color=GREY, alpha=0.35, linewidth=0.8)
    epochs = sorted(own)
    values = [what.scale * own[epoch] for epoch in epochs]
    axes.plot(epochs, values, color=BLUE, marker="o", markersize=2.5)
    canvas.follow(axes, what.label, epochs, values, over="Epoch", unit=what.unit)
    canvas.follow(axes, "band, least", course.epoch, low, over="Epoch", unit=what.unit)
    canvas.follow(axes, "band, most", course.epoch, high, over="Epoch", unit=what.unit)
    axes.set(xlabel="Epoch", ylabel=(what.unit or "no unit"))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return Drawing(f"{what.label}: the run and the band")


def _courses(run: Run) -> dict[str, dict[float, float]]:
    """The value of each figure at the end of each epoch."""
    found: dict[str, dict[float, float]] = {}
    for kind in _KINDS:
        for line in (line for line in run.metrics if line.get("kind") == kind and is_number(line.get("epoch"))):
            for name, value in line.items():
                if is_number(value) and name not in _NOT_OF_LEARNING and not name.startswith("gpu_"):
                    found.setdefault(name, {})[float(line["epoch"])] = float(value)
    return found


def _settings(run: Run) -> dict[str, Any]:
    """The values of the configuration, by dotted key, that decide what the figures of the run are."""
    whole = {name: part for name, part in (run.config or {}).items() if name in _DECIDE}
    return {key: value for key, value in flatten(whole).items() if not key.startswith(_FREE)}


def _place(name: str) -> tuple[int, str]:
    """Figures that decide come first, and then the others by name."""
    return (_FIRST.index(name) if name in _FIRST else len(_FIRST), name)


def _differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    absent = object()
    return sorted(key for key in {*one, *other} if one.get(key, absent) != other.get(key, absent))


def _file_of(run: Run) -> str | None:
    """The configuration that the command of ``run`` named."""
    argv = run.origin.get("argv")
    named = [str(word) for word in argv if str(word).endswith((".yaml", ".yml"))] if isinstance(argv, list) else []
    return named[0] if named else None
