"""The exported file: every encoder there is, any batch, any length, and refused where it is not the run's."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayssl.cli import main
from rayssl.errors import CheckpointError
from rayssl.inference import export as exporting
from rayssl.inference.encoder import load_encoder
from rayssl.models.encoder import EncoderConfig, build_encoder
from rayssl.runs.reading import find
from rayssl.schema import parse
from tests.runs import experiment, write_corpus, write_run

RATE = 16000
ECAPA = {"name": "ecapa", "channels": 16, "embedding_dim": 12, "attention_channels": 8, "se_channels": 8}
RAW = {"frontend": {"name": "raw"}, "backbone": {"name": "resnet1d", "width": 4, "embedding_dim": 12}}
SPECTRUM = {
    "frontend": {"name": "spectrum", "n_fft": 512, "hop_ms": 16, "bins": 24},
    "backbone": {"name": "resnet2d", "width": 4, "embedding_dim": 12},
}
FAST = {"name": "fast_resnet34", "channels": 4, "embedding_dim": 12}
ENCODERS: dict[str, dict[str, Any]] = {
    "logmel-ecapa": {"backbone": ECAPA},
    "logmel-ecapa-variance": {"frontend": {"window": "hann", "normalise": "mean_variance"}, "backbone": ECAPA},
    "speechbrain": {"frontend": {"name": "fbank", "style": "speechbrain"}, "backbone": ECAPA},
    "wespeaker": {"frontend": {"name": "fbank"}, "backbone": {**ECAPA, "variant": "wespeaker"}},
    "logmel-fast_resnet34": {"backbone": FAST},
    "logmel-fast_resnet34-asp": {"backbone": {**FAST, "pooling": "asp", "squeeze_excitation": True}},
    "logmel-resnet2d": {"backbone": {"name": "resnet2d", "width": 4, "embedding_dim": 12}},
    "raw-resnet1d": RAW,
    "spectrum-resnet2d": SPECTRUM,
    "joined": {**RAW, "beside": SPECTRUM},
}


@pytest.mark.long
@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_with_any_batch_and_length(name: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(parse(EncoderConfig, ENCODERS[name], "test"), RATE).eval().requires_grad_(False)
    traced = exporting.trace(encoder, RATE)
    module, least = exporting.unpacked(exporting.packed(traced, {})), encoder.minimum_samples
    # odd and even numbers of samples, of frames, and of what strides of 2 and 4 leave of them
    for batch, samples in ((1, least), (2, least + 1), (1, 4001), (5, 8003), (3, 12345), (1, 16000), (40, 3999)):
        wave = torch.randn(batch, samples) * 0.1
        own, other = encoder(wave), module(wave)
        assert other.shape == (batch, encoder.embedding_dim) and other.dtype == torch.float32
        scale = own.square().mean().sqrt()
        torch.testing.assert_close(other / scale, own / scale, rtol=0, atol=1e-5)
    with pytest.raises(RuntimeError):
        module(torch.zeros(1, least - 1))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    write_corpus(folder / "corpus")
    return write_run(experiment(folder / "run", folder / "corpus"))


@pytest.mark.long
def test_the_verb_and_a_process_that_has_only_torch(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run)]) == 0
    out = run / "exported/step-0000000004.pt2"
    told = capsys.readouterr().out
    assert told.startswith(f"{out}: samples [B, T] at 16000 Hz to embeddings [B, 16]")
    assert f"over 19 clips of {run.parent / 'corpus'}" in told
    code = (
        "import sys, torch, json; about = {'rayssl.json': ''}\n"
        f"module = torch.export.load({str(out)!r}, extra_files=about).module()\n"
        "print(about['rayssl.json']); print(tuple(module(torch.zeros(2, 5000)).shape), file=sys.stderr)\n"
        "sys.exit(any(name.split('.')[0] in ('rayssl', 'ray', 'torchaudio', 'pydantic') for name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=run, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "(2, 16)\n")
    about = json.loads(done.stdout)
    assert (about["rate"], about["dim"], about["checkpoint"], about["normalised"]) == (16000, 16, out.stem, False)
    assert about["minimum_samples"] == 640


def test_noise_where_the_corpus_is_gone(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    run = write_run(experiment(tmp_path / "run", tmp_path / "corpus"))
    (tmp_path / "corpus/manifest.json").unlink()
    source = find(str(run))
    clips, origin = exporting._audio(source, load_encoder(source.experiment, source.uri, RATE))
    assert origin == f"noise, as {tmp_path}/corpus cannot be read"
    assert {len(clip) for clip in clips} == {32000, 24640, 16000, 640}


@pytest.mark.long
def test_no_file_where_it_differs_from_the_run(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(data: bytes) -> Any:
        module = torch.export.load(io.BytesIO(data)).module()
        return lambda wave: module(wave) + 3e-4

    monkeypatch.setattr(exporting, "unpacked", other)
    with pytest.raises(CheckpointError, match=r"step-0000000004: the exported encoder differs .* nothing was written"):
        exporting.export(str(run), str(tmp_path / "x.pt2"))
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_finite_differs() -> None:
    encoder = build_encoder(parse(EncoderConfig, RAW, "test"), RATE)
    clips = [np.full(4000, 0.1, np.float32), np.full(3000, 0.1, np.float32)]
    assert exporting.largest_difference(encoder, encoder.eval(), clips) == 0
    broken = exporting.largest_difference(encoder, lambda wave: encoder(wave) * torch.nan, clips)
    assert not broken <= exporting.TOLERANCE


def test_mistakes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, told in (
        ([str(tmp_path / "no")], f"{tmp_path}/no: no config.yaml there; give the folder of a run"),
        ([str(run), "--checkpoint", "epoch-7"], f"{run}: no checkpoint 'epoch-7'; there are step-4"),
        ([str(run), "--out", f"{tmp_path}/x.onnx"], f"--out {tmp_path}/x.onnx: name a file that ends in .pt2"),
    ):
        assert main(["export", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"rayssl export: {told}") and error.count("\n") == 1, error
