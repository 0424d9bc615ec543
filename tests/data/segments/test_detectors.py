"""Detectors of speech: silero without its package's code, and messages where a package is absent."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from silero_vad import load_silero_vad

from rayssl.data.segments import detectors
from rayssl.data.segments.settings import SegmentsConfig
from rayssl.errors import ConfigError
from tests.data.segments.talks import talk


def test_silero_is_what_its_package_computes() -> None:
    samples = talk(0, (3.0, 2.0))
    reference = load_silero_vad(onnx=False)
    found = detectors.detector(SegmentsConfig())
    windows = samples[: len(samples) // 512 * 512].reshape(-1, 512)
    ours = np.concatenate([found(windows[:100]), found(windows[100:]), found(windows[:0])])
    with torch.no_grad():
        theirs = [float(reference(torch.from_numpy(window), 16000)) for window in windows]
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert max(ours) > 0.5 > min(ours)


@pytest.mark.parametrize("name", ["silero", "webrtc"])
def test_a_talk_is_told_from_its_pauses(name: str) -> None:
    samples = talk(1, (4.0,), pause_s=3.0)
    found = detectors.detector(SegmentsConfig.model_validate({"detector": name}))
    size = found.window
    probabilities = found(samples[: len(samples) // size * size].reshape(-1, size))
    seconds = (np.arange(len(probabilities)) + 0.5) * size / 16000
    assert probabilities[(seconds > 3.5) & (seconds < 6.5)].mean() > 0.5
    assert probabilities[seconds < 2.5].mean() < 0.2


def test_without_a_detector_silence_is_none() -> None:
    found = detectors.detector(SegmentsConfig(detector="none"))
    windows = np.stack([np.zeros(512, np.float32), np.full(512, 1e-3, np.float32)])
    assert found(windows).tolist() == [0, 1] and found(windows[:0]).tolist() == []


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(detectors, "find_spec", lambda name: None if name == "onnxruntime" else real(name))
    with pytest.raises(
        ConfigError, match=r"^segments\.detector: silero needs onnxruntime; pip install 'rayssl\[vad\]', or set "
    ):
        detectors.check(SegmentsConfig())
    detectors.check(SegmentsConfig(detector="webrtc"))
    monkeypatch.undo()
    monkeypatch.setattr(detectors, "_network", lambda: "/none.onnx")
    with pytest.raises(ConfigError, match=r"silero needs silero-vad 6\.2 or later; pip install"):
        detectors.check(SegmentsConfig())
