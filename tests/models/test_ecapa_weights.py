"""Weights of other toolkits under our names: the same embeddings to 1e-5, in both layouts of features."""

from __future__ import annotations

import pytest
import torch

from rayssl.models.ecapa import Ecapa, EcapaConfig
from rayssl.models.ecapa_weights import converted, library_of
from tests.models import wespeaker_ecapa as wespeaker

BANDS = 10


def test_speechbrain() -> None:
    theirs_of = pytest.importorskip("speechbrain.lobes.models.ECAPA_TDNN").ECAPA_TDNN
    torch.manual_seed(1)
    config = EcapaConfig(channels=16, embedding_dim=12, mfa_channels=48)
    theirs = theirs_of(BANDS, lin_neurons=12, channels=[16] * 4 + [48])
    for name, value in theirs.state_dict().items():
        if name.endswith(("running_var", "norm.norm.weight")):
            value.uniform_(0.5, 1.5)
        elif name.endswith(("running_mean", "norm.norm.bias")):
            value.normal_(0, 0.2)
    theirs.eval()
    state = theirs.state_dict()
    assert library_of(state) == "speechbrain"
    ours = Ecapa(config, BANDS).eval()
    ours.load_state_dict(converted(state, "speechbrain"))
    features = torch.randn(3, BANDS, 50)
    wanted = theirs(features.transpose(1, 2))[:, 0]
    assert wanted.std() > 0.1
    for last in (False, True):
        ours.channels_last = last
        torch.testing.assert_close(ours(features), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frames", [6, 50])
def test_wespeaker(frames: int) -> None:
    state = wespeaker.weights(bands=BANDS)
    assert library_of(state) == "wespeaker"
    config = EcapaConfig(channels=16, embedding_dim=12, mfa_channels=24, variant="wespeaker")
    ours = Ecapa(config, BANDS).eval()
    ours.load_state_dict(converted(state, "wespeaker"))
    features = torch.randn(3, BANDS, frames, generator=torch.Generator().manual_seed(1))
    wanted = wespeaker.embedding(state, features)
    assert wanted.std() > 0.1
    for last in (False, True):
        ours.channels_last = last
        torch.testing.assert_close(ours(features), wanted, rtol=1e-5, atol=1e-5)


def test_both_variants_train_alike_in_both_layouts() -> None:
    config = EcapaConfig(channels=16, embedding_dim=12, mfa_channels=24, variant="wespeaker")
    torch.manual_seed(2)
    ours = Ecapa(config, BANDS).double()
    features, found = torch.randn(4, BANDS, 30, dtype=torch.float64), []
    for last in (False, True):
        ours.channels_last = last
        ours.zero_grad()
        ours(features).square().sum().backward()
        found.append(torch.cat([weight.grad.flatten() for weight in ours.parameters()]))
    torch.testing.assert_close(found[0], found[1])


def test_weights_of_nobody() -> None:
    assert library_of({"blocks.0.conv.conv.weight": torch.zeros(1)}) is None
    state = {**wespeaker.weights(), "bn2.weight": torch.ones(12)}
    assert "bn2.weight" in converted(state, "wespeaker")  # so that loading names it
