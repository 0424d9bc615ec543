"""The verbs as functions: ``rayssl.prepare(...)``, ``rayssl.train(...)``, ``rayssl.evaluate(...)``.

A configuration is a path or URI of a YAML file, a mapping with the same keys, or a `Config` object. Keyword arguments
change keys of it, as ``key.path=value`` does on the command line::

    rayssl.prepare("configs/synthetic_prepare.yaml")
    rayssl.train("configs/synthetic_ssps.yaml", run="runs/k80", method={"clusters": 80}, **{"training.epochs": 20})
    rayssl.evaluate("runs/k80")

With ``local=True`` everything runs in this process, without Ray.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, TypeAlias, TypeVar

from rayssl.data.corpus import PrepareConfig
from rayssl.experiment import ahead
from rayssl.experiment import local as local_training
from rayssl.experiment.build import check_start
from rayssl.experiment.config import Experiment
from rayssl.experiment.files import read_yaml
from rayssl.experiment.job import resolve
from rayssl.progress import Line, Screen, open_screen
from rayssl.runs.changes import changes as changes_of
from rayssl.runs.changes import refuse
from rayssl.runs.origin import origins, record
from rayssl.schema import Config, Tree, flatten, override, parse
from rayssl.training import checkpoint

Given: TypeAlias = "str | PathLike[str] | Mapping[str, Any]"
C = TypeVar("C", bound=Config)


def prepare(
    config: Given | PrepareConfig,
    *,
    overwrite: bool = False,
    progress: bool = True,
    local: bool = False,
    **changes: Any,
) -> Any:
    """Prepares every corpus of ``config`` that is not complete yet; see ``rayssl prepare``.

    Args:
        config: a preparation: YAML file, mapping, or `PrepareConfig`.
        overwrite: whether to replace corpora that were made with other settings or by an earlier rayssl.
        progress: whether to show on standard error how far it is: a bar on a terminal, else lines.
        local: whether to prepare in this process alone, without Ray.
        changes: keys of the configuration to change.

    Returns:
        A `rayssl.runtime.prepare.Summary`. Its ``text()`` is for people.

    Raises:
        UserError: the user can fix it; the message is one line.
    """
    from rayssl.runtime import prepare as runtime

    settings, _, _ = _read(PrepareConfig, config, changes)
    return runtime.prepare(settings, progress=progress, overwrite=overwrite, local=local)


def train(
    experiment: Given | Experiment, *, local: bool = False, allow_change: Sequence[str] = (), **changes: Any
) -> dict[str, Any]:
    """Trains a run, or resumes it; see ``rayssl train``.

    Args:
        experiment: YAML file, mapping, or `Experiment`.
        local: whether to train in this process alone, without Ray. The result has the same bits as one Ray worker's.
        allow_change: keys that may have another value than in the steps that the run has. Without them, only
            `rayssl.runs.changes.FREE` may change.
        changes: keys of the configuration to change.

    Returns:
        The metrics of the last epoch.

    Raises:
        UserError: the user can fix it; the message is one line.
        Stopped: a signal stopped the training, and a checkpoint was saved.
    """
    settings, tree, assignments = _read(Experiment, experiment, changes)
    return train_recorded(settings, origins(tree, assignments, settings), local=local, allow_change=allow_change)


def train_recorded(
    experiment: Experiment,
    where: dict[str, str],
    *,
    local: bool,
    allow_change: Sequence[str] = (),
    screen: Screen | None = None,
    verbose: bool = False,
) -> dict[str, Any]:
    """`train` for settings that have been read. ``where``: the origin of each key, for the run's folder.

    ``screen`` shows what happens; by default lines are printed. ``verbose``: also what Ray's own processes print.

    The folder's record changes only if something is trained.
    """
    screen = screen or open_screen("plain")
    job = resolve(experiment)
    trained = checkpoint.steps(job.run)
    changed = changes_of(experiment) if trained else []
    refuse(job.run, changed, allow_change, max(trained, default=0))
    if check_start(job, lambda line: screen.show(Line(line))).epoch < experiment.training.epochs:
        for line in ahead.check(job):
            screen.show(Line(line))
        experiment.storage.apply()
        record(experiment, where, [{"step": max(trained), **change._asdict()} for change in changed])
    if local:
        return local_training.train(job, screen=screen)
    from rayssl.runtime import train as runtime

    return runtime.train(job, screen=screen, verbose=verbose)


def evaluate(run: str | PathLike[str], checkpoint: str = "last", *, local: bool = False, **changes: Any) -> Any:
    """Evaluates a checkpoint of a run on its test corpus; see ``rayssl evaluate``.

    Args:
        run: folder or URI of the run.
        checkpoint: ``last``, ``best``, ``epoch-N`` or ``step-N``.
        local: whether to evaluate in this process alone, without Ray.
        changes: keys of the run's configuration to change, for this evaluation only.

    Returns:
        For verification, a `rayssl.evaluation.verification.Result`. For classification, a list of
        `rayssl.evaluation.imbalance.ClassificationResult`, with the method's own classifier first. For the staging of
        nights, a `rayssl.evaluation.staging.StagingResult`.

    Raises:
        UserError: the user can fix it; the message is one line.
    """
    from rayssl.runtime.evaluation import evaluate as runtime

    return runtime.evaluate(str(run), checkpoint, _assignments(changes), local=local)


def _read(model: type[C], given: Any, changes: Mapping[str, Any]) -> tuple[C, Tree, list[str]]:
    """The settings, the YAML tree that they were read from, and the assignments that change it."""
    assignments = _assignments(changes)
    if isinstance(given, model):
        tree = given.model_dump(mode="json")
        return (parse(model, override(tree, assignments), model.__name__) if assignments else given), tree, assignments
    if isinstance(given, Mapping):
        tree, where = dict(given), model.__name__
    else:
        where = str(given)
        tree = read_yaml(where)
    return parse(model, override(tree, assignments), where), tree, assignments


def _assignments(changes: Mapping[str, Any]) -> list[str]:
    """``changes`` as ``key.path=value``, as on a command line. JSON values are valid YAML."""
    return [f"{key}={json.dumps(value)}" for key, value in flatten(dict(changes)).items()] if changes else []
