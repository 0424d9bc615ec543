"""Encoders of nights: shapes, who sees whom, windows of long nights, masks and dropout by keys, export, checks."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from rayssl.errors import ConfigError
from rayssl.inference.export import largest_difference, packed, trace, unpacked
from rayssl.models.encoder import EncoderConfig, NightEncoder, build_encoder, whole_epochs
from rayssl.random.draws import fold
from rayssl.random.draws_torch import keys_torch
from rayssl.schema import parse
from tests.models.night_encoders import ALONE, EPOCH, FRONTEND, NETWORKS, RATE, SOUNDSLEEPNET, night, night_encoder

EVERY = pytest.mark.parametrize("name", list(NETWORKS))


@EVERY
def test_shapes_and_the_mean_is_the_embedding(name: str) -> None:
    encoder = night_encoder(name).eval()
    x = night(3, rows=2)
    z, own = encoder.sequence(x)
    assert z.shape == (2, 3, encoder.embedding_dim) and own.shape == (2, 3, encoder.own_dim)
    assert torch.equal(encoder(x), z.mean(dim=1))
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder.sequence(x)
    assert half[0].dtype == half[1].dtype == torch.float32
    assert torch.cosine_similarity(half[0] - half[0].mean((0, 1)), z - z.mean((0, 1)), dim=2).min() > 0.8
    pictures = encoder.frontend.pictures(x)
    torch.testing.assert_close(encoder.sequence(pictures), (z, own))
    assert encoder.minimum_samples == EPOCH


@EVERY
def test_every_weight_learns(name: str) -> None:
    encoder = night_encoder(name, sequence=4)
    z, _ = encoder.sequence(night(4, rows=2))
    (z * torch.randn_like(z)).sum().backward()
    for weight_name, weight in encoder.named_parameters():
        assert weight.grad is not None and torch.isfinite(weight.grad).all() and weight.grad.any(), weight_name
        assert weight.grad.stride() == weight.stride(), weight_name  # DDP warns at every step if they differ
    assert all("frontend" not in each for each in encoder.state_dict())


@EVERY
def test_who_sees_whom(name: str) -> None:
    """A change of epoch 2 moves its own z; those of its neighbours only with a sequence model."""
    encoder = night_encoder(name).eval()
    x = night(5)
    changed = x.clone()
    changed[:, 2 * EPOCH : 3 * EPOCH] = night(1, seed=9)
    (z, own), (z_changed, own_changed) = encoder.sequence(x), encoder.sequence(changed)
    moved, own_moved = ((a - b).abs().amax(dim=(0, 2)) > 1e-5 for a, b in ((z, z_changed), (own, own_changed)))
    assert own_moved.tolist() == [False, False, True, False, False]
    assert moved.tolist() == (own_moved.tolist() if name in ALONE else [True] * 5)


@EVERY
def test_order_matters_only_to_a_sequence_model(name: str) -> None:
    encoder = night_encoder(name).eval()
    if name == "sleepformer":  # its positions are small at first
        with torch.no_grad():
            encoder.backbone.positions.normal_()
    pictures = encoder.frontend.pictures(night(5))
    order = [3, 0, 4, 1, 2]
    z, shuffled = encoder.sequence(pictures)[0], encoder.sequence(pictures[:, order])[0]
    assert torch.allclose(shuffled, z[:, order], atol=1e-5) == (name in ALONE)


@EVERY
@pytest.mark.parametrize("loudness", ["epoch", "sequence"])
@pytest.mark.parametrize("count", [6, 10, 13])
def test_a_long_night_is_cut_into_windows(name: str, loudness: str, count: int) -> None:
    """They follow each other; the last one ends with the night."""
    encoder = night_encoder(name, loudness=loudness).eval()
    x = night(count, rows=2)
    epochs = x.unflatten(1, (count, EPOCH))
    found = encoder.sequence(x)
    starts = [min(start, count - 5) for start in range(0, count, 5)]
    parts = [encoder.sequence(epochs[:, start : start + 5].flatten(1)) for start in starts]
    for place in range(2):
        tail = parts[-1][place][:, 5 - (count - 5 * (len(parts) - 1)) :]
        expected = torch.cat([*(part[place] for part in parts[:-1]), tail], dim=1)
        torch.testing.assert_close(found[place], expected)
    torch.testing.assert_close(encoder.sequence(encoder.frontend.pictures(x)), found)


def test_an_epoch_that_is_not_whole_is_filled_by_what_there_is() -> None:
    x = torch.arange(1.0, 8.0)[None]
    assert whole_epochs(x, 3).tolist() == [[[1, 2, 3], [4, 5, 6], [7, 7, 7]]]
    assert whole_epochs(x[:, :5], 3).tolist() == [[[1, 2, 3], [4, 5, 4]]]
    assert whole_epochs(x[:, :6], 3).tolist() == [[[1, 2, 3], [4, 5, 6]]]
    assert whole_epochs(x[:, :2], 3).tolist() == [[[1, 2, 1]]]
    encoder = night_encoder("soundsleepnet").eval()
    z, _ = encoder.sequence(night(3)[:, :-1_000])
    filled = torch.cat([night(3)[:, :-1_000], night(3)[:, 2 * EPOCH :][:, :1_000]], dim=1)
    torch.testing.assert_close(z, encoder.sequence(filled)[0])


def test_masks_are_one_draw_for_the_whole_sequence() -> None:
    tree = {"frontend": FRONTEND, "backbone": SOUNDSLEEPNET, "masks": {"p": 1.0, "freq_width": 9, "time_width": 30}}
    encoder = build_encoder(parse(EncoderConfig, tree, "test"), RATE)
    assert isinstance(encoder, NightEncoder)
    x, keys = night(3, rows=2), keys_torch(fold(1), torch.arange(2))
    masked = encoder.masks(encoder.frontend(x), keys) == 0
    assert masked[0].any() and (masked == masked[:, :1]).all() and (masked[0] != masked[1]).any()
    _, own = encoder.sequence(x, keys)
    assert not torch.allclose(own, encoder.sequence(x)[1], atol=1e-3)
    encoder.eval()
    assert torch.equal(encoder.sequence(x, keys)[1], encoder.sequence(x)[1])


def test_dropout_needs_training_and_keys() -> None:
    encoder = night_encoder("soundsleepnet")
    x, keys = night(4, rows=3), keys_torch(fold(1), torch.arange(3))
    plain, dropped = encoder.sequence(x), encoder.sequence(x, keys)
    assert torch.equal(plain[1], dropped[1]) and not torch.allclose(plain[0], dropped[0], atol=1e-3)
    state = torch.get_rng_state()
    assert torch.equal(encoder.sequence(x, keys)[0], dropped[0])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(encoder.eval().sequence(x, keys)[0], encoder.sequence(x)[0])


@EVERY
def test_rows_are_independent_in_evaluation(name: str) -> None:
    encoder = night_encoder(name).eval()
    x = night(3, rows=3)
    torch.testing.assert_close(encoder.sequence(x)[0][1:2], encoder.sequence(x[1:2])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.long if name == "soundsleepnet" else pytest.mark.slow) for name in NETWORKS],
)  # sleepformer's is in tests/runtime/test_embed_nights.py, too
def test_export_takes_any_number_of_epochs(name: str) -> None:
    encoder = night_encoder(name, sequence=3)
    exported = unpacked(packed(trace(encoder, RATE), {}))
    lengths = (EPOCH, EPOCH + 1, 2 * EPOCH - 7, 3 * EPOCH, 4 * EPOCH, 7 * EPOCH + 99)
    clips = [night(8, seed=n)[0, :length].numpy().astype(np.float32) for n, length in enumerate(lengths)]
    assert largest_difference(encoder, exported, clips) < 1e-5


@EVERY
def test_a_silent_night_beside_another_has_finite_gradients(name: str) -> None:
    """And a batch of silence, but not with MobileViTV2: its fifty normalisations divide by 0.003, one after another."""
    encoder = night_encoder(name)
    x = night(3, rows=3)
    x[0], x[1, :EPOCH] = 0, 0
    batches = [x] if "sleepformer" in name else [x, torch.zeros_like(x)]
    for batch in batches:
        z, _ = encoder.sequence(batch)
        gradients = torch.autograd.grad(z.square().sum(), list(encoder.parameters()))
        assert torch.isfinite(z).all() and all(torch.isfinite(each).all() for each in gradients)


def test_what_does_not_fit_is_refused() -> None:
    ecapa = {"name": "ecapa", "channels": 16}
    with pytest.raises(ConfigError, match="nightmel goes with sleepformer or soundsleepnet"):
        parse(EncoderConfig, {"frontend": FRONTEND, "backbone": ecapa}, "test")
    with pytest.raises(ConfigError, match=r"soundsleepnet with nightmel$"):
        parse(EncoderConfig, {"backbone": SOUNDSLEEPNET}, "test")
    night_tree = {"frontend": FRONTEND, "backbone": SOUNDSLEEPNET}
    for tree in (night_tree | {"beside": {"backbone": ecapa}}, {"backbone": ecapa, "beside": night_tree}):
        with pytest.raises(ConfigError, match=r"encoder\.beside: an encoder of nights has no second part"):
            parse(EncoderConfig, tree, "test")


def test_configuration_is_read_back_equal() -> None:
    for network in NETWORKS.values():
        config = parse(EncoderConfig, {"frontend": FRONTEND, "backbone": network}, "test")
        assert parse(EncoderConfig, config.model_dump(mode="json"), "test") == config


@pytest.mark.slow
@EVERY
def test_one_graph_without_breaks(name: str) -> None:
    """But for an LSTM, which TorchDynamo leaves to torch's own kernels if it is not told otherwise."""
    import torch._dynamo.config as dynamo

    encoder = night_encoder(name)
    compiled = torch.compile(copy.deepcopy(encoder), backend="eager", fullgraph=True)
    wave, keys = night(4, rows=2), keys_torch(fold(1), torch.arange(2))
    with dynamo.patch(allow_rnn=True):
        found = compiled(wave, keys)
    torch.testing.assert_close(found, encoder(wave, keys), rtol=1e-4, atol=1e-5)
