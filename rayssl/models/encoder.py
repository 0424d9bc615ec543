"""The encoder, built from its configuration: samples to one embedding per utterance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import model_validator
from torch import Tensor, nn

from rayssl.models.base import NightBackbone, NightBackboneConfig
from rayssl.models.ecapa import EcapaConfig
from rayssl.models.exporting import exporting
from rayssl.models.frontends import FeatureMask, FeatureMaskConfig, LogMelConfig
from rayssl.models.nightmel import NightMel
from rayssl.models.norm import set_sync
from rayssl.models.registry import BACKBONES, FRONTENDS, AnyBackbone, AnyFrontend
from rayssl.registry import ComponentConfig
from rayssl.schema import Config


class EncoderConfig(Config):
    """The parts of an encoder.

    ``frontend`` makes the features; its default name is "logmel". ``masks`` cover features in training; all epochs of a
    sequence have the same masks. ``backbone`` is the network; it must accept the layout of the features. ``beside`` is
    a second encoder for the same samples. Its embedding is appended to the embedding of the first.
    """

    frontend: AnyFrontend = LogMelConfig()
    """What turns samples into features; ``name`` chooses it, logmel by default. Its features must fit the backbone."""
    masks: FeatureMaskConfig = FeatureMaskConfig()
    """Masks that cover bands and frames of the features in training (SpecAugment); off unless ``p`` is set."""
    backbone: AnyBackbone = EcapaConfig()
    """The network that turns features into an embedding; ``name`` chooses it. It must accept the front end's features.
    """
    beside: EncoderConfig | None = None
    """A second encoder for the same samples, with the same keys as ``encoder``; its embedding is appended to that of
    the first. For CLAR with ``method.cross``; null for one encoder.
    """
    start_from: str | None = None
    """Weights with which a new training begins instead of random ones, for every method: folder or URI of a run, of one
    of its checkpoints, or of an encoder that ``rayssl publish`` wrote (also ``hf://OWNER/NAME``), or ECAPA-TDNN of
    speechbrain (``embedding_model.ckpt``) or wespeaker (``avg_model.pt``). All sizes must be equal.
    """

    @property
    def embedding_dim(self) -> int:
        """The dimension of the whole embedding, with the one of ``beside``."""
        return self.backbone.embedding_dim + (0 if self.beside is None else self.beside.embedding_dim)

    @model_validator(mode="after")
    def _fits(self) -> EncoderConfig:
        features, network = self.frontend, self.backbone
        if features.layout not in network.layouts:
            ours = [each for each in map(BACKBONES.find, BACKBONES.builtin) if features.layout in each.layouts]
            others = [each for each in map(FRONTENDS.find, FRONTENDS.builtin) if each.layout in network.layouts]
            raise ValueError(
                f"encoder.frontend.name={features.name} does not fit encoder.backbone.name={network.name}: "
                f"{features.short_name} goes with {_either(ours)}, {network.short_name} with {_either(others)}"
            )
        if features.layout == "samples" and self.masks.p > 0:
            raise ValueError(
                f"encoder.masks.p={self.masks.p:g}: masks cover bands and frames, which encoder.frontend.name="
                f"{features.name} does not have; leave encoder.masks out"
            )
        if self.beside is not None and "epochs" in (features.layout, self.beside.frontend.layout):
            raise ValueError("encoder.beside: an encoder of nights has no second part; leave it out")
        if self.beside is not None and self.beside.start_from is not None:
            raise ValueError("encoder.beside.start_from: both parts start together; give encoder.start_from instead")
        return self

    def located(self) -> EncoderConfig:
        """A copy with absolute paths; see `rayssl.registry.ComponentConfig.located`."""
        beside = None if self.beside is None else self.beside.located()
        changes = {"frontend": self.frontend.located(), "backbone": self.backbone.located(), "beside": beside}
        return self.model_copy(update=changes)

    def check(self, rate: int) -> None:
        """Raises `ConfigError` if the settings do not fit audio at ``rate`` Hz."""
        self.frontend.check(rate)
        if self.beside is not None:
            self.beside.check(rate)


class Encoder(nn.Module):
    """Samples ``[B, T]`` in [-1, 1] to embeddings ``[B, embedding_dim]``, float32, not normalised.

    ``minimum_samples`` is the smallest T that it accepts.
    """

    def __init__(self, config: EncoderConfig, rate: int) -> None:
        super().__init__()
        self.frontend = config.frontend.build(rate)
        self.masks = FeatureMask(config.masks)
        self.backbone = config.backbone.build(config.frontend)
        self.embedding_dim = config.backbone.embedding_dim
        self.minimum_samples = self.frontend.samples_for(self.backbone.least_frames)

    def forward(self, wave: Tensor, keys: Tensor | None = None) -> Tensor:
        """Embeds ``wave [B, T]``. In training mode, features are masked if ``keys [B]`` int64 are given.

        No gradient flows to ``wave``.
        """
        features = self.frontend(wave)
        if keys is not None and self.training:
            features = self.masks(features, keys)
        # Losses divide similarities by temperatures of a few hundredths: bfloat16 is not precise enough
        embedding: Tensor = self.backbone(features)
        return embedding.float()


class Joined(Encoder):
    """Two encoders for the same samples. Their embeddings are concatenated."""

    def __init__(self, config: EncoderConfig, rate: int) -> None:
        nn.Module.__init__(self)
        assert config.beside is not None
        self.first = Encoder(config, rate)
        self.second = build_encoder(config.beside, rate)
        self.embedding_dim = config.embedding_dim
        self.minimum_samples = max(self.first.minimum_samples, self.second.minimum_samples)

    def forward(self, wave: Tensor, keys: Tensor | None = None) -> Tensor:
        """As `Encoder.forward`. The masks of both encoders are drawn from the same keys."""
        return torch.cat([self.first(wave, keys), self.second(wave, keys)], dim=1)


class NightEncoder(Encoder):
    """Sequences of epochs of sleep to an embedding for each epoch: `sequence`. Its mean is the embedding of all.

    ``window``: how many epochs see each other, N_s. ``scored``: the positions of a sequence of ``window`` epochs that
    loss and evaluation use. ``own_dim``: D_e, see `sequence`.
    """

    backbone: NightBackbone

    def __init__(self, config: EncoderConfig, rate: int) -> None:
        super().__init__(config, rate)
        network = config.backbone
        assert isinstance(network, NightBackboneConfig) and isinstance(self.backbone, NightBackbone)
        self.window, self.scored, self.own_dim = network.sequence, network.scored_slice, self.backbone.own_dim

    def forward(self, wave: Tensor, keys: Tensor | None = None) -> Tensor:
        """The mean of ``z`` over the epochs, ``[B, embedding_dim]`` float32. Arguments as `sequence`."""
        z, _ = self.sequence(wave, keys)
        return z.mean(dim=1)

    def sequence(self, x: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``z [B, N, embedding_dim]`` of each epoch among its neighbours, and ``own [B, N, own_dim]`` of it alone.

        ``x``: samples ``[B, T]`` in [-1, 1], N = ceil(T / epoch); if the last epoch is not whole, what there is of it
        is repeated. Or pictures ``[B, N, F, frames]`` if the front end takes them. If N is larger than ``window``, the
        windows follow each other without overlap, but the last one, which ends with the last epoch. In training mode
        with ``keys [B]`` int64, features are masked, and dropout is drawn. Both results are float32, not normalised.
        """
        epochs = x if x.dim() == 4 else whole_epochs(x, self.minimum_samples)
        rows, count = epochs.shape[:2]
        if not exporting() and count <= self.window:
            return self._windows(epochs, keys)
        # All of this is arithmetic with sizes and no branch: a graph of `torch.export` keeps N free
        window = torch.sym_min(count, self.window) if exporting() else self.window
        windows = (count + window - 1) // window
        every = torch.arange(windows, device=x.device)
        starts = torch.clamp_max(every * window, count - window)
        within = torch.arange(window, device=x.device)
        taken = (starts[:, None] + within).flatten()
        cut = epochs.index_select(1, taken).unflatten(1, (windows, window)).flatten(0, 1)
        z, own = self._windows(cut, None if keys is None else keys.repeat_interleave(windows))
        positions = torch.arange(count, device=x.device)
        number = torch.div(positions, window, rounding_mode="floor")
        places = number * window + positions - starts[number]
        z, own = (part.unflatten(0, (rows, windows)).flatten(1, 2).index_select(1, places) for part in (z, own))
        return z, own

    @property
    def apart(self) -> bool:
        """Whether the features of an epoch do not depend on its neighbours, so that `alone` can be computed once."""
        return isinstance(self.frontend, NightMel) and self.frontend.config.loudness == "epoch"

    def alone(self, pictures: Tensor) -> Tensor:
        """``own [n, own_dim]`` of pictures ``[n, F, frames]``, float32, in inference; only if they are `apart`."""
        return self.backbone.alone(self.frontend(pictures[:, None])[:, 0]).float()

    def among(self, own: Tensor) -> Tensor:
        """``z [B, N, embedding_dim]`` of epochs whose own features are ``own [B, N, own_dim]``, N <= ``window``."""
        return self.backbone.context(own, None).float()

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the network of `sequence`, as ``nn.Module.compile`` does that of ``forward``; same arguments."""
        self.backbone.sequence = torch.compile(self.backbone.sequence, *args, **kwargs)  # type: ignore[method-assign]

    def _windows(self, epochs: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor]:
        """`sequence` of N <= ``window`` epochs: samples ``[B, N, T]`` or pictures ``[B, N, F, frames]``."""
        features = self.frontend(epochs.flatten(1) if epochs.dim() == 3 else epochs)
        drawn = keys if self.training else None
        if drawn is not None:
            features = self.masks(features, drawn)
        z, own = self.backbone.sequence(features, drawn)
        return z.float(), own.float()


def whole_epochs(samples: Tensor, length: int) -> Tensor:
    """``samples [B, T]`` cut into epochs, ``[B, N, length]`` with N = ceil(T / length).

    If T is not a multiple of ``length``, the last part is repeated until it fills an epoch.
    """
    given = samples.shape[1]
    count = (given + length - 1) // length
    start = (count - 1) * length
    within = torch.arange(length, device=samples.device) % (given - start)
    last = samples[:, start:].index_select(1, within)
    whole: Tensor = torch.cat((samples[:, :start], last), dim=1).unflatten(1, (count, length))
    return whole


def build_encoder(config: EncoderConfig, rate: int = 16000, sync_batchnorm: bool = False) -> Encoder:
    """An encoder with initial weights, for audio at ``rate`` Hz.

    With ``sync_batchnorm``, batch normalisation in training mode uses the statistics of all ranks.
    """
    kind = Joined if config.beside is not None else NightEncoder if config.frontend.layout == "epochs" else Encoder
    encoder = kind(config, rate)
    set_sync(encoder, sync_batchnorm)
    return encoder


def _either(models: Sequence[type[ComponentConfig]]) -> str:
    names = [str(model.model_fields["name"].default) for model in models] or ["no other built-in one"]
    *rest, last = names
    return f"{', '.join(rest)} or {last}" if rest else last
