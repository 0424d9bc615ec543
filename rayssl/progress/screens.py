"""Screens: what a person or a program sees of the events of a run.

On a terminal: lines above one bar for the whole run. Elsewhere: lines with the time of day, without a colour, and at
most one line about steps in half a minute. ``json``: every event as one line of JSON.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any, Literal, Protocol, TextIO, TypeAlias

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from rayssl.progress.events import Event, Filling, Phase, Preparing, Stepped, Trained, as_dict, text_of
from rayssl.progress.pace import Pace

Mode: TypeAlias = Literal["auto", "plain", "quiet", "json"]
EVERY_S = 30.0  # between two lines about steps, without a terminal
SHOWN = {  # figures of an epoch that a line has, and how
    "loss": "{:.4f}",
    "coverage": "{:.0%}",
    "speaker_accuracy": "{:.1%}",
    "recording_accuracy": "{:.1%}",
    "train_accuracy": "{:.1%}",
    "confident": "{:.0%}",
    "utterances_per_s": "{:.0f}",
    "data_wait": "{:.0%}",
    "memory_wait": "{:.0%}",
}
_LEAST = {"memory_wait": 0.005}  # it is told of where there is something to tell
_NAMES = {
    "utterances_per_s": "utterances/s",
    "data_wait": "waiting for data",
    "memory_wait": "waiting for the memory",
}


class Screen(Protocol):
    """Shows events. Any thread may call."""

    def show(self, event: Event) -> None:
        """Shows ``event``, or what it changes."""

    def close(self) -> None:
        """Ends what moves on the screen; more lines may come."""


def open_screen(mode: Mode = "auto", out: TextIO | None = None) -> Screen:
    """A screen on ``out`` (default: standard output); ``auto``: a bar if that is a terminal."""
    out = sys.stdout if out is None else out
    if mode == "json":
        return JsonLines(out)
    if mode == "quiet":
        return Quiet()
    return Terminal(out) if mode == "auto" and out.isatty() else Plain(out)


@contextmanager
def busy(what: str) -> Iterator[None]:
    """While work without steps is done: a line that moves on the terminal of standard error; elsewhere nothing."""
    if not sys.stderr.isatty():
        yield
        return
    with Console(stderr=True).status(what):
        yield


class Quiet:
    """Shows nothing. Errors and the result of a verb do not come by events."""

    def show(self, event: Event) -> None:
        """See `Screen.show`."""

    def close(self) -> None:
        """See `Screen.close`."""


class Lines:
    """Passes the lines among the events to ``say``."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def show(self, event: Event) -> None:
        """See `Screen.show`."""
        if (text := text_of(event)) is not None:
            self._say(text)

    def close(self) -> None:
        """See `Screen.close`."""


class JsonLines:
    """Every event as a line of JSON, with its ``time`` in seconds since 1970."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._lock = out, threading.Lock()

    def show(self, event: Event) -> None:
        """See `Screen.show`."""
        with self._lock:
            self._out.write(json.dumps({"time": round(time.time(), 3), **as_dict(event)}) + "\n")
            self._out.flush()

    def close(self) -> None:
        """See `Screen.close`."""


class _Lines:
    """What all screens for people share: which lines there are, and the pace of the steps."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._lock = clock, threading.RLock()
        self._pace = Pace()
        self._began: float | None = clock()  # until the first step
        self._work: tuple[str, str, float, Pace] | None = None  # of a preparation: what, of which corpus, since when

    def show(self, event: Event) -> None:
        """See `Screen.show`."""
        with self._lock:
            self._show(event)

    def _show(self, event: Event) -> None:
        now = self._clock()
        if isinstance(event, Stepped):
            if self._began is not None:
                self._write(f"first step {now - self._began:.0f} s after the start")
                self._began = None
            self._pace.saw(now, event.step)
            self._stepped(event, now)
        elif isinstance(event, Filling):
            self._filled(event, now)
        elif isinstance(event, Preparing):
            self._prepared(event, now)
        elif isinstance(event, Trained):
            self._pace.saw(now, event.step)
            self._pace.epoch_ended()
            self._write(f"epoch {event.epoch}/{event.epochs}  {figures(event.figures)}  {event.seconds:.1f} s")
        elif isinstance(event, Phase):
            self._pace.away(event.seconds)
        if (text := text_of(event)) is not None:
            self._write(text)

    def _left(self, event: Stepped, now: float) -> str:
        seconds = self._pace.left(now, event.steps - event.step, event.epochs - event.epoch)
        return "" if seconds is None else f"  {duration(seconds)} left"

    def _prepared(self, event: Preparing, now: float) -> None:
        if self._work is None or self._work[:2] != (event.what, event.corpus):
            self._work = event.what, event.corpus, now, Pace()
        _, _, began, pace = self._work
        pace.saw(now, event.done)
        text = f"{event.done:,}" + ("" if event.total is None else f"/{event.total:,}") + f" {event.unit}"
        text += "" if event.hours is None else f"  {event.hours:.2f} h"
        if now - began >= 1 and event.done:
            rate = event.done / (now - began)
            text += f"  {rate:.0f}/s" if rate >= 10 else f"  {60 * rate:.0f}/min"
        text += f"  {event.rejected:,} rejected" if event.rejected else ""
        left = None if event.total is None else pace.left(now, event.total - event.done)
        text += "" if left is None or event.done == event.total else f"  {duration(left)} left"
        self._preparing(event, text, now)

    def _write(self, line: str) -> None:
        raise NotImplementedError

    def _preparing(self, event: Preparing, text: str, now: float) -> None:
        raise NotImplementedError

    def _stepped(self, event: Stepped, now: float) -> None:
        raise NotImplementedError

    def _filled(self, event: Filling, now: float) -> None:
        raise NotImplementedError


class Plain(_Lines):
    """Lines with the time of day."""

    def __init__(self, out: TextIO, every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._out, self._every_s = out, every_s
        self._told = clock()
        self._loss: float | None = None

    def close(self) -> None:
        """See `Screen.close`."""

    def _write(self, line: str) -> None:
        self._out.write(f"{time.strftime('%H:%M:%S')} {line}\n")
        self._out.flush()
        self._told = self._clock()

    def _stepped(self, event: Stepped, now: float) -> None:
        self._loss = event.loss if event.loss is not None else self._loss
        if now - self._told >= self._every_s:
            place = f"epoch {event.epoch}/{event.epochs}  step {event.step}/{event.steps}"
            self._write(place + _rates(event, self._loss) + self._left(event, now))

    def _filled(self, event: Filling, now: float) -> None:
        if now - self._told >= self._every_s:
            self._write(f"epoch {event.epoch}: filling the memory, {event.done} of {event.total} utterances")

    def _preparing(self, event: Preparing, text: str, now: float) -> None:
        if now - self._told >= self._every_s:
            self._write(f"{event.what} {event.corpus}  {text}")


class Terminal(_Lines):
    """Lines above one bar for all steps of the run."""

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic, **options: Any) -> None:
        super().__init__(clock)
        self._console = Console(file=out, highlight=False, soft_wrap=True, **options)
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}")
        self._bar = Progress(*columns, console=self._console, transient=True, auto_refresh=True)
        self._loss: float | None = None
        self._rates = ""

    def close(self) -> None:
        """See `Screen.close`."""
        with self._lock:
            self._bar.stop()

    def _write(self, line: str) -> None:
        self._console.print(line, markup=False)

    def _task(self, description: str, total: int | None, done: int, text: str) -> None:
        if not self._bar.task_ids:
            self._bar.add_task("", text="")
        self._bar.start()
        self._bar.update(self._bar.task_ids[0], description=description, total=total, completed=done, text=text)

    def _stepped(self, event: Stepped, now: float) -> None:
        if event.loss is not None:
            self._loss, self._rates = event.loss, _rates(event, event.loss)
        text = f"step {event.step}/{event.steps}{self._rates}{self._left(event, now)}"
        self._task(f"epoch {event.epoch}/{event.epochs}", event.steps, event.step, text)

    def _filled(self, event: Filling, now: float) -> None:
        self._task(f"epoch {event.epoch}: filling the memory", event.total, event.done, f"{event.done}/{event.total}")

    def _preparing(self, event: Preparing, text: str, now: float) -> None:
        self._task(f"{event.what} {event.corpus}", event.total, event.done, text)


def _rates(event: Stepped, loss: float | None) -> str:
    text = "" if loss is None else f"  loss {loss:.4f}"
    if event.utterances_per_s is not None:
        text += f"  {event.utterances_per_s:.0f} utterances/s"
    if event.waiting is not None:
        text += f"  {event.waiting:.0%} waiting for data"
    return text


def figures(values: dict[str, float]) -> str:
    """The figures of an epoch that a line shows."""
    known = [(name, how) for name, how in SHOWN.items() if name in values and values[name] >= _LEAST.get(name, -inf)]
    return "  ".join(_figure(name, how.format(values[name])) for name, how in known)


def _figure(name: str, value: str) -> str:
    return f"{value} {_NAMES[name]}" if name in _NAMES else f"{name.replace('_', ' ')} {value}"


def duration(seconds: float) -> str:
    """``seconds`` as text: hours and minutes, or minutes and seconds."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{rest:02d}s"
