"""The Python API: what it returns, what it refuses, and what it leaves alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import rayssl
from rayssl.data.decode import quantise, resample
from rayssl.errors import AudioError, CheckpointError, ConfigError, StorageError
from rayssl.evaluation.embeddings import embed_utterances
from rayssl.models.encoder import EncoderConfig, build_encoder
from rayssl.schema import parse
from tests.runs import experiment, tone, write_corpus, write_run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_corpus(folder / "corpus")
    return write_run(experiment(folder / "run", folder / "corpus"))


@pytest.fixture(scope="module")
def model(run: Path) -> rayssl.Model:
    return rayssl.load(str(run), device="cpu")


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    scale = b.square().mean().sqrt()
    torch.testing.assert_close(a / scale, b / scale, rtol=0, atol=1e-5)


def test_the_same_as_in_evaluation(model: rayssl.Model) -> None:
    """Floats, int16, arrays, tensors and batches are one to it; embeddings can be trained on."""
    waves = [tone(k, k, 5000) for k in range(3)]
    wanted = torch.from_numpy(embed_utterances(model.encoder, waves, "cpu", normalise=False))
    batch = torch.from_numpy(np.stack(waves)).float() / 32768
    found = model.embed(batch)
    assert found.shape == (3, model.dim) and found.dtype == torch.float32 and not found.requires_grad
    close(found, wanted)
    close(torch.stack([model.embed(wave) for wave in waves]), wanted)
    close(model.embed(batch[1].double().numpy()), wanted[1])
    torch.nn.Linear(model.dim, 2)(found).sum().backward()
    assert (model.rate, model.minimum_samples, model.source.checkpoint) == (16000, 640, "step-0000000004")


def test_it_can_be_called_and_says_what_it_is(model: rayssl.Model, run: Path) -> None:
    wave = tone(1, 1, 5000)
    assert torch.equal(model(wave), model.embed(wave))
    slow = 0.2 * np.sin(np.arange(4000) * 0.1)
    assert torch.equal(model(slow, rate=8000), model.embed(slow, rate=8000))
    assert not torch.equal(model(slow, rate=8000), model(slow))
    assert repr(model) == (
        f"Model(run='{run}', checkpoint='step-0000000004', step=4, dim=16, rate=16000, device='cpu')"
    )


def test_it_moves_and_stays_the_same_model(run: Path) -> None:
    """The device without storage stands in for a GPU: every tensor of the encoder goes there, buffers too."""
    model = rayssl.load(str(run), device="cpu")
    assert model.to("cpu") is model and model.device == torch.device("cpu")
    assert model.to(torch.device("meta")) is model
    tensors = [*model.encoder.parameters(), *model.encoder.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"} == {model.device.type}
    assert not model.encoder.training and not any(tensor.requires_grad for tensor in tensors)
    assert repr(model).endswith("device='meta')")


def test_other_rates_are_resampled(model: rayssl.Model) -> None:
    wave = 0.2 * np.sin(np.arange(22050) * 0.1)
    assert torch.equal(model.embed(wave, rate=44100), model.embed(resample(wave.astype(np.float32), 44100)))


def test_files(model: rayssl.Model, tmp_path: Path) -> None:
    """Lossless formats are the samples themselves; what is compressed, stereo or of another rate is alike."""
    wave = tone(1, 1, 8000)
    for name in ("a.wav", "a.flac"):
        soundfile.write(tmp_path / name, wave, 16000)
        assert torch.equal(model.embed_file(str(tmp_path / name)), model.embed(wave))
    soundfile.write(tmp_path / "stereo.wav", np.stack([wave, wave], 1), 16000)
    assert torch.equal(model.embed_file(tmp_path / "stereo.wav"), model.embed(wave))
    float_wave = 0.3 * np.sin(np.arange(16000) * 0.05)
    soundfile.write(tmp_path / "other.wav", float_wave, 32000, subtype="FLOAT")
    rounded = quantise(resample(float_wave.astype(np.float32), 32000))
    assert torch.equal(model.embed_file(tmp_path / "other.wav"), model.embed(rounded))


def test_score_is_a_cosine(model: rayssl.Model, tmp_path: Path) -> None:
    for k in range(2):
        soundfile.write(tmp_path / f"{k}.wav", tone(k, 3 * k, 6000), 16000)
    a, b = (str(tmp_path / f"{k}.wav") for k in range(2))
    assert model.score(a, a) == pytest.approx(1.0, abs=1e-12)
    assert model.score(a, b) == model.score(b, a)
    x, y = model.embed_file(a), model.embed_file(b)
    assert model.score(a, b) == pytest.approx(float(x @ y / x.norm() / y.norm()), abs=1e-6)


def test_what_cannot_be_embedded(model: rayssl.Model, tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no audio")
    soundfile.write(tmp_path / "short.wav", tone(0, 0, 100), 16000)
    with pytest.raises(AudioError, match=r"text\.wav: unreadable: .*; give an audio file"):
        model.embed_file(str(tmp_path / "text.wav"))
    with pytest.raises(AudioError, match=r"short\.wav: 100 samples at 16000 Hz, .*run needs at least 640; give longer"):
        model.score(str(tmp_path / "short.wav"), str(tmp_path / "short.wav"))
    with pytest.raises(StorageError, match=r"absent\.wav: no such file"):
        model.embed_file(str(tmp_path / "absent.wav"))
    for wave, told in (
        (np.zeros(9000, np.int32), "floats in .* or int16, got int32"),
        (np.zeros((1, 1, 9000), np.float32), r"got shape \[1, 1, 9000\]"),
        (np.zeros(0, np.float32), r"got shape \[0\]"),
        (np.full(9000, np.nan), "NaN"),
        (np.full(9000, 20000.0), r"reaches 20000; give floats in \[-1, 1\]"),
    ):
        with pytest.raises(AudioError, match=told):
            model.embed(wave)


def test_runs_that_cannot_be_loaded(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no: no config\.yaml there"):
        rayssl.load(str(tmp_path / "no"))
    with pytest.raises(CheckpointError, match="no checkpoint 'step-9'"):
        rayssl.load(str(run), checkpoint="step-9")
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        rayssl.laod  # noqa: B018


def test_the_random_state_is_left_alone(run: Path) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    rayssl.load(str(run))
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.long
def test_neither_ray_nor_at_first_torch(run: Path) -> None:
    code = (
        "import sys, rayssl\nassert 'torch' not in sys.modules\n"
        f"print(rayssl.load({str(run)!r}).embed([0.0, 0.1] * 4000).shape[0])\nsys.exit('ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "16\n", "")


def test_kernels_have_the_layout_of_the_training(model: rayssl.Model) -> None:
    """Channels last on any device but a CPU, where the matrix units read them so."""
    config = parse(EncoderConfig, {"backbone": {"name": "fast_resnet34", "embedding_dim": 8}}, "test")
    other = rayssl.Model(build_encoder(config), model.source, 16000, torch.device("cpu"))
    kernel = other.encoder.get_parameter("backbone.blocks.0.conv1.weight")
    assert kernel.is_contiguous()
    kernel = other.to("meta").encoder.get_parameter("backbone.blocks.0.conv1.weight")
    assert kernel.is_contiguous(memory_format=torch.channels_last) and not kernel.is_contiguous()
