"""Trials of one kind, one after the other, with the undisturbed runs that they are compared with."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tests.faults import moments
from tests.faults.kinds import Kind
from tests.faults.places import Place
from tests.faults.trial import Missed, Reference, Result, TimeIsUp, Trial
from tests.faults.work import Work

_MISSES = 3  # in a row, before a trial is given up


class Session:
    """Trials of ``kind`` during ``during``; everything lies below ``folder``. ``say``: takes lines about progress."""

    def __init__(
        self, name: str, kind: Kind, during: str, folder: Path, timeout_s: float, say: Callable[[str], None]
    ) -> None:
        self.name, self.kind, self.during = name, kind, during
        self.folder, self.timeout_s, self.say = folder, timeout_s, say
        self.place: Place = kind.place(folder)
        self.work: Work = kind.work_in(during)
        self._reference: Reference | None = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.place.down()

    @property
    def home(self) -> str:
        """Where the corpus, the configurations and the runs lie."""
        return str(self.folder)

    def reference(self) -> Reference:
        """The undisturbed run, trained at the first call."""
        if self._reference is None:
            self.place.up()
            self.work.write(self.home)
            run = f"{self.home}/reference-{self.work.name}"
            self.say(f"{self.work.name}: undisturbed, in {self.place.name}")
            trial = Trial(self.place, self.work, self.home, run, 0, self.timeout_s)
            trial.begin()
            try:
                status = trial.ended()
                output = trial.output.read_text(errors="replace")
                if status:
                    raise RuntimeError(f"the undisturbed run ended with status {status}: {trial.read()[-3:]}")
            finally:
                trial.watch.close()
                self.place.calm()
            self._reference = Reference(run, trial.seconds, self.work.done(run), output)
            self.say(f"{self.work.name}: {trial.seconds:.0f} s undisturbed")
        return self._reference

    def trial(self, seed: int) -> Result:
        """One trial. If its moment never comes, it is tried again with another seed."""
        reference = self.reference()
        for miss in range(_MISSES):
            result = Result(self.name, self.during, seed + 1000 * miss)
            self.place.up()
            run = f"{self.home}/{self.name}-{self.during}-{result.seed}"
            trial = Trial(self.place, self.work, self.home, run, result.seed, self.timeout_s)
            trial.reference = reference
            try:
                self.say(f"{self.name}, seed {result.seed}")
                return self._one(trial, result)
            except Missed as missed:
                self.say(f"{self.name}, seed {result.seed}: missed, {missed}")
                result.why = str(missed)
            finally:
                self.place.calm()
        return result

    def _one(self, trial: Trial, result: Result) -> Result:
        trial.begin()
        try:
            if not self.kind.anytime or self.during != "training":
                moments.PHASES[self.during](trial)
            result.step = trial.mark_fault()
            result.victim = self.kind.cause_in(self.during)(trial)
            self.say(f"{self.name}, seed {result.seed}: at {result.step}, {trial.seconds:.0f} s: {result.victim}")
            how = trial.finish()
        except TimeIsUp as late:
            trial.give_up()
            how = "lost", str(late)
        except Missed:
            trial.watch.close()
            trial.give_up()
            raise
        found = trial.report(result, how)
        told = f"{found.ended}, same bits: {'yes' if found.same_bits else 'no'}, {found.steps_lost} steps lost"
        self.say(f"{self.name}, seed {found.seed}: {told}, {found.seconds:.0f} s")
        time.sleep(0)
        return found
