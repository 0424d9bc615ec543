"""The settings of the training, and the objects that the loop works with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field
from torch import nn

from rayssl.methods.base import Method
from rayssl.schema import Config
from rayssl.training.checkpoint import CheckpointConfig
from rayssl.training.context import ClassClient, Context, MemoryClient
from rayssl.training.nights import NightInput
from rayssl.training.optim import OptimiserConfig
from rayssl.training.stopping import Stopping
from rayssl.training.trackers.base import Tracker, TrackerConfig
from rayssl.views.recipes import SegmentPlan


class TrainingConfig(Config):
    """``batch`` is global: it stays the same for any number of ranks, and that number must divide it.

    ``epoch_steps``: the number of steps of an epoch; 0 for one pass over the stream. Each epoch ends with a checkpoint
    and its metrics, which cost seconds; a pass over a few labelled clips is shorter than that. ``trackers``: where
    figures go besides the run's folder and Ray's metrics. ``verify_every``: after so many steps one is computed again
    and its bits are compared, to find a processor that computes wrong without an error (0: never). It costs two steps.

    ``compile``: whether encoders are compiled (torch.compile); ``auto``: on a GPU. The first steps wait for the
    compiler, and losses differ in their last digits. ``tf32``: on a GPU, products and convolutions in fp32 may round
    their inputs to 10 bits of mantissa (TF32), which its matrix units need. Without it they have all 23 bits.
    """

    epochs: int = Field(100, ge=1)
    epoch_steps: int = Field(0, ge=0)
    batch: int = Field(256, ge=2)
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool | Literal["auto"] = "auto"
    tf32: bool = False
    sync_batchnorm: bool = False
    optimiser: OptimiserConfig = OptimiserConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    log_every: int = Field(10, ge=1)
    verify_every: int = Field(0, ge=0)
    trackers: list[TrackerConfig] = []


@dataclass
class TrainState:
    """What one rank trains with.

    ``log`` takes the figures; None on a rank that has none to give. ``memory`` is the memory of utterances and
    ``prototypes`` the memory of classes; each is None for a method without it. ``pass_steps``: the steps of a pass
    over the stream, if an epoch is not exactly one pass. ``labelled_steps``: the steps of a pass over the labelled
    stream. ``nights``: makes the views of a corpus of nights. ``ahead``: the steps of one request to the memory of
    utterances; 1 without one. ``repeats``: whether a second run must have the same bits on the same machine.
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
    nights: NightInput | None = None
    ahead: int = 1
    repeats: bool = True
    stopping: Stopping = field(default_factory=Stopping)

    @property
    def checkpointable(self) -> MemoryClient | ClassClient | None:
        """The memory of either kind, for saving, restoring and its metrics; None for a method without one."""
        return self.memory if self.prototypes is None else self.prototypes
