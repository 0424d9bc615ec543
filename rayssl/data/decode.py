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

from rayssl.data import containers, flac, media
from rayssl.data.errors import DecodeError as DecodeError  # also for the sources of others
from rayssl.errors import CorpusError

RATE = 16000
RESAMPLER = "soxr HQ"  # what `resample` uses; the manifest of a new corpus names it
Format = Literal["flac", "pcm16", "mel"]
Channels = Literal["reject_above_2", "mean", "first"]

_FULL_SCALE = 32768
_SEEK_COSTS = 8192  # samples that decode as fast as FLAC seeks
_INCOMPLETE = "damaged audio in a shard: not complete mono FLAC at 16 kHz; run rayssl prepare --verify"
# Other formats that libsndfile knows cannot show that they were cut, or any bytes can be taken for them
_FORMATS = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "NIST", "FLAC", "OGG", "MP3")
_RATES = (1000, 768_000)  # Hz, of source audio. 64 kB at 1 Hz would be 18 hours
_CHANNELS = 256
_LEAST_BLOCK, _BLOCK = 1 << 12, 1 << 19  # frames
_MOST = 1 << 29  # samples of a file: 2 GB as float32, 9 h at 16 kHz
LOUDEST = 4.0  # a larger sample is on an integer scale; resampling can lift a full-scale signal a little above 1
_CANCELLED = 1e-4  # the power of the mean of the channels against theirs


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
    found = containers.Opened((data,)) if media.is_media(data) else containers.opened(data)
    try:
        parts = [_read(part, channels) for part in found.parts]
    except DecodeError:
        if found.otherwise is None:
            raise
        parts = [_read(found.otherwise, channels, found.samples)]
    if len({source_rate for _, source_rate in parts}) > 1:
        raise DecodeError(f"unreadable: chained streams of {' and '.join(f'{each} Hz' for _, each in parts)}")
    mono, source_rate = np.concatenate([samples for samples, _ in parts])[: found.keep], parts[0][1]
    if len(mono) == 0:
        raise DecodeError("empty: the file has no samples")
    least = found.samples or found.keep or 0
    if len(mono) < least:
        raise DecodeError(f"unreadable: truncated or damaged after {len(mono)} of {least} samples")
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


class _Bytes(io.BytesIO):
    """Bytes for libsndfile. After a damaged header it seeks before the beginning, and soundfile prints a traceback."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:
            return self.tell()


class _Stream(soundfile.SoundFile):  # type: ignore[misc]
    """A file that is read to its end. soundfile would read as many frames as the header says, or refuse."""

    def seekable(self) -> bool:
        return False


def _read(data: bytes, channels: Channels, most: int | None = None) -> tuple[np.ndarray, int]:
    """The samples as mono float32 ``[T]``, at most ``most``, and their rate. Raises `DecodeError`."""
    try:
        with _opened(data, most) as (rate, count, blocks):
            if not _RATES[0] <= rate <= _RATES[1]:
                raise DecodeError(f"implausible rate: {rate} Hz, expected {_RATES[0]} to {_RATES[1]}")
            if count > 2 and channels == "reject_above_2":
                raise DecodeError(f"{count} channels: set channels to 'mean' or 'first' to accept more than two")
            if count > _CHANNELS:
                raise DecodeError(f"implausible: {count} channels")
            return _mono(blocks, rate, channels), rate
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError) as error:
        # only libsndfile's text: soundfile's message also contains a memory address, which changes every time
        text = str(getattr(error, "error_string", type(error).__name__)).removeprefix("Error : ")
        raise DecodeError(f"unreadable: {text.rstrip('.').lower()}") from None


@contextmanager
def _opened(data: bytes, most: int | None) -> Iterator[tuple[int, int, Iterator[np.ndarray]]]:
    """The rate, the number of channels, and blocks of float32 ``[T, channels]``."""
    if media.is_media(data):
        with media.opened(data) as found:
            yield found
        return
    with _Stream(_Bytes(data)) as file:
        if file.format not in _FORMATS:
            raise DecodeError(f"unreadable: {file.format_info}; convert it to FLAC or WAV")
        yield file.samplerate, file.channels, _blocks(file, most)


def _blocks(file: soundfile.SoundFile, most: int | None) -> Iterator[np.ndarray]:
    """What the file holds, a block at a time, so that what a header claims is never allocated."""
    size, done = max(_LEAST_BLOCK, min(_BLOCK, file.frames + 1)), 0  # one more than promised: the end shows at once
    while most is None or done < most:
        wanted = size if most is None else min(size, most - done)
        block = file.read(wanted, dtype="float32", always_2d=True)
        done += len(block)
        if len(block):
            yield block
        if len(block) < wanted:
            return


def _mono(blocks: Iterator[np.ndarray], rate: int, channels: Channels) -> np.ndarray:
    parts, total, loudness, mixed = list[np.ndarray](), 0, 0.0, 0.0
    for block in blocks:
        if not np.isfinite(block).all():
            raise DecodeError("not finite: the samples contain NaN or infinity")
        if (peak := float(np.abs(block).max(initial=0.0))) > LOUDEST:
            raise DecodeError(f"too loud: a sample is {peak:g}, floats must be in [-1, 1]; scale the file by 1/32768")
        parts.append(block[:, 0].copy() if channels == "first" else block.mean(axis=1))
        total += len(block)
        if total > _MOST:
            raise DecodeError(f"too long: over {_MOST / rate / 3600:.1f} h; split the file")
        if channels != "first" and block.shape[1] > 1:
            loudness += float(np.vdot(block, block)) / block.shape[1]
            mixed += float(np.vdot(parts[-1], parts[-1]))
    if mixed < _CANCELLED * loudness:
        raise DecodeError("cancelled: the channels have opposite phases, their mean is silent; set channels to 'first'")
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)
