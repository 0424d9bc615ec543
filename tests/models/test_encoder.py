"""The whole encoder: what fits what, configuration, shapes, masks only in training, bfloat16, compilation."""

import copy

import pytest
import torch

from rayssl.errors import ConfigError
from rayssl.models.encoder import Encoder, EncoderConfig, build_encoder
from rayssl.random.draws import fold
from rayssl.random.draws_torch import keys_torch
from rayssl.schema import parse

ECAPA = {"name": "ecapa", "channels": 16, "embedding_dim": 12, "attention_channels": 8, "se_channels": 8}
RESNET = {"name": "fast_resnet34", "channels": 4, "embedding_dim": 12}
RESNET1D = {"name": "resnet1d", "width": 4, "embedding_dim": 12}
RESNET2D = {"name": "resnet2d", "width": 4, "embedding_dim": 12}
SPECTRUM = {"name": "spectrum", "n_fft": 512, "hop_ms": 16, "bins": 24}
FITTING = {
    "ecapa": ({}, ECAPA),
    "fbank-ecapa": ({"name": "fbank"}, {**ECAPA, "variant": "wespeaker"}),
    "fast_resnet34": ({"name": "logmel"}, RESNET),
    "logmel-resnet2d": ({}, RESNET2D),
    "raw-resnet1d": ({"name": "raw"}, RESNET1D),
    "spectrum-resnet2d": (SPECTRUM, RESNET2D),
}
MASKS = {"p": 1.0, "freq_width": 20, "time_width": 30}


def build(backbone: dict[str, object], frontend: dict[str, object] | None = None) -> Encoder:
    torch.manual_seed(0)
    tree = {"backbone": backbone, "frontend": frontend or {}}
    if tree["frontend"].get("name") != "raw":
        tree["masks"] = MASKS
    return build_encoder(parse(EncoderConfig, tree, "test"), 16000)


@pytest.mark.parametrize("name", list(FITTING))
def test_forward_backward_and_bfloat16(name: str) -> None:
    frontend, backbone = FITTING[name]
    encoder = build(backbone, frontend)
    wave = torch.randn(6, 8000) * 0.1
    out = encoder(wave)
    assert out.shape == (6, encoder.embedding_dim) == (6, 12)
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder(wave)
    assert half.dtype == torch.float32
    half.square().sum().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in encoder.parameters())
    cosine = torch.cosine_similarity(half - half.mean(0), out - out.mean(0))
    assert cosine.min() > 0.9
    assert all("frontend" not in name for name in encoder.state_dict())


@pytest.mark.parametrize("name", [name for name in FITTING if "raw" not in name])
def test_masks_need_training_and_keys(name: str) -> None:
    frontend, backbone = FITTING[name]
    encoder = build(backbone, frontend)
    wave, keys = torch.randn(6, 8000) * 0.1, keys_torch(fold(1), torch.arange(6))
    plain = encoder(wave)
    assert not torch.allclose(encoder(wave, keys), plain, atol=1e-3)
    encoder.eval()
    assert torch.equal(encoder(wave, keys), encoder(wave))


def test_configuration_chooses_by_name() -> None:
    assert build(RESNET).backbone.__class__.__name__ == "FastResnet34"
    with pytest.raises(ConfigError, match=r"backbone\.name.*unknown name 'ecappa'"):
        parse(EncoderConfig, {"backbone": {"name": "ecappa"}}, "test")
    with pytest.raises(ConfigError, match=r"unknown key 'backbone\.chanels'; did you mean 'channels'"):
        parse(EncoderConfig, {"backbone": {"name": "ecapa", "chanels": 8}}, "test")


NETWORKS = {"ecapa": ECAPA, "fast_resnet34": RESNET, "resnet1d": RESNET1D, "resnet2d": RESNET2D}


@pytest.mark.parametrize(
    ("frontend", "fitting"),
    [
        ({"name": "logmel"}, {"ecapa", "fast_resnet34", "resnet2d"}),
        ({"name": "fbank"}, {"ecapa", "fast_resnet34", "resnet2d"}),
        ({"name": "raw"}, {"resnet1d"}),
        (SPECTRUM, {"resnet2d"}),
    ],
    ids=["logmel", "fbank", "raw", "spectrum"],
)
def test_what_fits_what(frontend: dict[str, object], fitting: set[str]) -> None:
    """Each pair is built and runs, or is refused with both keys and what goes with each."""
    for name, backbone in NETWORKS.items():
        if name in fitting:
            assert build(backbone, frontend)(torch.randn(2, 4000)).shape == (2, 12)
            continue
        with pytest.raises(ConfigError) as caught:
            build(backbone, frontend)
        text = str(caught.value)
        assert f"encoder.frontend.name={frontend['name']} does not fit encoder.backbone.name={name}: " in text
        assert all(other in text for other in fitting) and "\n" not in text


def test_refusal_says_what_goes_with_either() -> None:
    with pytest.raises(ConfigError, match=r"raw goes with resnet1d, resnet2d with fbank, logmel or spectrum$"):
        build(RESNET2D, {"name": "raw"})
    with pytest.raises(ConfigError, match=r"logmel goes with ecapa, fast_resnet34 or resnet2d, resnet1d with raw$"):
        build(RESNET1D)


def test_raw_samples_have_no_masks() -> None:
    tree = {"frontend": {"name": "raw"}, "backbone": RESNET1D, "masks": MASKS}
    with pytest.raises(ConfigError, match=r"encoder\.masks\.p=1: .*encoder\.frontend\.name=raw"):
        parse(EncoderConfig, tree, "test")
    encoder = build(RESNET1D, {"name": "raw"})
    wave, keys = torch.randn(6, 8000) * 0.1, keys_torch(fold(1), torch.arange(6))
    assert torch.equal(encoder(wave, keys), encoder(wave))


@pytest.mark.parametrize("name", list(FITTING))
def test_silence_has_finite_gradients(name: str) -> None:
    frontend, backbone = FITTING[name]
    encoder = build(backbone, frontend)
    encoder(torch.zeros(3, 4000)).square().sum().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in encoder.parameters())


def test_configuration_is_read_back_equal() -> None:
    for frontend, backbone in FITTING.values():
        config = parse(EncoderConfig, {"frontend": frontend, "backbone": backbone}, "test")
        assert parse(EncoderConfig, config.model_dump(mode="json"), "test") == config


def test_sync_batchnorm_is_switched_on_everywhere() -> None:
    for frontend, backbone in FITTING.values():
        config = parse(EncoderConfig, {"frontend": frontend, "backbone": backbone}, "test")
        encoder = build_encoder(config, sync_batchnorm=True)
        assert {part.sync for part in encoder.modules() if "BatchNorm" in type(part).__name__} == {True}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(FITTING))
def test_one_graph_without_breaks(name: str) -> None:
    frontend, backbone = FITTING[name]
    encoder = build(backbone, frontend)
    compiled = torch.compile(copy.deepcopy(encoder), backend="eager", fullgraph=True)
    wave, keys = torch.randn(4, 8000) * 0.1, keys_torch(fold(1), torch.arange(4))
    torch.testing.assert_close(compiled(wave, keys), encoder(wave, keys), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", list(FITTING))
def test_the_least_length_is_enough_and_one_sample_less_is_not(name: str) -> None:
    frontend, backbone = FITTING[name]
    encoder = build(backbone, frontend).eval()
    least = encoder.minimum_samples
    assert torch.isfinite(encoder(torch.randn(1, least))).all()
    with pytest.raises(RuntimeError):
        encoder(torch.randn(1, least - 1))
