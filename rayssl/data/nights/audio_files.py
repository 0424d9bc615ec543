"""The audio of one night from one audio file of any length, read in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
import soundfile

from rayssl import storage
from rayssl.data.decode import Channels, DecodeError
from rayssl.data.nights.timeline import AudioRun, Recording, joined
from rayssl.errors import StorageError

BLOCK_S = 30
_OPEN_SIZES = (0, 0xFFFFFFFF, 0x7FFFFFFF)  # of RIFF, from writers that cannot correct the header later
_BYTES = {"PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8, "ULAW": 1, "ALAW": 1}


def audio_recording(uri: str, file: str, channels: Channels = "reject_above_2") -> Recording:
    """The audio file at ``uri``, in any container that libsndfile reads. It has no clock.

    Args:
        uri: the file.
        file: its name in messages.
        channels: what becomes of several channels, see `rayssl.data.decode.decode`.

    Raises:
        DecodeError: it does not decode, has no samples, or too many channels.
    """
    with _opened(uri, file) as (sound, size, promised):
        frames, rate, count = sound.frames, sound.samplerate, sound.channels
        width = _BYTES.get(sound.subtype, 0) * count
    if frames <= 0:
        raise DecodeError(f"empty: {file} has no samples")
    if count > 2 and channels == "reject_above_2":
        raise DecodeError(f"{count} channels: {file}: set the source's channels to 'mean' or 'first'")

    def blocks(skip: int) -> Iterator[np.ndarray]:
        return _blocks(uri, file, channels, skip)

    run = AudioRun(file, 0.0, frames, float(rate), blocks)
    if promised > size + 1:  # some writers leave out the byte that makes the size even
        lost = -(-(promised - size) // width) if width else (promised / size - 1) * frames
        said = f"{file} holds {size} of {promised} bytes"
        run.faults.append((lost / rate, f"truncated: {said}; what is whole is kept"))
    return Recording(file, None, False, joined([run]))


def _blocks(uri: str, file: str, channels: Channels, skip: int) -> Iterator[np.ndarray]:
    """Mono float32 ``[T]`` from frame ``skip`` on; raises `DecodeError` where the file ends before its length."""
    with _opened(uri, file) as (sound, _, _):
        frames, size, at = sound.frames, BLOCK_S * sound.samplerate, skip
        if skip:
            sound.seek(skip)
        while at < frames:
            block = sound.read(min(size, frames - at), dtype="float32", always_2d=True)
            at += len(block)
            mono = block[:, 0] if channels == "first" else block.mean(axis=1)
            if not np.isfinite(mono).all():
                raise DecodeError(f"not finite: {file} has NaN or infinity before second {at / sound.samplerate:g}")
            if len(block):
                yield mono
            if not len(block):
                raise DecodeError(f"truncated: {file} holds {at} of {frames} samples; what is whole is kept")


class _Guarded:
    """A file for libsndfile, which goes on after an error of the storage: ``error`` keeps the first one."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: StorageError | None = None

    def readinto(self, buffer: memoryview) -> int:
        """Fills the buffer; 0 bytes after an error."""
        if self.error is None:
            try:
                data = self._file.read(len(buffer))
                buffer[: len(data)] = data
                return len(data)
            except StorageError as error:
                self.error = error
        return 0

    def seek(self, offset: int, whence: int = 0) -> int:
        """As of every file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """As of every file."""
        return self._file.tell()


@contextmanager
def _opened(uri: str, file: str) -> Iterator[tuple[soundfile.SoundFile, int, int]]:
    """The open file, its size in bytes, and the size that a RIFF header states (else 0)."""
    guarded: _Guarded | None = None
    try:
        with storage.open_read(uri) as raw:
            size, promised = raw.seek(0, 2), 0
            raw.seek(0)
            head = raw.read(8)
            raw.seek(0)
            if head[:4] == b"RIFF" and int.from_bytes(head[4:], "little") not in _OPEN_SIZES:
                promised = int.from_bytes(head[4:], "little") + 8
            if not size:
                raise DecodeError(f"empty: {file} has no bytes")
            guarded = _Guarded(raw)
            with soundfile.SoundFile(guarded) as sound:
                yield sound, size, promised
    except StorageError as error:
        if error.errno not in storage.ABSENT:
            raise
        raise DecodeError(f"unreadable: {file} is absent") from None
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError) as error:
        if guarded is not None and guarded.error is not None:
            raise guarded.error from None
        text = str(getattr(error, "error_string", type(error).__name__)).removeprefix("Error : ")
        raise DecodeError(f"unreadable: {file}: {text.rstrip('.').lower()}") from None
    finally:
        if guarded is not None and guarded.error is not None:
            raise guarded.error
