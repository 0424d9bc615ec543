"""The audio of one night from one audio file of any length, read in blocks: all that the file holds.

Of a file that was cut, what is whole is kept: half a night is worth having, where half an utterance is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from rayssl import storage
from rayssl.data import containers, media, samples
from rayssl.data.containers import Opened
from rayssl.data.errors import CutError, DecodeError
from rayssl.data.nights.timeline import AudioRun, Recording, joined
from rayssl.data.samples import Channels
from rayssl.data.splices import Spliced, Window, whole
from rayssl.errors import StorageError

_MOST = 1 << 34  # samples: 100 h at 48 kHz


class _File(NamedTuple):
    """``part``: what is to be decoded. ``keep``: how many samples of it, if others follow. ``cut``: its file was."""

    part: Spliced
    keep: int | None
    cut: CutError | None


def audio_recording(uri: str, file: str, channels: Channels = "reject_above_2") -> Recording:
    """The audio file at ``uri``, in any container that `rayssl.data.decode.decode` reads. It has no clock.

    Args:
        uri: the file.
        file: its name in messages.
        channels: what becomes of several channels, see `rayssl.data.decode.decode`.

    Raises:
        DecodeError: it does not decode, has no samples, or too many channels.
    """
    fault = None
    with _opened(uri, file) as found:
        rate, count, frames, width = _measured(found, file, channels)
        cut = found.cut
    if count > 2 and channels == "reject_above_2":
        raise DecodeError(f"{count} channels: {file}: set the source's channels to 'mean' or 'first'")
    if frames <= 0:
        raise DecodeError(f"empty: {file} has no samples")

    def blocks(skip: int) -> Iterator[np.ndarray]:
        return _blocks(uri, file, channels, skip, frames)

    run = AudioRun(file, 0.0, frames, float(rate), blocks)
    if cut is not None:
        missing = cut.size - cut.have
        lost = -(-missing // width) if width else missing / max(1, cut.have) * frames
        fault = (lost / rate, f"truncated: {file} holds {cut.have} of {cut.size} bytes; what is whole is kept")
        run.faults.append(fault)
    return Recording(file, None, False, joined([run]))


def _measured(found: _File, file: str, channels: Channels) -> tuple[int, int, int, int]:
    """Rate, channels, samples and bytes of a sample; the header says them, or all of the file is decoded."""
    header = samples.header(found.part)
    if header is not None and header.channels > 2 and channels == "reject_above_2":
        return header.rate, header.channels, 0, 0
    if header is not None and header.frames is not None:
        return header.rate, header.channels, header.frames, header.width
    rate, end = 0, 0
    try:
        for block in samples.blocks(found.part, channels, most=_MOST):
            rate, end = block.rate, block.first + len(block.samples)
    except DecodeError:
        if not end:
            raise
    return rate, 1, end if found.keep is None else min(end, found.keep), 0


def _blocks(uri: str, file: str, channels: Channels, skip: int, frames: int) -> Iterator[np.ndarray]:
    """Mono float32 ``[T]`` from frame ``skip`` on; raises `DecodeError` where the file ends before its length."""
    at, rate = skip, 0
    with _opened(uri, file) as found:
        header = samples.header(found.part)
        start_s = skip / header.rate if header is not None and skip else 0.0
        for block in samples.blocks(found.part, channels, start_s=start_s, most=_MOST):
            rate = block.rate
            part = block.samples[max(0, skip - block.first) : max(0, frames - block.first)]
            if len(part):
                at = max(skip, block.first) + len(part)
                yield part
            if block.first + len(block.samples) >= frames:
                return
    if at < frames:
        raise DecodeError(f"truncated: {file} holds {at} of {frames} samples at {rate} Hz; what is whole is kept")


@contextmanager
def _opened(uri: str, file: str) -> Iterator[_File]:
    """The open file. Errors inside name ``file``."""
    try:
        with storage.open_read(uri) as raw:
            window = Window(raw)
            if not len(window):
                raise DecodeError("empty: the file has no bytes")
            yield _found(window)
    except StorageError as error:
        if error.errno not in storage.ABSENT:
            raise
        raise DecodeError(f"unreadable: {file} is absent") from None
    except DecodeError as error:
        kind, colon, rest = str(error).partition(": ")
        raise DecodeError(str(error) if file in rest else f"{kind}{colon}{file}: {rest}") from None


def _found(window: Window) -> _File:
    try:
        found = Opened((whole(window),)) if media.is_media(window) else containers.opened(window)
    except CutError as error:
        return _File(whole(window), None, error)
    except DecodeError:  # Ogg without its last page
        return _File(whole(window), None, None)
    if found.otherwise is not None:  # FLAC says how long it is
        return _File(found.otherwise, None, None)
    if len(found.parts) > 1:
        raise DecodeError(f"unreadable: {len(found.parts)} chained streams; convert the file to FLAC")
    return _File(found.parts[0], found.keep, None)
