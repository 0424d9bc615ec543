"""The samples of source audio at its own rate: blocks of mono audio, of what a file holds, with checks of each block.

libsndfile decodes, and PyAV what is in containers of video. `rayssl.data.containers` says before what there is.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Literal, NamedTuple, TypeAlias, cast

import numpy as np
import soundfile

from rayssl.data import media
from rayssl.data.errors import DecodeError
from rayssl.data.resampling import RATE
from rayssl.data.splices import Spliced, SplicedFile

Channels = Literal["reject_above_2", "mean", "first"]
#: What becomes of several channels: a rule, or the number of the channel to take.
Channel: TypeAlias = Channels | int

# Other formats that libsndfile knows cannot show that they were cut, or any bytes can be taken for them
_FORMATS = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "NIST", "FLAC", "OGG", "MP3")
# The bytes of a sample where all have as many: one can be found without what is before it
_PLAIN = {
    "PCM_S8": 1, "PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8, "ULAW": 1, "ALAW": 1,
}  # fmt: skip
_RATES = (1000, 768_000)  # Hz. 64 kB at 1 Hz would be 18 hours
_CHANNELS = 256
_LEAST_BLOCK, _BLOCK = 1 << 12, 1 << 19  # frames
_LONG_BLOCK = 1 << 16  # samples of all channels: what a decoder of a long file holds at a time
MOST = 1 << 29  # samples of a file in memory: 2 GB as float32, 9 h at 16 kHz
_WARM_S = 1.0  # a resampler that begins in the middle gives the same after a moment
LOUDEST = 4.0  # a larger sample is on an integer scale; resampling can lift a full-scale signal a little above 1
_CANCELLED = 1e-4  # the power of the mean of the channels against theirs


class Block(NamedTuple):
    """Mono float32 ``samples [T]`` at ``rate`` Hz. ``first``: the number of the first one in the file."""

    rate: int
    first: int
    samples: np.ndarray


class Header(NamedTuple):
    """``frames``: the number of samples, None if only decoding tells it. ``width``: bytes of one; 0 if they differ."""

    rate: int
    channels: int
    frames: int | None
    width: int


def header(part: Spliced) -> Header | None:
    """What the header of a file says, as far as it can be trusted; None if FFmpeg must read it.

    Raises `DecodeError` if the file cannot be opened.
    """
    if media.is_media(part.data):
        return None
    file: io.BytesIO | SplicedFile = _Bytes(part.whole()) if isinstance(part.data, bytes) else part.opened()
    try:
        with _Stream(file) as sound:
            trusted = sound.subtype in _PLAIN and (sound.format != "FLAC" or sound.frames < 1 << 36)
            width = _PLAIN[sound.subtype] * sound.channels if trusted and sound.format != "FLAC" else 0
            known = sound.frames if trusted and sound.frames > 0 else None
            return Header(sound.samplerate, sound.channels, known, width)
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError) as error:
        _check(file)
        raise _unreadable(error) from None


def _unreadable(error: Exception) -> DecodeError:
    # only libsndfile's text: soundfile's message also contains a memory address, which changes every time
    text = str(getattr(error, "error_string", type(error).__name__)).removeprefix("Error : ")
    return DecodeError(f"unreadable: {text.rstrip('.').lower()}")


def blocks(
    part: Spliced, channel: Channel, *, start_s: float = 0.0, limit: int | None = None, most: int | None = None
) -> Iterator[Block]:
    """The samples of a file, a block after the other.

    Args:
        part: the file, in memory or not.
        channel: what becomes of several channels, see `rayssl.data.decode.decode`; or the number of the one to take.
        start_s: what is before this second is not needed: the first block may begin there, or a little earlier. It
            begins at a sample of the file at which one at 16 kHz is, too.
        limit: how many samples to read.
        most: more samples are an error; `MOST` if it is not given.

    Raises:
        DecodeError: at the block in which something is wrong, or behind the last one.
        StorageError: the file could not be read.
    """
    file: io.BytesIO | SplicedFile = _Bytes(part.whole()) if isinstance(part.data, bytes) else part.opened()
    try:
        with _opened(part, file, limit, start_s) as (rate, count, first, found):
            if not _RATES[0] <= rate <= _RATES[1]:
                raise DecodeError(f"implausible rate: {rate} Hz, expected {_RATES[0]} to {_RATES[1]}")
            if count > 2 and channel == "reject_above_2":
                raise DecodeError(f"{count} channels: set channels to 'mean' or 'first' to accept more than two")
            if count > _CHANNELS:
                raise DecodeError(f"implausible: {count} channels")
            if isinstance(channel, int) and channel >= count:
                raise DecodeError(f"no channel {channel}: the file has {count}, the first is 0")
            for samples in _mono(found, rate, channel, MOST if most is None else most):
                yield Block(rate, first, samples)
                first += len(samples)
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError) as error:
        _check(file)
        raise _unreadable(error) from None
    except DecodeError:
        _check(file)
        raise
    _check(file)


def _check(file: io.BytesIO | SplicedFile) -> None:
    """Raises what the storage raised while a decoder read."""
    if isinstance(file, SplicedFile) and file.error is not None:
        raise file.error


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


@contextmanager
def _opened(
    part: Spliced, file: io.BytesIO | SplicedFile, limit: int | None, start_s: float
) -> Iterator[tuple[int, int, int, Iterator[np.ndarray]]]:
    """The rate, the number of channels, the first sample, and blocks of float32 ``[T, channels]``."""
    if media.is_media(part.data):
        with media.opened(part.data, cast(BinaryIO, file)) as (rate, count, found):
            yield rate, count, 0, found
        return
    with _Stream(file) as sound:
        if sound.format not in _FORMATS:
            raise DecodeError(f"unreadable: {sound.format_info}; convert it to FLAC or WAV")
        rate, first = sound.samplerate, 0
        if start_s > _WARM_S and _RATES[0] <= rate <= _RATES[1]:
            first = _sought(sound, start_s)
        block = _BLOCK if isinstance(part.data, bytes) else max(1, _LONG_BLOCK // max(1, sound.channels))
        yield rate, sound.channels, first, _blocks(sound, limit, block)


def _sought(sound: soundfile.SoundFile, start_s: float) -> int:
    """Moves to a little before second ``start_s``, if that costs less than to decode what is before it."""
    counted = sound.format == "FLAC" and 0 < sound.frames < 1 << 36
    if not counted and not (sound.format != "FLAC" and sound.subtype in _PLAIN):
        return 0
    common = math.gcd(sound.samplerate, RATE)
    steps = int((start_s - _WARM_S) * RATE) // (RATE // common)
    first = steps * (sound.samplerate // common)
    if first >= sound.frames:
        return 0
    return int(sound.seek(first))


def _blocks(file: soundfile.SoundFile, limit: int | None, block: int) -> Iterator[np.ndarray]:
    """What the file holds, a block at a time, so that what a header claims is never allocated."""
    size, done = max(_LEAST_BLOCK, min(block, file.frames + 1)), 0  # one more than promised: the end shows at once
    while limit is None or done < limit:
        wanted = size if limit is None else min(size, limit - done)
        read = file.read(wanted, dtype="float32", always_2d=True)
        done += len(read)
        if len(read):
            yield read
        if len(read) < wanted:
            return


def _mono(found: Iterator[np.ndarray], rate: int, channel: Channel, most: int) -> Iterator[np.ndarray]:
    total, loudness, mixed = 0, 0.0, 0.0
    one = 0 if channel == "first" else channel if isinstance(channel, int) else None
    for block in found:
        if not np.isfinite(block).all():
            raise DecodeError("not finite: the samples contain NaN or infinity")
        if (peak := float(np.abs(block).max(initial=0.0))) > LOUDEST:
            raise DecodeError(f"too loud: a sample is {peak:g}, floats must be in [-1, 1]; scale the file by 1/32768")
        total += len(block)
        if total > most:
            raise DecodeError(f"too long: over {most / rate / 3600:.1f} h; split the file")
        samples = block.mean(axis=1) if one is None else block[:, one].copy()
        if one is None and block.shape[1] > 1:
            loudness += float(np.vdot(block, block)) / block.shape[1]
            mixed += float(np.vdot(samples, samples))
        yield samples
    if mixed < _CANCELLED * loudness:
        raise DecodeError("cancelled: the channels have opposite phases, their mean is silent; set channels to 'first'")
