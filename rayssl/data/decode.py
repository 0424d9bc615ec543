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

from rayssl.data import containers, flac, media, samples
from rayssl.data.errors import DecodeError as DecodeError  # also for the sources of others
from rayssl.data.resampling import RATE as RATE
from rayssl.data.resampling import RESAMPLER as RESAMPLER
from rayssl.data.resampling import resample as resample
from rayssl.data.samples import LOUDEST as LOUDEST
from rayssl.data.samples import Channels as Channels
from rayssl.data.splices import whole
from rayssl.errors import CorpusError

Format = Literal["flac", "pcm16", "mel"]

_FULL_SCALE = 32768
_SEEK_COSTS = 8192  # samples that decode as fast as FLAC seeks
_INCOMPLETE = "damaged audio in a shard: not complete mono FLAC at 16 kHz; run rayssl prepare --verify"


def decode(data: bytes, channels: Channels = "reject_above_2", rate: int = RATE) -> np.ndarray:
    """Decodes source audio: all that the file holds, whatever its header says (`rayssl.data.containers`).

    Args:
        data: the whole file.
        channels: ``reject_above_2`` averages one or two channels and refuses more; ``mean`` averages all channels;
            ``first`` takes the first one.
        rate: the rate of the result in Hz. Audio at another rate is resampled.

    Returns:
        Mono float32 ``[T]``, clipped to [-1, 1].

    Raises:
        DecodeError: the bytes do not decode, or only in part; there are no samples, or more than 2^29; the rate is
            not between 1 kHz and 768 kHz; a sample is NaN, infinite or above 4; there are too many channels; or they
            cancel each other.
    """
    if not data:
        raise DecodeError("empty: the file has no bytes")
    found = containers.Opened((whole(data),)) if media.is_media(data) else containers.opened(data)
    try:
        blocks = [block for part in found.parts for block in samples.blocks(part, channels)]
    except DecodeError:
        if found.otherwise is None:
            raise
        blocks = list(samples.blocks(found.otherwise, channels, limit=found.samples))
    if not blocks:
        raise DecodeError("empty: the file has no samples")
    rates = dict.fromkeys(block.rate for block in blocks)
    if len(rates) > 1:
        raise DecodeError(f"unreadable: chained streams of {' and '.join(f'{each} Hz' for each in rates)}")
    mono, source_rate = np.concatenate([block.samples for block in blocks])[: found.keep], blocks[0].rate
    least = found.samples or found.keep or 0
    if len(mono) < least:
        raise DecodeError(f"unreadable: truncated or damaged after {len(mono)} of {least} samples")
    return np.asarray(np.clip(resample(mono, source_rate, rate), -1.0, 1.0), dtype=np.float32)


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
