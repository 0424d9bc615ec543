"""Encoded audio to mono samples at one rate, and back. Audio that cannot be used is refused with a reason.

There are two kinds of encoded audio. Source audio may be in any container that libsndfile reads (WAV, FLAC, Ogg, MP3),
at any rate, with any number of channels, and may be damaged: `decode` reads it. The audio of a prepared corpus is mono
at 16 kHz and has been checked: `encode` writes it, `pcm` reads it. For example::

    samples = decode(open("talk.flac", "rb").read())       # float32 [T] in [-1, 1] at 16 kHz
    stored = encode(quantise(samples), "flac")             # bytes for a shard
    assert np.array_equal(pcm(stored, "flac"), quantise(samples))
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import soundfile

from rayssl.data import flac
from rayssl.errors import CorpusError

RATE = 16000
RESAMPLER = "soxr HQ"  # what `resample` uses; the manifest of a new corpus names it
Format = Literal["flac", "pcm16", "mel"]
Channels = Literal["reject_above_2", "mean", "first"]

_FULL_SCALE = 32768
_SEEK_COSTS = 8192  # samples that decode as fast as FLAC seeks
_INCOMPLETE = "damaged audio in a shard: not complete mono FLAC at 16 kHz; run rayssl prepare --verify"
_RIFF_OPEN_SIZES = (0, 0xFFFFFFFF, 0x7FFFFFFF)  # written by streaming writers, which cannot correct the header later


class DecodeError(Exception):
    """Audio that cannot be part of a corpus. ``str(error)`` is the reason that the list of rejects records."""


def decode(data: bytes, channels: Channels = "reject_above_2", rate: int = RATE) -> np.ndarray:
    """Decodes source audio.

    Args:
        data: the whole file.
        channels: ``reject_above_2`` averages one or two channels and refuses more; ``mean`` averages all channels;
            ``first`` takes the first one.
        rate: the rate of the result in Hz. Audio at another rate is resampled.

    Returns:
        Mono float32 ``[T]``, clipped to [-1, 1].

    Raises:
        DecodeError: the bytes do not decode, or only in part; there are no samples; a sample is NaN or infinite; or
            there are too many channels.
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
    """Samples ``[..., T]`` at ``source_rate`` Hz, resampled to ``rate`` Hz, without clipping; `RESAMPLER` says by what.

    The result is float32 ``[..., ceil(T * rate / source_rate)]``. Sample k of it lies k / ``rate`` seconds after the
    first one. A row does not depend on the other rows.
    """
    given = np.asarray(samples, dtype=np.float32)
    if source_rate == rate:
        return given
    import soxr  # tasks that only read shards do not need it

    # soxr rounds the length. A little silence behind the last sample changes no bit before it.
    count, silence = given.shape[-1], -(-source_rate // rate) + 1
    rows = np.zeros((given.size // max(count, 1), count + silence), dtype=np.float32)
    rows[:, :count] = given.reshape(len(rows), count)
    length = -(-count * rate // source_rate)
    made = np.empty((len(rows), length), dtype=np.float32)
    for row, result in zip(rows, made, strict=True):
        result[:] = soxr.resample(row, source_rate, rate, "HQ")[:length]
    return made.reshape(*given.shape[:-1], length)


def quantise(samples: np.ndarray) -> np.ndarray:
    """Float samples in [-1, 1] as int16 of the same shape, rounded. Values outside [-1, 1] are clipped."""
    return np.clip(np.rint(samples * float(_FULL_SCALE)), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


def encode(samples: np.ndarray, format: Format) -> bytes:
    """Mono int16 samples ``[T]`` at `RATE` as bytes for a shard, ``flac`` or ``pcm16``. Both are lossless."""
    if format == "pcm16":
        return samples.astype("<i2").tobytes()
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def pcm(audio: bytes | memoryview, format: Format) -> np.ndarray:
    """The audio of a shard as mono int16 ``[T]`` at `RATE`; raises `CorpusError` if it is damaged.

    With the format ``mel`` these are the bytes of float16 values, see `rayssl.data.mel.picture`.
    """
    if format != "flac":
        if len(audio) % 2:
            raise CorpusError("damaged audio in a shard: an odd number of bytes; run rayssl prepare --verify")
        return np.frombuffer(audio, dtype="<i2").astype(np.int16, copy=False)
    with _flac(audio) as file:
        samples = file.read(dtype="int16")
        if len(samples) != file.frames:
            raise CorpusError(_INCOMPLETE)
    return np.asarray(samples)


def pcm_parts(
    audio: bytes | memoryview,
    format: Format,
    samples: int,
    parts: Sequence[tuple[int, int]],
    out: np.ndarray,
    *,
    verified: bool = False,
) -> None:
    """Parts of the audio of a shard, one after the other: the same samples as those of `pcm`.

    FLAC is decoded from the frame in which a part begins: what comes before it costs nothing, and is not checked.

    Args:
        audio: the encoded audio.
        format: its format.
        samples: its length, as the shard says.
        parts: start and stop of each part, in samples; ascending and apart.
        out: int16, as long as all parts together; it is filled.
        verified: whether the bytes are those that were written (`rayssl.data.row_groups.ShardRows.verified`). Then a
            faster decoder may be used, which does not see damage.

    Raises:
        CorpusError: the audio is damaged or has another length.
    """
    if format != "flac":
        if len(audio) != 2 * samples:
            raise CorpusError("damaged audio in a shard: not as long as its row says; run rayssl prepare --verify")
        whole = np.frombuffer(audio, dtype="<i2")
        at = 0
        for start, stop in parts:
            out[at : at + stop - start] = whole[start:stop]
            at += stop - start
        return
    if verified and flac.decoder is not None and flac.read_parts(audio, RATE, samples, parts, out):
        return  # else libsndfile says what is wrong
    with _flac(audio) as file:
        if file.frames != samples:
            raise CorpusError(_INCOMPLETE)
        at = place = 0
        for start, stop in parts:
            if 0 < start - place <= _SEEK_COSTS:
                file.read(start - place, dtype="int16")
            elif start != place:
                file.seek(start)
            if len(file.read(dtype="int16", out=out[at : at + stop - start])) != stop - start:
                raise CorpusError(_INCOMPLETE)
            at, place = at + stop - start, stop


@contextmanager
def _flac(audio: bytes | memoryview) -> Iterator[soundfile.SoundFile]:
    """The open FLAC of a shard. If it is damaged, this or a read inside raises `CorpusError`."""
    try:
        with soundfile.SoundFile(io.BytesIO(audio)) as file:
            if file.samplerate != RATE or file.channels != 1:
                raise CorpusError(_INCOMPLETE)
            yield file
    except CorpusError:
        raise
    except (soundfile.SoundFileError, RuntimeError, ValueError):
        raise CorpusError("damaged audio in a shard: not FLAC; run rayssl prepare --verify") from None


def _read(data: bytes) -> tuple[np.ndarray, int]:
    """The samples, float32 ``[T, channels]``, and their rate; raises `DecodeError` for damaged or truncated audio."""
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            samples, frames, rate = file.read(dtype="float32", always_2d=True), file.frames, file.samplerate
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError) as error:
        # only libsndfile's text: soundfile's message also contains a memory address, which changes every time
        text = str(getattr(error, "error_string", type(error).__name__)).removeprefix("Error : ")
        raise DecodeError(f"unreadable: {text.rstrip('.').lower()}") from None
    if len(samples) < frames:
        raise DecodeError(f"unreadable: truncated after {len(samples)} of {frames} samples")
    # libsndfile reads a truncated WAV without an error, but the RIFF header still has the full length
    if data[:4] == b"RIFF" and len(data) >= 8:
        promised = int.from_bytes(data[4:8], "little")
        if promised not in _RIFF_OPEN_SIZES and len(data) + 1 < promised + 8:
            raise DecodeError(f"unreadable: truncated after {len(data)} of {promised + 8} bytes")
    return samples, rate
