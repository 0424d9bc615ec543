"""Small encoders of nights for tests: epochs of 30 s at 200 Hz are 6,000 samples."""

from __future__ import annotations

import torch
from torch import Tensor

from rayssl.models.encoder import EncoderConfig, NightEncoder, build_encoder
from rayssl.schema import parse

RATE, EPOCH = 200, 6_000
FRONTEND = {
    "name": "nightmel",
    "mel": {"n_mels": 20, "hop_ms": 500, "win_ms": 500, "n_fft": 160, "f_max": 100},
}
SOUNDSLEEPNET = {"name": "soundsleepnet", "width": 8, "embedding_dim": 12, "blocks": 1, "heads": 2, "hidden": 16}
SLEEPFORMER = {"name": "sleepformer", "width": 0.125, "frames": 64, "blocks": 1}
NETWORKS = {
    "soundsleepnet": SOUNDSLEEPNET,
    "soundsleepnet-epoch": SOUNDSLEEPNET | {"context": "epoch"},
    "sleepformer": SLEEPFORMER,
    "sleepformer-fc": SLEEPFORMER | {"head": "fc"},
}
ALONE = {"soundsleepnet-epoch", "sleepformer-fc"}


def night_encoder(name: str, sequence: int = 5, sync: bool = False, **frontend: object) -> NightEncoder:
    torch.manual_seed(0)
    tree = {"frontend": FRONTEND | frontend, "backbone": NETWORKS[name] | {"sequence": sequence}}
    encoder = build_encoder(parse(EncoderConfig, tree, "test"), RATE, sync)
    assert isinstance(encoder, NightEncoder)
    return encoder


def night(epochs: int, rows: int = 1, seed: int = 0) -> Tensor:
    """Samples ``[rows, epochs * EPOCH]``: noise of another colour and level in every half of an epoch."""
    generator = torch.Generator().manual_seed(seed)
    white = torch.randn(rows, epochs * 2, EPOCH // 2, generator=generator)
    share = torch.rand(rows, epochs * 2, 1, generator=generator)
    coloured = share * white + (1 - share) * white.roll(1, dims=2)
    return (coloured * 10 ** (-3 * torch.rand(rows, epochs * 2, 1, generator=generator))).flatten(1)
