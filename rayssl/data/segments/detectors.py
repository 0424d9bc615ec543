"""Where speech is: the probability of speech in each window of a recording, by a kept library.

silero-vad is used by its ONNX file, without the package's own code, which needs torch: a task starts faster, and needs
less memory. tests/data/segments compares both.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np

from rayssl.data.resampling import RATE
from rayssl.data.segments.settings import SegmentsConfig
from rayssl.errors import ConfigError

_SILERO, _CONTEXT = 512, 64  # samples of a window, and of what the network sees before it
_WEBRTC = 480
_SILENT = 0.5 / 32768  # below this a sample is zero in a corpus
_PACKAGES = {"silero": ("silero_vad", "onnxruntime"), "webrtc": ("webrtcvad",), "none": ()}


class Detector(Protocol):
    """Gives the probability of speech for each window of ``window`` samples. It keeps what came before."""

    window: int

    def __call__(self, samples: np.ndarray) -> float:
        """The probability of speech in float32 ``samples [window]``."""


def check(config: SegmentsConfig) -> None:
    """Raises `ConfigError` if a package of the detector is not installed."""
    missing = [name for name in _PACKAGES[config.detector] if find_spec(name) is None]
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

    def __call__(self, samples: np.ndarray) -> float:
        return float(np.abs(samples).max() >= _SILENT)


class _Silero:
    window = _SILERO

    def __init__(self) -> None:
        self._session = _session()
        self._state = np.zeros((2, 1, 128), np.float32)
        self._input = np.zeros((1, _CONTEXT + _SILERO), np.float32)
        self._rate = np.array(RATE, np.int64)

    def __call__(self, samples: np.ndarray) -> float:
        self._input[0, :_CONTEXT] = self._input[0, -_CONTEXT:]
        self._input[0, _CONTEXT:] = samples
        given = {"input": self._input, "state": self._state, "sr": self._rate}
        probability, self._state = self._session.run(None, given)
        return float(probability[0, 0])


def _session() -> Any:
    import onnxruntime

    spec = find_spec("silero_vad")
    assert spec is not None
    assert spec.origin is not None
    options = onnxruntime.SessionOptions()
    options.inter_op_num_threads = options.intra_op_num_threads = 1
    options.log_severity_level = 3
    path = os.path.join(os.path.dirname(spec.origin), "data", "silero_vad.onnx")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class _Webrtc:
    window = _WEBRTC

    def __init__(self, mode: int) -> None:
        import webrtcvad

        self._vad = webrtcvad.Vad(mode)

    def __call__(self, samples: np.ndarray) -> float:
        pcm = np.clip(np.rint(samples * 32768), -32768, 32767).astype("<i2").tobytes()
        return float(self._vad.is_speech(pcm, RATE))
