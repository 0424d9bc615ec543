"""The YAML of a sweep as one type, and the experiment of each of its trials."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from rayssl import storage
from rayssl.errors import ConfigError
from rayssl.evaluation.settings import ClassificationConfig, StagingConfig
from rayssl.experiment.config import Experiment, located
from rayssl.experiment.files import read_yaml
from rayssl.schema import Config, Tree, override, parse
from rayssl.training.validate import KINDS, PREFIX

Point: TypeAlias = dict[str, Any]  # a value for each key of the space

_OF_TRIALS = ("eer", "min_dcf_001", "min_dcf_005")
_OF_CLASSES = ("balanced_accuracy", "accuracy", "geometric_mean", "macro_f1", "many", "medium", "few")
_OF_NIGHTS = ("macro_f1", "kappa", "accuracy", "balanced_accuracy")
_OF_TRAINING = ("loss",)
_OF_VALIDATION = tuple(PREFIX + name for name in KINDS)


class Choices(Config):
    """One of these values."""

    choices: list[Any] = Field(min_length=1)
    """The values that the key may take, in any order."""

    @property
    def examples(self) -> list[Any]:
        """Values that the experiment has to take."""
        return self.choices


class Range(Config):
    """Numbers from ``low`` to ``high``, both included."""

    low: float
    """The smallest value, included."""
    high: float
    """The largest value, included; above ``low``."""
    log: bool = False
    """Whether values are drawn evenly in their logarithm, as rates and temperatures should be; ``low`` must be above 0.
    """
    integer: bool = False
    """Whether only whole numbers are drawn."""

    @model_validator(mode="after")
    def _possible(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low={self.low:g} is not below high={self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"log: low={self.low:g} must be above 0")
        if self.integer and (self.low % 1 or self.high % 1):
            raise ValueError("integer: low and high must be whole numbers")
        return self

    @property
    def examples(self) -> list[Any]:
        """Values that the experiment has to take."""
        return [self.number(self.low), self.number(self.high)]

    def number(self, value: float) -> int | float:
        """``value`` within the range, as an integer or with four digits: what a person would write."""
        if self.integer:
            return round(min(max(value, self.low), self.high))
        return min(max(float(f"{value:.4g}"), self.low), self.high)


def _kind(value: Any) -> str:
    limits = isinstance(value, Range) or (isinstance(value, dict) and ("low" in value or "high" in value))
    return "range" if limits else "choices"


Domain = Annotated[Annotated[Choices, Tag("choices")] | Annotated[Range, Tag("range")], Discriminator(_kind)]


class FIFOConfig(Config):
    """Every trial trains to its end and is judged there."""

    name: Literal["fifo"] = "fifo"
    """Every trial trains to its end and is judged there."""


class ASHAConfig(Config):
    """Asynchronous successive halving (Li et al., MLSys 2020): at each of the ``rungs``, in epochs, a trial
    continues if it is among the best 1/``reduction`` of those that have come there so far; the first one always is.
    """

    name: Literal["asha"]
    """Asynchronous successive halving (Li et al., 2020): only the best trials train on at each rung."""
    reduction: float = Field(3.0, gt=1)
    """At a rung a trial continues if it is among the best 1/``reduction`` of those that have come there so far. Larger
    values stop more trials.
    """
    rungs: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    """The epochs at which trials are judged, rising, all before ``training.epochs``. The last epoch is always judged.
    """

    @model_validator(mode="after")
    def _ascending(self) -> ASHAConfig:
        if self.rungs != sorted(set(self.rungs)):
            raise ValueError(f"rungs: {self.rungs} do not rise; write each epoch once, in order")
        return self


class PBTConfig(Config):
    """Population based training: all trials are trained together, and after each ``every`` epochs those in the worst
    ``quantile`` resume from the checkpoint of one in the best, with its values changed a little.

    For values that may change within a training (rates, temperatures, weights), not for those that decide on shapes.
    """

    name: Literal["pbt"]
    """Population based training (Jaderberg et al., 2017): bad trials take over the weights and, a little changed, the
    values of good ones.
    """
    every: int = Field(ge=1)
    """The number of epochs between two take-overs; below ``training.epochs``."""
    quantile: float = Field(0.25, gt=0, le=0.5)
    """The share of the trials, at most 0.5, that take over from as many of the best."""


class SweepConfig(Config):
    """A search over keys of an experiment. What a trial takes is the experiment's ``ray`` and ``memory``."""

    sweep: str
    """Folder or URI of the sweep, with a run for each trial, the table of results and ``best.yaml``. The same folder
    resumes the sweep.
    """
    base: str
    """The YAML of the experiment that all trials change: a path beside this file, or as seen from the working folder,
    or a URI.
    """
    overrides: list[str] = []
    """Changes of the base for all trials, each written ``key.path=value``."""
    space: dict[str, Domain] = Field(min_length=1)
    """What is searched: dotted keys of the experiment, each with ``choices`` or with a range from ``low`` to ``high``.
    """
    trials: int | None = Field(None, ge=1)
    """The number of trials. Needed unless ``search`` is ``grid``, where leaving it out tries all combinations. Raise it
    to continue a finished sweep.
    """
    search: Literal["grid", "random", "optuna"] = "random"
    """How values are drawn: ``grid`` from all combinations of choices without repetition, ``random``, or ``optuna``,
    whose TPE looks at the results of earlier trials (extra ``sweep``).
    """
    scheduler: Annotated[FIFOConfig | ASHAConfig | PBTConfig, Field(discriminator="name")] = FIFOConfig()
    """Whether trials are stopped early: ``fifo`` stops none, ``asha`` the bad ones, ``pbt`` lets them take over from
    good ones.
    """
    metric: str
    """The figure to search by: one of ``rayssl evaluate`` (``eer``, ``balanced_accuracy``, ``macro_f1``, ...); one of
    the experiment's ``training.validate``, as ``validate/eer`` or ``validate/pseudo_eer``, which leaves the test alone;
    or ``loss``, the training's own. Losses cannot be compared across temperatures or methods.
    """
    mode: Literal["min", "max"]
    """Whether the lowest (``min``, for an EER or a loss) or the highest (``max``) value of the metric is best."""
    seed: int = Field(0, ge=0)
    """The seed from which trials are drawn. All trials keep the experiment's own seed unless ``space`` has it."""
    concurrent: int | None = Field(None, ge=1)
    """The number of trials that run at once; null runs as many as the cluster has room for."""

    @model_validator(mode="after")
    def _consistent(self) -> SweepConfig:
        if self.search == "grid":
            ranges = [key for key, domain in self.space.items() if isinstance(domain, Range)]
            if ranges:
                raise ValueError(f"search: grid needs choices; give some for space '{ranges[0]}', or search at random")
        elif self.trials is None:
            raise ValueError(f"trials: search: {self.search} needs to know how many")
        if isinstance(self.scheduler, PBTConfig):
            if self.search == "optuna":
                raise ValueError("scheduler: pbt needs all points at its start; search: random or grid draws them")
            if self.trials == 1:
                raise ValueError("scheduler: pbt needs several trials")
            if "training.epochs" in self.space or "training.epoch_steps" in self.space:
                raise ValueError("scheduler: pbt trains all trials equally long; leave training.epochs out of space")
        if "run" in self.space or any(each.startswith("run=") for each in self.overrides):
            raise ValueError("run: each trial has a folder of its own below sweep; leave it out")
        return self


@dataclass(frozen=True)
class SweepPlan:
    """A sweep and its base experiment: ``tree`` is the base's, with the overrides of all trials."""

    config: SweepConfig
    tree: Tree
    where: str

    @property
    def uri(self) -> str:
        """The sweep's folder, the same from any working folder."""
        return storage.absolute(self.config.sweep)

    def run(self, index: int) -> str:
        """The run folder of a trial."""
        return storage.join(self.uri, "trials", f"{index:04d}")

    def experiment(self, point: Point, run: str) -> Experiment:
        """The experiment of a trial; raises `ConfigError` where the values of ``point`` do not go together."""
        tree = override(self.tree, [*assignments(point), f"run={json.dumps(run)}"])
        return located(parse(Experiment, tree, self.where))

    def rungs(self, experiment: Experiment) -> list[int]:
        """The epochs after which a trial is judged, the last one included."""
        last = experiment.training.epochs
        scheduler, early = self.config.scheduler, list[int]()
        if isinstance(scheduler, ASHAConfig):
            early = scheduler.rungs
        if isinstance(scheduler, PBTConfig):
            early = list(range(scheduler.every, last, scheduler.every))
        return [*(epoch for epoch in early if epoch < last), last]

    @property
    def evaluated(self) -> bool:
        """Whether the metric is one of evaluation, not of training."""
        return self.config.metric not in (*_OF_TRAINING, *_OF_VALIDATION)

    def fixed(self) -> Tree:
        """What may not change when a sweep resumes. The numbers of trials and of those at once may."""
        config = self.config.model_dump(mode="json", exclude={"sweep", "base", "overrides", "trials", "concurrent"})
        return {**config, "experiment": self.tree}


def assignments(point: Point) -> list[str]:
    """A point as overrides ``key.path=value``."""
    return [f"{key}={text(value)}" for key, value in point.items()]


def text(value: Any) -> str:
    """``value`` as YAML on one line."""
    written = json.dumps(value)
    # YAML 1.1 has no number 1e-05, only 1.0e-05
    return (
        written.replace("e", ".0e") if isinstance(value, float) and "e" in written and "." not in written else written
    )


def split_overrides(overrides: list[str]) -> tuple[list[str], list[str]]:
    """Overrides of the sweep itself, and those of the experiments of all trials."""
    of_trials = Experiment.model_fields.keys() - SweepConfig.model_fields.keys()
    ours = [each for each in overrides if each.partition("=")[0].partition(".")[0] not in of_trials]
    return ours, [each for each in overrides if each not in ours]


def read_plan(where: str, overrides: list[str]) -> SweepPlan:
    """The sweep that the YAML file or URI ``where`` describes, with overrides of it or of all trials.

    Raises `ConfigError` for everything that is wrong whichever trial it is: an unknown key (naming the nearest), a
    value that an experiment does not take, a metric that does not exist.
    """
    ours, of_trials = split_overrides(overrides)
    tree = override(read_yaml(where), ours)
    config = parse(SweepConfig, tree, where)
    beside = storage.join(where.rpartition("/")[0] or ".", config.base)
    base = beside if storage.exists(beside) else config.base
    plan = SweepPlan(config, override(read_yaml(base), [*config.overrides, *of_trials]), base)
    _check(plan, plan.experiment({}, plan.run(0)))
    return plan


def _check(plan: SweepPlan, experiment: Experiment) -> None:
    config, where = plan.config, plan.where
    for key, domain in config.space.items():
        for value in domain.examples:
            try:
                plan.experiment({key: value}, plan.run(0))
            except ConfigError as error:
                message = str(error).removeprefix(f"{where}: ")
                # other messages are about several keys, and the trial may change the other keys too
                if message.startswith(("unknown key", "override", f"'{key}'", f"'{key}.")):
                    raise ConfigError(f"space: {message}") from None
    if isinstance(config.scheduler, ASHAConfig) and config.scheduler.rungs[-1] >= experiment.training.epochs:
        raise ConfigError(
            f"scheduler.rungs: {config.scheduler.rungs[-1]} is not before training.epochs="
            f"{experiment.training.epochs} of {where}; leave it out, every trial that is left is judged at its end"
        )
    if isinstance(config.scheduler, PBTConfig) and config.scheduler.every >= experiment.training.epochs:
        raise ConfigError(
            f"scheduler.every={config.scheduler.every} is not below training.epochs={experiment.training.epochs} of "
            f"{where}: nothing would be taken over"
        )
    _check_metric(plan, experiment)


def _check_validated(metric: str, plan: SweepPlan, experiment: Experiment) -> None:
    """Raises `ConfigError` if the experiment does not validate by ``metric`` at each rung."""
    validate, where = experiment.training.validate, plan.where
    if validate is None:
        raise ConfigError(f"metric: '{metric}' needs training.validate, and {where} has none; add it")
    known = [PREFIX + name for name in validate.figures]
    if metric not in known:
        raise ConfigError(
            f"metric: '{metric}' is no figure of training.validate in {where}; there are {', '.join(known)}"
        )
    last = experiment.training.epochs
    missed = [epoch for epoch in plan.rungs(experiment) if not validate.due(epoch, last)]
    if missed:
        raise ConfigError(
            f"metric: '{metric}' is not known after epoch {missed[0]}, where trials are judged: "
            f"training.validate.every_epochs is {validate.every_epochs}; set it to 1"
        )


def _check_metric(plan: SweepPlan, experiment: Experiment) -> None:
    metric, where = plan.config.metric, plan.where
    if metric in _OF_TRAINING:
        return
    if metric.startswith(PREFIX):
        _check_validated(metric, plan, experiment)
        return
    settings = experiment.evaluation
    known: tuple[str, ...] = _OF_CLASSES if isinstance(settings, ClassificationConfig) else _OF_TRIALS
    known = _OF_NIGHTS if isinstance(settings, StagingConfig) else known
    figures = tuple(dict.fromkeys((*_OF_TRIALS, *_OF_CLASSES, *_OF_NIGHTS)))
    if metric not in figures or (settings is not None and metric not in known):
        every = (*known, *_OF_TRAINING) if settings is not None else (*figures, *_OF_TRAINING)
        close = difflib.get_close_matches(metric, every, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(every)}"
        raise ConfigError(f"metric: '{metric}' is no figure of {where}; {hint}")
    if settings is None:
        raise ConfigError(f"metric: '{metric}' needs an evaluation, and {where} has none; add it, or take metric: loss")
