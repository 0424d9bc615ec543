"""Encoded audio to mono samples at one rate, and back; what cannot be used is refused with a reason.

Two kinds of bytes come here. Source audio is whatever people have: any container that libsndfile reads (WAV, FLAC,
Ogg, MP3), any rate, any channels, possibly broken: `decode`. A corpus's own audio is mono 16 kHz and known to be
sound: `encode`, `pcm`.
"""

from __future__ import annotations

import io
import math
from typing import Literal

import numpy as np
import soundfile

from rayssl.errors import CorpusError

RATE = 16000
Format = Literal["flac", "pcm16"]
Channels = Literal["reject_above_2", "mean", "first"]

_FULL_SCALE = 32768
_RIFF_OPEN_SIZES = (0, 0xFFFFFFFF, 0x7FFFFFFF)  # what streaming writers leave in a header they cannot go back to


class DecodeError(Exception):
    """Audio that does not go into a corpus; ``str(error)`` is the reason recorded with the reject."""


def decode(data: bytes, channels: Channels = "reject_above_2", rate: int = RATE) -> np.ndarray:
    """Source audio as mono float32 ``[T]`` at ``rate`` Hz, clipped to [-1, 1].

    ``channels``: one or two channels are averaged; more are refused, averaged (``mean``) or cut to the first.
    Raises `DecodeError` for bytes that do not decode or decode only in part, no samples, NaN or infinity, and channels.
    """
    if not data:
        raise DecodeError("empty: the file has no bytes")
    samples, source_rate = _read(data)
    count = samples.shape[1]
    if samples.shape[0] == 0:
        raise DecodeError("empty: the file has no samples")
    if not np.isfinite(samples).all():
        raise DecodeError("not finite: the samples contain NaN or infinity")
    if count > 2 and channels == "reject_above_2":
        raise DecodeError(f"{count} channels: set channels to 'mean' or 'first' to accept more than two")
    mono = samples[:, 0] if channels == "first" else samples.mean(axis=1)
    return np.asarray(np.clip(resample(mono, source_rate, rate), -1.0, 1.0), dtype=np.float32)


def resample(samples: np.ndarray, source_rate: int, rate: int = RATE) -> np.ndarray:
    """Samples ``[..., T]`` at ``source_rate`` Hz as samples at ``rate`` Hz, in the same dtype; none are clipped."""
    if source_rate == rate:
        return samples
    from scipy.signal import resample_poly  # a second to import, which tasks that read shards need not wait for

    divisor = math.gcd(source_rate, rate)
    return np.asarray(resample_poly(samples, rate // divisor, source_rate // divisor, axis=-1))


def quantise(samples: np.ndarray) -> np.ndarray:
    """Float samples in [-1, 1] as int16 of the same shape, rounded; values beyond are clipped."""
    return np.clip(np.rint(samples * float(_FULL_SCALE)), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


def encode(samples: np.ndarray, format: Format) -> bytes:
    """int16 ``[T]`` mono at the corpus rate as bytes for a shard: lossless in both formats."""
    if format == "pcm16":
        return samples.astype("<i2").tobytes()
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def pcm(audio: bytes, format: Format) -> np.ndarray:
    """A shard's audio as int16 ``[T]``, mono at the corpus rate; `CorpusError` when it is damaged."""
    if format == "pcm16":
        if len(audio) % 2:
            raise CorpusError("damaged audio in a shard: an odd number of bytes; run rayssl prepare --verify")
        return np.frombuffer(audio, dtype="<i2").astype(np.int16, copy=False)
    try:
        with soundfile.SoundFile(io.BytesIO(audio)) as file:
            samples, frames, rate, channels = file.read(dtype="int16"), file.frames, file.samplerate, file.channels
    except (soundfile.SoundFileError, RuntimeError, ValueError):
        raise CorpusError("damaged audio in a shard: not FLAC; run rayssl prepare --verify") from None
    if rate != RATE or channels != 1 or len(samples) != frames:
        raise CorpusError("damaged audio in a shard: not whole mono FLAC at 16 kHz; run rayssl prepare --verify")
    return np.asarray(samples)


def _read(data: bytes) -> tuple[np.ndarray, int]:
    """float32 ``[T, channels]`` and the rate of whole, undamaged audio."""
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            samples, frames, rate = file.read(dtype="float32", always_2d=True), file.frames, file.samplerate
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError) as error:
        # libsndfile's own sentence: soundfile's message also holds an address in memory, which changes every time
        text = str(getattr(error, "error_string", type(error).__name__)).removeprefix("Error : ")
        raise DecodeError(f"unreadable: {text.rstrip('.').lower()}") from None
    if len(samples) < frames:
        raise DecodeError(f"unreadable: truncated after {len(samples)} of {frames} samples")
    # libsndfile shortens a truncated WAV without a word; the RIFF header still knows its length
    if data[:4] == b"RIFF" and len(data) >= 8:
        promised = int.from_bytes(data[4:8], "little")
        if promised not in _RIFF_OPEN_SIZES and len(data) + 1 < promised + 8:
            raise DecodeError(f"unreadable: truncated after {len(data)} of {promised + 8} bytes")
    return samples, rate
