"""Population based training (Jaderberg et al., 2017): trials advance together, and the worst resume from the best.

Synchronous: after every ``every`` epochs all trials wait for the last one, so that the next stretch depends on the seed
and the figures alone, not on which trial was faster. A waiting trial holds no resources: each stretch is a training of
its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from rayssl.errors import UserError
from rayssl.experiment.config import Experiment
from rayssl.sweeps import points
from rayssl.sweeps.config import PBTConfig, SweepPlan, assignments
from rayssl.sweeps.records import Rung, Taken, TrialRecord, ranked
from rayssl.sweeps.state import SweepState
from rayssl.training import checkpoint


class Population(SweepState):
    """A `SweepState` in which `next` returns a trial once for each stretch."""

    def __init__(self, plan: SweepPlan, say: Callable[[str], None], *, retry_failed: bool = False) -> None:
        self._running: set[int] = set()
        super().__init__(plan, say, retry_failed=retry_failed)
        self._rungs = plan.rungs(plan.experiment({}, plan.run(0)))
        for index in self._unfinished:
            self.records[index] = self.records[index].at(state="running", reason=None)

    @property
    def left(self) -> int:
        """How many stretches are still to be trained."""
        return sum(sum(rung > self._epochs(index) for rung in self._rungs) for index in self._living())

    @property
    def waiting(self) -> bool:
        """Whether there will be more when a running trial has come to its rung."""
        return bool(self._running)

    def next(self) -> tuple[TrialRecord, Experiment] | None:
        """The next stretch; None where another trial has to come to its rung first."""
        while True:
            self._exploit()
            index = self._due()
            if index is None:
                return None
            found = self._start(self.records.get(index) or TrialRecord(index=index, point=self._points[index]))
            if found is not None:
                self._running.add(index)
                return found

    def rungs_left(self, record: TrialRecord, experiment: Experiment) -> list[int]:
        """The rung that the stretch ends with."""
        return super().rungs_left(record, experiment)[:1]

    def reached(self, index: int, rung: Rung, last: int) -> bool:
        """A trial has come to the end of its stretch: it stops there in any case."""
        self._running.discard(index)
        super().reached(index, rung, last)
        return False

    def failed(self, index: int, reason: str) -> None:
        """A trial has ended by an error, and leaves the population."""
        self._running.discard(index)
        super().failed(index, reason)

    def _settle(self, index: int) -> None:
        """Nothing: the next step is decided when all trials have come to the rung."""

    def _judge(self, record: TrialRecord, last: int) -> bool:
        if record.epochs >= last:
            return super()._judge(record, last)
        self._say(self._line(record, last))
        return True

    def _living(self) -> list[int]:
        ended = {index for index, record in self.records.items() if record.state in ("failed", "finished")}
        return [index for index in range(points.count(self.config)) if index not in ended]

    def _epochs(self, index: int) -> int:
        return self.records[index].epochs if index in self.records else 0

    def _due(self) -> int | None:
        """The first of the trials that are furthest behind."""
        behind = min((self._epochs(index) for index in self._living()), default=0)
        return next((k for k in self._living() if k not in self._running and self._epochs(k) == behind), None)

    def _exploit(self) -> None:
        """Where all trials have come to the same rung, the worst become copies of the best, changed a little.

        The records written at the rung decide, so that a driver that ended half way decides the same again.
        """
        config, scheduler = self.config, self.config.scheduler
        assert isinstance(scheduler, PBTConfig)
        living = [self.records[index] for index in self._living() if index in self.records]
        if self._running or len(living) < max(2, len(self._living())) or len({record.epochs for record in living}) != 1:
            return
        epoch = living[0].epochs
        if not epoch:
            return
        order = ranked(living, config.mode)
        count = max(1, math.floor(len(order) * scheduler.quantile))
        worst = {record.index for record in order[-count:]}
        for record in living:
            if record.passed >= epoch:
                continue
            rng = np.random.default_rng([config.seed, epoch, record.index])
            if record.index in worst:
                record = self._taken_over(record, order[int(rng.integers(count))], rng)
            self._keep(record.at(passed=epoch))

    def _taken_over(self, record: TrialRecord, donor: TrialRecord, rng: np.random.Generator) -> TrialRecord:
        point = points.perturbed(self.config, donor.point, rng)
        try:
            checkpoint.take_over(self.plan.run(donor.index), self.plan.run(record.index))
        except UserError as error:
            self._say(f"trial {record.index}  failed: {error}")
            return record.at(state="failed", reason=str(error))
        values = " ".join(assignments(point))
        self._say(f"trial {record.index}  resumes from trial {donor.index} after epoch {record.epochs}, with {values}")
        taken = Taken(epoch=record.epochs, source=donor.index, before=record.point)
        return record.at(point=point, taken=[*record.taken, taken])
