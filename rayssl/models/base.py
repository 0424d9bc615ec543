"""The two interfaces of an encoder: a front end turns samples into features, a backbone features into an embedding.

A new backbone, in a file of your own::

    class Average(Backbone):
        class Config(BackboneConfig):
            embedding_dim: int = 64

        def __init__(self, config: Config, features: int) -> None:
            super().__init__()
            self.project = nn.Linear(features, config.embedding_dim)

        def forward(self, features: Tensor) -> Tensor:  # [B, F, T] to [B, embedding_dim]
            return self.project(features.mean(dim=2))

with ``encoder: {backbone: {name: average.py:Average}}`` in the YAML.
"""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from rayssl.models.exporting import exporting
from rayssl.registry import ComponentConfig, Configurable

# The shape of features: bands over time [B, F, T], samples [B, 1, T], channels of bands over time [B, C, F, T], or
# pictures of N consecutive epochs of sleep [B, N, F, T]
Layout: TypeAlias = Literal["bands", "samples", "planes", "epochs"]

_PICTURES = 8  # epochs whose pictures are encoded at once on a CPU, in inference


class FrontendConfig(ComponentConfig):
    """The settings of a front end, and the shape of its features."""

    #: The shape of the features, see `Layout`.
    layout: ClassVar[Layout] = "bands"

    @property
    def features(self) -> int:
        """The number of bands for the layout "bands", of channels for "planes"; 1 for "samples"."""
        return 1

    def check(self, rate: int) -> None:
        """Raises `ConfigError` if the settings do not fit audio at ``rate`` Hz. The default accepts all settings."""

    def build(self, rate: int) -> Frontend:
        """Makes the front end for audio at ``rate`` Hz: calls its class with the settings and ``rate``."""
        made: Frontend = self._make(rate)
        return made


class Frontend(nn.Module, Configurable):
    """Samples ``[B, T]`` in [-1, 1] to float32 features in the `FrontendConfig.layout`. It has no trained weights.

    A subclass must implement ``forward`` and `samples_for`.
    """

    def samples_for(self, frames: int) -> int:
        """The smallest number of samples that makes ``frames`` frames."""
        raise NotImplementedError


class BackboneConfig(ComponentConfig):
    """The settings of a backbone: the dimension of its embeddings, and the layouts of features that it accepts."""

    embedding_dim: int = Field(default=512, ge=1)
    """The number of dimensions of an embedding."""

    #: The layouts of features that it accepts.
    layouts: ClassVar[tuple[Layout, ...]] = ("bands",)

    def build(self, frontend: FrontendConfig) -> Backbone:
        """Makes the network for the features of ``frontend``, with initial weights.

        It calls the class of the backbone with the settings and ``frontend.features``.
        """
        made: Backbone = self._make(frontend.features)
        return made


class Backbone(nn.Module, Configurable):
    """Features, in one of the `BackboneConfig.layouts`, to embeddings ``[B, embedding_dim]``, not normalised.

    A subclass must implement ``forward``.
    """

    #: The smallest number of frames that it accepts.
    least_frames: int = 1
    #: Whether `lays_channels_last`; None: everywhere but on a CPU.
    channels_last: bool | None = None
    #: Whether ``training.compile: auto`` compiles it. Networks of convolutions with batch normalisation write hardly
    #: less then: `infra/gpu/forecast.py` counts it.
    gains_compiled: bool = False

    def lays_channels_last(self, features: Tensor) -> bool:
        """Whether the channels of ``features`` should be the last axis in memory inside the network.

        The matrix units of a GPU read this layout. With another one, each convolution stands between two conversions.
        A CPU has no such units. The weights and the function are the same in both layouts.
        """
        if exporting():
            return False
        return features.device.type != "cpu" if self.channels_last is None else self.channels_last


class NightBackboneConfig(BackboneConfig):
    """The settings of a backbone for sequences of epochs of sleep.

    ``sequence``: N_s, the number of consecutive epochs of a sequence in training, and of a window of a longer night.
    ``scored``: the positions [from, to) of a sequence whose stages are predicted; the others give context only. The
    default is the network's own, see `scored_slice`.
    """

    sequence: int = Field(default=40, ge=1)
    """The number N_s of consecutive epochs of 30 s of a sequence in training, and of a window of a longer night. The
    paper has 40. More context costs memory.
    """
    scored: tuple[int, int] | None = None
    """The positions ``[from, to)`` of a sequence whose stages are predicted; the others give context only. Null takes
    the network's own: all for sleepformer, the middle half for soundsleepnet.
    """

    layouts: ClassVar[tuple[Layout, ...]] = ("epochs",)

    @model_validator(mode="after")
    def _inside(self) -> NightBackboneConfig:
        if self.scored is not None and not 0 <= self.scored[0] < self.scored[1] <= self.sequence:
            raise ValueError(
                f"scored={list(self.scored)} must be [from, to) inside the {self.sequence} epochs of a sequence"
            )
        return self

    @property
    def scored_slice(self) -> slice:
        """The positions of a sequence that loss and evaluation use; all of them if ``scored`` is None."""
        return slice(0, self.sequence) if self.scored is None else slice(*self.scored)


class NightBackbone(Backbone):
    """Pictures of N epochs ``[B, N, F, T]`` to one embedding for each epoch, and their mean for the whole.

    A subclass must implement `encoded` and `context`. ``own_dim`` is D_e, the width of the epoch encoder's output.
    """

    own_dim: int

    def sequence(self, features: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The embeddings ``z [B, N, embedding_dim]``, and ``own [B, N, own_dim]``, each made of its own epoch alone.

        ``features [B, N, F, T]`` with N at most `NightBackboneConfig.sequence`. In training mode, ``keys [B]`` int64
        seed the random draws of dropout; without keys there is none.
        """
        own = self.alone(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        return self.context(own, keys), own

    def encoded(self, pictures: Tensor) -> Tensor:
        """Each epoch alone: pictures ``[n, F, T]`` to ``[n, own_dim]``, float32."""
        raise NotImplementedError(f"{type(self).__name__}.encoded is not implemented")

    def context(self, own: Tensor, keys: Tensor | None) -> Tensor:
        """Each epoch among its neighbours: ``own [B, N, own_dim]`` to ``z [B, N, embedding_dim]``; see `sequence`."""
        raise NotImplementedError(f"{type(self).__name__}.context is not implemented")

    def alone(self, pictures: Tensor) -> Tensor:
        """`encoded`, a few pictures at a time if that takes less memory.

        In inference on a CPU it is done for a few pictures at a time: more of them are not faster, and 40 epochs would
        take 300 MB.
        """
        if self.training or torch.is_grad_enabled() or exporting() or pictures.device.type != "cpu":
            return self.encoded(pictures)
        return torch.cat([self.encoded(part) for part in pictures.split(_PICTURES)])

    def forward(self, features: Tensor) -> Tensor:
        """The mean of ``z`` over the epochs, ``[B, embedding_dim]``."""
        return self.sequence(features)[0].float().mean(dim=1)
