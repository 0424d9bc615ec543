"""When a fault comes: at a random moment of the wanted phase of the command."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from rayssl import storage
from tests.faults import processes
from tests.faults.processes import titled
from tests.faults.trial import Missed, Trial
from tests.faults.work import EPOCH_STEPS, Training

Moment = Callable[[Trial], None]
_FIRST, _LEFT = 2, 4  # training: not before so many steps, and so many before the end
FILLED = r"filled the memory in ([\d.]+) s"
CLUSTERED = r"clustered the memory in ([\d.]+) s"


def training(trial: Trial) -> None:
    """Between two steps, or in one."""
    assert isinstance(trial.work, Training)
    target = trial.random.randint(_FIRST, int(trial.work.share * trial.work.steps) - _LEFT)
    trial.wait_for(lambda: trial.step >= target)
    time.sleep(trial.random.uniform(0, 0.15))


def filling(trial: Trial) -> None:
    """In a pass that fills the memory, which follows the end of an epoch."""
    target = _epoch_end(trial)
    time.sleep(trial.random.uniform(0.1, 0.9) * _known(trial, FILLED))
    _not_after(trial, target)


def clustering(trial: Trial) -> None:
    """In a clustering, which follows a pass that fills the memory: the actor's title says that it clusters."""
    target = _epoch_end(trial)
    actors = titled(trial.place.processes(), r"ray::(Server|IndexServer)(\.|$)")

    def clusters() -> bool:
        now = [processes.read(actor.pid) for actor in actors]
        return any(process is not None and ".refresh" in process.title for process in now)

    trial.wait_for(lambda: clusters() or trial.step > target, every_s=0.002)
    time.sleep(trial.random.uniform(0, 0.6) * _known(trial, CLUSTERED))
    _not_after(trial, target)


def saving(trial: Trial) -> None:
    """While a checkpoint's folder is there, and its ``meta.json`` is not."""
    assert isinstance(trial.work, Training)
    target = trial.random.randint(_FIRST, trial.work.steps - 2 * EPOCH_STEPS)
    trial.wait_for(lambda: trial.step >= target)
    folder = storage.join(trial.run, "checkpoints")

    def half() -> bool:
        if storage.is_remote(folder):
            files = [uri.rpartition("/")[::2] for uri in storage.list_files(folder)]
            return bool({at for at, _ in files} - {at for at, name in files if name == "meta.json"})
        found = Path(folder).glob("step-*") if Path(folder).is_dir() else ()
        return any(not (each / "meta.json").exists() for each in found)

    trial.wait_for(half, every_s=0.0005)


def working(trial: Trial) -> None:
    """Of another verb than train: when a random share of the pieces is done."""
    most = trial.reference.done if trial.reference is not None else 10
    target = trial.random.randint(1, max(1, most - 2))
    trial.wait_for(lambda: trial.step >= target, every_s=0.03)


def _epoch_end(trial: Trial) -> int:
    """Waits until an epoch has ended, not the last one; returns its last step."""
    assert isinstance(trial.work, Training)
    epoch = trial.random.randint(1, trial.work.epochs - 1)
    trial.wait_for(lambda: epoch in trial.watch.steps.epochs)
    return epoch * trial.work.steps // trial.work.epochs


def _not_after(trial: Trial, target: int) -> None:
    if trial.step > target:
        raise Missed(f"step {trial.step} came before the fault, which was meant for the pause after step {target}")


def _known(trial: Trial, pattern: str) -> float:
    return trial.reference.seconds_of(pattern) if trial.reference is not None else 0.0


PHASES: dict[str, Moment] = {
    "training": training,
    "filling": filling,
    "clustering": clustering,
    "saving": saving,
    "prepare": working,
    "embed": working,
    "sweep": working,
}
