"""The settings of the training, and the objects that the loop works with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from pydantic import Field, model_validator
from torch import nn

from rayssl.memory.classes.settings import ClassSettings
from rayssl.methods.base import Method
from rayssl.schema import Config
from rayssl.training.checkpoint import Best, CheckpointConfig
from rayssl.training.context import ClassClient, Context, MemoryClient
from rayssl.training.nights import NightInput
from rayssl.training.optim import OptimiserConfig
from rayssl.training.stopping import Stopping
from rayssl.training.trackers.base import Tracker, Trackers
from rayssl.training.validate import PREFIX, ValidateConfig
from rayssl.views.recipes import SegmentPlan


class TrainingConfig(Config):
    """``batch`` is global: it stays the same for any number of ranks, and that number must divide it.

    ``accumulate``: in how many parts a rank computes its share of the batch, to need less memory. Loss and gradient are
    those of the whole batch, for every method, also contrastive ones; a step takes one more forward pass. Only batch
    normalisation differs: its statistics are those of a part (of all ranks, with ``sync_batchnorm``).

    ``epoch_steps``: the number of steps of an epoch; 0 for one pass over the stream. Each epoch ends with a checkpoint
    and its metrics, which cost seconds; a pass over a few labelled clips is shorter than that. ``trackers``: where
    figures go besides the run's folder and Ray's metrics. ``verify_every``: after so many steps one is computed again
    and its bits are compared, to find a processor that computes wrong without an error (0: never). It costs two steps.

    ``compile``: whether encoders are compiled (torch.compile); ``auto``: on a GPU, for trainings of at least 10,000
    steps, networks that gain from it. The first steps wait for the compiler, and losses differ in their last digits.
    ``tf32``: on a GPU, products and convolutions in fp32 may round their inputs to 10 bits of mantissa (TF32), which
    its matrix units need. Without it they have all 23 bits.
    """

    epochs: int = Field(100, ge=1)
    """The number of epochs to train. It is also the length of the cosine schedules of the learning rate and of DINO's
    teacher. A finished run trains on if you raise it.
    """
    epoch_steps: int = Field(0, ge=0)
    """The number of steps of an epoch; 0 for one pass over the stream. Each epoch ends with a checkpoint and its
    metrics, which cost seconds: set it where a pass is shorter than that, for example with few labelled clips.
    """
    batch: int = Field(256, ge=2)
    """The number of utterances of a step over all ranks together, so it stays the same for any number of ranks; that
    number must divide it. Contrastive methods gain from more negatives, and memory grows with it. The learning rate is
    not rescaled when you change it.
    """
    accumulate: int = Field(1, ge=1)
    """How many parts of the batch are computed one after the other, each in ``1/accumulate`` of the memory; one update
    follows with the gradient of the whole batch. Batch normalisation sees one part at a time. It costs a second forward
    pass; 1 computes the batch at once.
    """
    precision: Literal["fp32", "bf16"] = "fp32"
    """``bf16`` computes the network in bfloat16 by autocast, which saves time and memory on GPUs that have it (A100 and
    later); weights, losses and the optimiser stay float32. ``fp32`` is exact and right for CPUs.
    """
    compile: bool | Literal["auto"] = "auto"
    """Whether ``torch.compile`` compiles the encoders. ``auto`` compiles ECAPA-TDNN for trainings of at least 10,000
    steps on a GPU with a C compiler, and goes on without where compiling fails. It takes a minute or two at the start.
    Last digits change.
    """
    tf32: bool = False
    """Whether products of float32 matrices may use TF32 on a GPU that has it: several times as fast, with 10 bits of
    mantissa instead of 23. It changes nothing on a CPU, and little with bf16.
    """
    sync_batchnorm: bool = False
    """Whether batch normalisation takes the statistics of the whole global batch, over all ranks. Then the result does
    not depend on the number of ranks but for last digits. It costs some communication. MoCo with several ranks needs
    it.
    """
    optimiser: OptimiserConfig = OptimiserConfig()
    """The optimiser, its learning rate, and how the rate changes."""
    checkpoints: CheckpointConfig = CheckpointConfig()
    """When checkpoints are written, and which ones stay."""
    validate: ValidateConfig | None = None  # type: ignore[assignment]
    """How the run is judged while it trains, on a held-out part or without labels; the best checkpoint follows it. Null
    judges by ``checkpoints.best``, which says little: a loss falls also where nothing useful is learned.
    """
    log_every: int = Field(10, ge=1)
    """Steps between two lines of figures in ``metrics.jsonl`` and in the trackers; each line has the means since the
    last one. The terminal shows the loss of the last line.
    """
    verify_every: int = Field(0, ge=0)
    """After so many steps one step is computed again and its bits are compared, to find a processor that computes wrong
    without an error; 0 never does. A check costs two steps.
    """
    trackers: Trackers = []
    """Where figures go besides the run's folder (``metrics.jsonl`` and TensorBoard's ``tensorboard/``) and Ray's
    metrics: a list, or one name such as ``wandb``. ``tensorboard`` is always written, with or without being named.
    Accounts come from the environment of the workers.
    """

    @model_validator(mode="after")
    def _possible(self) -> TrainingConfig:
        if self.accumulate > 1 and self.verify_every:
            raise ValueError("verify_every: computes a whole batch at once; leave it out, or set accumulate to 1")
        if self.validate is not None and self.checkpoints.best not in ("loss", None):
            raise ValueError(
                f"checkpoints.best={self.checkpoints.best}: validate.metric={self.validate.metric} decides which "
                "checkpoint is best; leave one of them out"
            )
        return self

    def best(self, since: int) -> Best:
        """Which checkpoint is the best one; ``since``: see `MethodConfig.loss_changes_after`."""
        if self.validate is None or self.checkpoints.best is None:
            return Best(self.checkpoints.best, since=since)
        return Best(PREFIX + self.validate.metric, self.validate.best)  # its figures mean the same before and after

    def located(self) -> TrainingConfig:
        """The same settings with absolute paths."""
        return self if self.validate is None else self.model_copy(update={"validate": self.validate.located()})


class Judge(Protocol):
    """Computes the figures of a validation."""

    def figures(self, method: Method, known: Mapping[str, float]) -> dict[str, float]:
        """The figures of ``method`` as it is now, by name, the same on every rank. Every rank must call this.

        ``known``: the metrics of the epoch, on rank 0. A figure that cannot be known yet is left out. ``method`` and
        the random states stay as they are. Raises `UserError`.
        """


@dataclass
class TrainState:
    """What one rank trains with.

    ``log`` takes the figures; None on a rank that has none to give. ``memory`` is the memory of utterances and
    ``prototypes`` the memory of classes, by ``class_settings``; each is None for a method without it. ``pass_steps``:
    the steps of a pass over the stream, if an epoch is not exactly one pass. ``labelled_steps``: the steps of a pass
    over the labelled stream. ``nights``: makes the views of a corpus of nights. ``ahead``: the steps of one request to
    the memory of utterances; 1 without one. ``repeats``: whether a second run must have the same bits on the same
    machine. ``judge``: computes the figures of ``training.validate``; None without it.
    """

    config: TrainingConfig
    run: str
    seed: int
    steps_per_epoch: int
    architecture: str
    method: Method
    wrapped: nn.Module
    recipes: nn.ModuleDict
    segments: SegmentPlan
    context: Context
    memory: MemoryClient | None = None
    prototypes: ClassClient | None = None
    class_settings: ClassSettings | None = None
    log: Tracker | None = None
    pass_steps: int | None = None
    labelled_steps: int | None = None
    nights: NightInput | None = None
    ahead: int = 1
    repeats: bool = True
    stopping: Stopping = field(default_factory=Stopping)
    judge: Judge | None = None

    @property
    def best(self) -> Best:
        """Which checkpoint of the run is the best one."""
        return self.config.best(self.method.config.loss_changes_after)

    @property
    def best_of_training(self) -> str | None:
        """The metric of the training that marks the best checkpoint; None if none is wanted, or validation does it."""
        return None if self.config.validate is not None else self.config.checkpoints.best

    @property
    def checkpointable(self) -> MemoryClient | ClassClient | None:
        """The memory of either kind, for saving, restoring and its metrics; None for a method without one."""
        return self.memory if self.prototypes is None else self.prototypes
