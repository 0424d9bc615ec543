"""Where speech is: the probability of speech in each window of a recording, by a kept library.

silero-vad is used by its ONNX file, without the package's own code, which needs torch: a task starts faster, and needs
less memory. tests/data/segments compares both.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Protocol

import numpy as np

from rayssl.data.resampling import RATE
from rayssl.data.segments.settings import SegmentsConfig
from rayssl.errors import ConfigError

_SILERO, _CONTEXT = 512, 64  # samples of a window, and of what the network sees before it
_AT_ONCE = 256  # windows
_WEBRTC = 480
_SILENT = 0.5 / 32768  # below this a sample is zero in a corpus
_PACKAGES = {"silero": ("silero_vad", "onnxruntime"), "webrtc": ("webrtcvad",), "none": ()}


class Detector(Protocol):
    """Gives the probability of speech for windows of ``window`` samples. It keeps what came before."""

    window: int

    def __call__(self, windows: np.ndarray) -> np.ndarray:
        """The probability of speech ``[N]`` in float32 ``windows [N, window]``, which follow each other."""


def check(config: SegmentsConfig) -> None:
    """Raises `ConfigError` if a package of the detector is not installed."""
    missing = [name for name in _PACKAGES[config.detector] if find_spec(name) is None]
    if not missing and config.detector == "silero" and not os.path.exists(_network()):
        missing = ["silero-vad 6.2 or later"]
    if missing:
        how = "pip install 'rayssl[vad]', or set detector to none"
        raise ConfigError(f"segments.detector: {config.detector} needs {' and '.join(missing)}; {how}")


def detector(config: SegmentsConfig) -> Detector:
    """The detector of ``config``, for one recording from its start. Raises `ConfigError` as `check` does."""
    check(config)
    if config.detector == "silero":
        return _Silero()
    return _Webrtc(config.mode) if config.detector == "webrtc" else _All()


class _All:
    window = _SILERO

    def __call__(self, windows: np.ndarray) -> np.ndarray:
        return np.asarray(np.abs(windows).max(axis=1, initial=0.0) >= _SILENT, np.float32)


class _Silero:
    window = _SILERO

    def __init__(self) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.inter_op_num_threads = options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(_network(), options, providers=["CPUExecutionProvider"])
        self._state = {name: np.zeros((1, 1, 128), np.float32) for name in ("h", "c")}
        self._before = np.zeros(_CONTEXT, np.float32)

    def __call__(self, windows: np.ndarray) -> np.ndarray:
        made = [self._some(windows[at : at + _AT_ONCE]) for at in range(0, len(windows), _AT_ONCE)]
        return np.concatenate(made) if made else np.zeros(0, np.float32)

    def _some(self, windows: np.ndarray) -> np.ndarray:
        ends = np.concatenate([self._before[None], windows[:, -_CONTEXT:]])
        self._before = ends[-1]
        given = {"input": np.concatenate([ends[:-1], windows], axis=1), **self._state}
        found, self._state["h"], self._state["c"] = self._session.run(None, given)
        return np.asarray(found)


def _network() -> str:
    """The file of silero's network that takes many windows at a time: a third of the time of one after the other."""
    spec = find_spec("silero_vad")
    assert spec is not None
    assert spec.origin is not None
    return os.path.join(os.path.dirname(spec.origin), "data", "silero_vad_16k_sequence.onnx")


class _Webrtc:
    window = _WEBRTC

    def __init__(self, mode: int) -> None:
        import webrtcvad

        self._vad = webrtcvad.Vad(mode)

    def __call__(self, windows: np.ndarray) -> np.ndarray:
        pcm = np.clip(np.rint(windows * 32768), -32768, 32767).astype("<i2")
        return np.array([self._vad.is_speech(window.tobytes(), RATE) for window in pcm], np.float32)
