"""What a trial sees of a run while it trains: its steps and where it resumed, and what it prints."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

_POLL_S = 0.03
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_SOURCE = re.compile(r"^\d\d:\d\d:\d\d ")  # the time of day, of `rayssl.progress.screens.Plain`
_PROGRESS = re.compile(
    r"epoch \d+(/\d+  (step \d+/\d+  )?loss |: (clustered|filled|filling|positives come) )|"
    r"memory: [\d.]+ [kMGT]?B in |first step \d+ s after|(started|joined|built) .* in [\d.]+ s$|"
    r"data: .* utterances|\S+: \S+ over .* on |dashboard: |\s*$"
)
_NOISE = re.compile(
    r"\((raylet|autoscaler|gcs_server|pid=|PlacementGroupCleaner|SplitCoordinator|DatasetManager)|"
    r"\S+ \S+\t?(INFO|WARNING) .*(worker\.py|packaging\.py|PreemptionWatcher)|"
    r".*worker processes have been started on node|\[W\d+ .*socket\.cpp|\t?\(\d\) raylet has lagging|"
    r"Job submission server address|Next steps|  (Query|Request|Follow|ray job)|Tailing logs|-+$|"
    r"Job '\S+' submitted successfully"
)


class Resume(NamedTuple):
    """A life of a run began: the life before had done ``before`` steps, and this one goes on from step ``at``."""

    before: int
    at: int


def steps_lost(resumes: list[Resume]) -> int:
    """How many steps were trained twice."""
    return sum(max(0, each.before - each.at) for each in resumes)


class Steps:
    """The steps of a run, in the order in which they came: `last` of this life, and the `resumes` so far."""

    def __init__(self) -> None:
        self.last = 0
        self.resumes: list[Resume] = []
        self.epochs: set[int] = set()  # those that have ended, in any life, counted from 1

    def begin(self, at: int) -> None:
        """A new life begins after step ``at``."""
        self.resumes.append(Resume(self.last, at))
        self.last = at

    def take(self, step: int) -> None:
        """A step was done. One that was done before means that a new life had begun."""
        if step <= self.last:
            self.begin(step - 1)
        self.last = step


class Watch(threading.Thread):
    """Looks again and again at what a run writes, from `start` to `close`; ``steps``: what it saw."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.steps = Steps()
        self._over = threading.Event()

    def look(self) -> None:
        """Reads what is new."""
        raise NotImplementedError

    def run(self) -> None:
        while not self._over.wait(_POLL_S):
            self.look()

    def close(self) -> None:
        """Reads what is left, and ends."""
        self._over.set()
        self.join()
        self.look()


class MetricsWatch(Watch):
    """Follows the metrics of a run in a local folder, whose training logs every step.

    A run that resumes replaces the file by one with the lines up to its checkpoint.
    """

    def __init__(self, run: str) -> None:
        super().__init__()
        self._path = Path(run) / "metrics.jsonl"
        self._inode = self._read = 0

    def look(self) -> None:
        """Reads what is new."""
        try:
            with self._path.open("rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                new = inode != self._inode
                file.seek(0 if new else self._read)
                data = file.read()
        except OSError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        steps = []
        for line in whole.splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if record.get("kind") == "epoch":
                self.steps.epochs.add(record["epoch"])
            if record.get("kind") == "step":
                steps.append(record["step"])
        if new:
            if self._inode:
                self.steps.begin(max(steps, default=0))
            self._inode, self._read = inode, 0
        self._read += len(whole)
        self.steps.last = max([self.steps.last, *steps])


class OutputWatch(Watch):
    """Follows the events in what a run prints with ``--log json``: for a run whose folder is in an object store."""

    def __init__(self, output: Path) -> None:
        super().__init__()
        self._output, self._read = output, 0

    def look(self) -> None:
        """Reads what is new."""
        try:
            with self._output.open("rb") as file:
                file.seek(self._read)
                data = file.read()
        except OSError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        for event in events(whole.decode(errors="replace")):
            if event["event"] == "step" and event["loss"] is not None:  # every step has one: log_every is 1
                self.steps.take(event["step"])
            elif event["event"] == "epoch":
                self.steps.epochs.add(event["epoch"])


def events(text: str) -> Iterator[dict[str, Any]]:
    """The events among the lines of ``text``."""
    for line in text.splitlines():
        with suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict) and "event" in found:
                yield found


def line_of(event: dict[str, Any]) -> str:
    """What a person reads of an event, in `rayssl.progress.screens.Plain`; empty if nothing."""
    return event.get("text") or (f"{event['what']} in {event['seconds']:.1f} s" if event["event"] == "phase" else "")


def lines(text: str) -> list[str]:
    """The lines that a person reads who knows the progress: without colours, sources, progress and Ray's own notes."""
    read = []
    for line in text.replace("\r", "\n").splitlines():
        event = next(events(line), None)
        if event is not None:
            line = line_of(event)
        plain = _SOURCE.sub("", _COLOUR.sub("", line)).rstrip()
        if not _PROGRESS.match(plain) and not _NOISE.match(plain):
            read.append(plain)
    return read
