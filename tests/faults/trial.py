"""One trial: a command runs, a fault comes, the command ends, and is given again if it failed."""

from __future__ import annotations

import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rayssl import storage
from rayssl.errors import UserError
from tests.faults import processes, watching
from tests.faults.places import Place
from tests.faults.processes import Process
from tests.faults.work import Training, Work

Ended = Literal["by itself", "by the same command", "by its advice", "lost"]
_AGAIN = 3  # how often the same command is given after a failure
_SHOWN = 10
_ADVICE = re.compile(r"(\S+)/[^/\s]+: .*; delete this folder and resume")


@dataclass
class Result:
    """What came of a trial.

    ``step``: the last one seen before the fault; of another verb than train, the pieces done. ``ended``: without help;
    after the same command; after what its last line says was done, too; or not within the time. ``lines``: how many
    lines a person read after the fault, besides progress. ``read``: the last of them.
    """

    kind: str
    during: str
    seed: int
    step: int = 0
    victim: str = ""
    ended: Ended = "lost"
    why: str = ""
    commands: int = 0
    statuses: list[int] = field(default_factory=list)
    same_bits: bool = False
    differences: list[str] = field(default_factory=list)
    steps_lost: int | None = None
    seconds: float = 0.0
    seconds_lost: float | None = None
    kills: int = 1
    lines: int = 0
    read: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The result as JSON can hold it."""
        return asdict(self)


@dataclass(frozen=True)
class Reference:
    """The undisturbed run of a configuration: where it lies, its seconds, how much it did, and what it printed."""

    run: str
    seconds: float
    done: int
    output: str

    def seconds_of(self, pattern: str) -> float:
        """The longest of the seconds that ``pattern`` finds in what the run printed."""
        return max((float(found) for found in re.findall(pattern, self.output)), default=0.0)


class Missed(Exception):
    """The run ended before its moment came."""


class TimeIsUp(Exception):
    """A trial takes longer than it may."""


class Trial:
    """A command that runs in ``place`` and writes below ``run``."""

    def __init__(
        self,
        place: Place,
        work: Work,
        home: str,
        run: str,
        seed: int,
        timeout_s: float = 600.0,
        fault_s: float = 60.0,
        kills: int = 1,
    ) -> None:
        self.fault_s = fault_s  # how long a fault lasts that ends
        self.kills, self.killed = kills, 1  # of a storm: wanted, and done
        self.fault_step = 0
        self.place, self.work, self.home, self.run = place, work, home, run
        self.random = random.Random(seed)
        self.seed, self.timeout_s = seed, timeout_s
        self.output = place.folder / f"{run.rstrip('/').rsplit('/', 1)[-1]}.out"
        self.statuses: list[int] = []
        self.commands = 0
        self.reference: Reference | None = None
        self._running: subprocess.Popen[bytes] | None = None
        self._began = time.monotonic()
        self._fault_at = 0  # where in the output the fault came
        remote = storage.is_remote(run)
        self.watch = watching.OutputWatch(self.output) if remote else watching.MetricsWatch(run)

    def begin(self) -> None:
        """Starts the clock and the command."""
        self.output.unlink(missing_ok=True)
        self._began = time.monotonic()
        self.watch.start()
        self.command()

    def command(self) -> None:
        """Gives the command, for the first time or again."""
        self.commands += 1
        self._running = self.place.start(self.work.command(self.home, self.run), self.output)

    @property
    def driver(self) -> Process | None:
        """The process of the command; None if it has ended."""
        if self._running is None or self._running.poll() is not None:
            return None
        return processes.every().get(self._running.pid)

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began

    @property
    def step(self) -> int:
        """The last step that was seen; of another verb, the pieces done."""
        return self.watch.steps.last if isinstance(self.work, Training) else self.work.done(self.run)

    def wait_for(self, come: Callable[[], bool], every_s: float = 0.01) -> None:
        """Waits for a moment. Raises `Missed` if the command ends before it, and `TimeIsUp`."""
        while not come():
            if self._running is None or self._running.poll() is not None:
                raise Missed(f"the command ended, status {self.ended()}, before the moment came")
            self._check_time()
            time.sleep(every_s)

    def pause(self, seconds: float) -> None:
        """Waits, also if the command ends."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._check_time()
            time.sleep(min(0.1, max(0.0, until - time.monotonic())))

    def victim(self, pattern: str, every_s: float = 0.01) -> Process:
        """One of the place's processes with this title, by chance; waits until there is one."""
        found: list[Process] = []

        def come() -> bool:
            found[:] = processes.titled(self.place.processes(), pattern)
            return bool(found)

        self.wait_for(come, every_s)
        return self.random.choice(found)

    def mark_fault(self) -> None:
        """Notes the step, and where the output is."""
        self._fault_at = self.output.stat().st_size
        self.fault_step = self.step

    def status(self) -> int | None:
        """That of the command, if it has ended. Raises `TimeIsUp`."""
        self._check_time()
        return None if self._running is None else self._running.poll()

    def ended(self) -> int:
        """Waits until the command has ended; returns its status."""
        assert self._running is not None
        while self._running.poll() is None:
            self._check_time()
            time.sleep(0.05)
        return int(self._running.returncode)

    def finish(self) -> tuple[Ended, str]:
        """Waits for the end, and gives the same command again if it failed. How it ended, and why it is lost."""
        advised, commands = False, self.commands
        while True:
            status = self.ended()
            self.statuses.append(status)
            if status == 0:
                return (
                    "by its advice" if advised else "by itself" if self.commands == 1 else "by the same command"
                ), ""
            if self.commands >= commands + _AGAIN:
                return "lost", f"status {status} after {self.commands} commands"
            place = self._advice()
            if place is not None and self.commands > 1:
                advised = True
                shutil.rmtree(place)
            self.command()

    def read(self) -> list[str]:
        """What a person read after the fault, besides progress."""
        with self.output.open("rb") as file:
            file.seek(self._fault_at)
            return watching.lines(file.read().decode(errors="replace"))

    def report(self, result: Result, how: tuple[Ended, str]) -> Result:
        """Completes ``result`` after the end."""
        self.watch.close()
        result.ended, result.why = how
        result.step, result.kills = self.fault_step, self.killed
        result.seconds = round(self.seconds, 1)
        result.commands, result.statuses = self.commands, self.statuses
        read = self.read()
        result.lines, result.read = len(read), [line[:300] for line in read[-_SHOWN:]]
        if isinstance(self.work, Training):
            result.steps_lost = watching.steps_lost(self.watch.steps.resumes)
        if self.reference is not None and result.ended != "lost":
            result.seconds_lost = round(result.seconds - self.reference.seconds, 1)
            try:
                result.differences = self.work.differences(self.run, self.reference.run)[:_SHOWN]
                result.same_bits = not result.differences
            except (UserError, ValueError, OSError) as error:
                result.differences = [str(error)]
        return result

    def give_up(self) -> None:
        """Kills the command, if it still runs."""
        if self._running is not None and self._running.poll() is None:
            self._running.send_signal(signal.SIGKILL)

    def _advice(self) -> Path | None:
        """The folder that the last line says to delete."""
        last = (self.read() or [""])[-1]
        found = _ADVICE.search(last)
        return Path(found[1]) if found and Path(found[1]).is_relative_to(self.run) else None

    def _check_time(self) -> None:
        if self.seconds > self.timeout_s:
            raise TimeIsUp(f"no end within {self.timeout_s:.0f} s")
