"""What a training is made of: its settings, and the objects that the loop puts together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field
from torch import nn

from rayssl.methods.base import Method
from rayssl.schema import Config
from rayssl.training.checkpoint import CheckpointConfig
from rayssl.training.context import ClassClient, Context, MemoryClient
from rayssl.training.optim import OptimiserConfig
from rayssl.training.stopping import Stopping
from rayssl.training.trackers.base import Tracker, TrackerConfig
from rayssl.views.recipes import SegmentPlan


class TrainingConfig(Config):
    """``batch`` is global: the same figure on any number of ranks, which must divide it.

    ``epoch_steps``: how many steps make an epoch, 0 for a pass over the stream. What an epoch ends with, a checkpoint
    and its metrics, costs seconds, and a few labelled clips are passed over in less. ``trackers``: where figures go
    besides the run's folder and Ray's metrics.
    """

    epochs: int = Field(100, ge=1)
    epoch_steps: int = Field(0, ge=0)
    batch: int = Field(256, ge=2)
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    sync_batchnorm: bool = False
    optimiser: OptimiserConfig = OptimiserConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    log_every: int = Field(10, ge=1)
    trackers: list[TrackerConfig] = []


@dataclass
class TrainState:
    """What a run is made of. ``log`` takes its figures, None for a rank that has none to give; ``memory`` is None for
    methods without one, and so ``prototypes``, the memory of classes.

    ``pass_steps``: the steps of a pass over the stream, where an epoch is not one; ``labelled_steps``: of a pass over
    the labelled stream.
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
    log: Tracker | None = None
    pass_steps: int | None = None
    labelled_steps: int | None = None
    stopping: Stopping = field(default_factory=Stopping)

    @property
    def keeper(self) -> MemoryClient | ClassClient | None:
        """The memory, of either kind, as what is saved, restored and measured."""
        return self.memory if self.prototypes is None else self.prototypes
