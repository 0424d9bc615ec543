"""Processes that a trial has started: found as children of known ones, by their titles, and ended by their ids."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MARK = "RAYSSL_FAULTS"  # an environment variable: its value names the trial that a process belongs to


@dataclass(frozen=True)
class Process:
    """A live process. ``began``: its start in clock ticks since boot, since ids are used again."""

    pid: int
    parent: int
    began: str
    title: str

    def alive(self) -> bool:
        """Whether this very process still runs."""
        found = read(self.pid)
        return found is not None and found.began == self.began

    def signal(self, which: signal.Signals) -> bool:
        """Sends a signal. Returns False if the process is gone."""
        if not self.alive():
            return False
        try:
            os.kill(self.pid, which)
        except ProcessLookupError:
            return False
        return True


def every() -> dict[int, Process]:
    """All live processes of this machine that can be read, by their ids."""
    found = (read(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return {process.pid: process for process in found if process is not None}


def below(roots: Iterable[int], mark: str) -> list[Process]:
    """The processes ``roots``, those that have ``mark`` in their environment, and all that these have started.

    A process whose parent has died is found by the mark, unless its title has overwritten its environment.
    """
    known = every()
    ours = {pid for pid in known if pid in set(roots) or _marked(pid, mark)} - {os.getpid()}
    grown = True
    while grown:
        grown = False
        for process in known.values():
            if process.parent in ours and process.pid not in ours:
                ours.add(process.pid)
                grown = True
    return sorted((known[pid] for pid in ours), key=lambda process: process.pid)


def titled(processes: Iterable[Process], pattern: str) -> list[Process]:
    """Those whose title begins with the regular expression ``pattern``."""
    return [process for process in processes if re.match(pattern, process.title)]


def end(processes: Iterable[Process], patience_s: float = 10.0) -> None:
    """Ends processes by SIGKILL, and waits until they are gone."""
    left = list(processes)
    for process in left:
        process.signal(signal.SIGKILL)
    wait_until(lambda: not any(process.alive() for process in left), patience_s)


def wait_until(done: Callable[[], bool], seconds: float, every_s: float = 0.02) -> bool:
    """Whether ``done()`` became true within ``seconds``."""
    until = time.monotonic() + seconds
    while True:
        if done():
            return True
        if time.monotonic() >= until:
            return False
        time.sleep(every_s)


def read(pid: int) -> Process | None:
    """The process as it is now; None if there is no such process, or it only waits to be reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return None
    return None if fields[0] in "ZX" else Process(pid, int(fields[1]), fields[19], title)


def _marked(pid: int, mark: str) -> bool:
    with suppress(OSError):
        return f"{MARK}={mark}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    return False
