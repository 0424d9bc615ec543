"""Trials of one kind, one after the other, with the undisturbed runs that they are compared with."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from rayssl import storage
from tests.faults import moments, watching
from tests.faults.kinds import Kind
from tests.faults.places import Place, PlaceError
from tests.faults.trial import Missed, Reference, Result, TimeIsUp, Trial
from tests.faults.work import Work

_MISSES = 3  # in a row, before a trial is given up


class Limits(NamedTuple):
    """Seconds: ``timeout_s`` of a trial, ``fault_s`` of a fault that ends. ``kills`` of a storm."""

    timeout_s: float = 600.0
    fault_s: float = 60.0
    kills: int = 1


class Session:
    """Trials of ``kind`` during ``during``; everything lies below ``folder``. ``say``: takes lines about progress."""

    def __init__(
        self, name: str, kind: Kind, during: str, folder: Path, limits: Limits, say: Callable[[str], None]
    ) -> None:
        self.name, self.kind, self.during = name, kind, during
        self.limits, self.say = limits, say
        self.place: Place = kind.place(folder)
        self.work: Work = kind.work_in(during)
        self._reference: Reference | None = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.place.down()

    def reference(self) -> Reference:
        """The undisturbed run: one that lies in the folder already, or trained at the first call."""
        if self._reference is None:
            self.place.up()
            self.work.write(self.place.home)
            run = storage.join(self.place.home, f"reference-{self.work.name}")
            known = f"{run}-{type(self.place).__name__}.json"
            if storage.exists(known):
                self._reference = Reference(**json.loads(storage.read_text(known)))
            else:
                self._reference = self._undisturbed(run)
                storage.write_text(known, json.dumps(asdict(self._reference)))
            self.say(f"{self.work.name}: {self._reference.seconds:.0f} s undisturbed")
        return self._reference

    def _undisturbed(self, run: str) -> Reference:
        self.say(f"{self.work.name}: undisturbed, in {self.place.name}")
        trial = self._new(run, 0)
        trial.begin()
        try:
            status, seconds = trial.ended(), trial.seconds
            if status:
                raise PlaceError(f"the undisturbed run ended with status {status}: {trial.read()[-3:]}")
        finally:
            trial.watch.close()
            self.place.calm()
        said = trial.output.read_text(errors="replace")
        phases = "".join(f"{watching.line_of(event)}\n" for event in watching.events(said))
        return Reference(run, seconds, self.work.done(run), said + phases)

    def _new(self, run: str, seed: int) -> Trial:
        if storage.exists(run):
            storage.remove(run, recursive=True)
        return Trial(self.place, self.work, self.place.home, run, seed, *self.limits)

    def trial(self, seed: int) -> Result:
        """One trial. If its moment never comes, it is tried again with another seed."""
        reference = self.reference()
        for miss in range(_MISSES):
            result = Result(self.name, self.during, seed + 1000 * miss)
            self.place.up()
            trial = self._new(f"{self.place.home}/{self.name}-{self.during}-{result.seed}", result.seed)
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
            trial.mark_fault()
            result.victim = self.kind.cause_in(self.during)(trial)
            told = f"at {trial.fault_step}, now at {trial.step}, {trial.seconds:.0f} s: {result.victim}"
            self.say(f"{self.name}, seed {result.seed}: {told}")
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
        return found
