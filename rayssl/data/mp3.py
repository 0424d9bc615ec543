"""The frames of an MP3 file, counted. Without a header that counts them, a decoder guesses the length from the first.

libsndfile ends where that guess says, in the middle of the audio. So `counted` puts the true number of frames into the
header, if the file has one. Else it adds silent frames, until the guess is long enough, and says where the audio ends.
To add a header would not do: the decoder would take 529 samples away, as if an encoder had said so.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from rayssl.data.errors import DecodeError
from rayssl.data.splices import Data, Spliced, whole

_KBITS = {  # by version 1 or 2, for layer III
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {0: (11025, 12000, 8000), 2: (22050, 24000, 16000), 3: (44100, 48000, 32000)}  # by the bits of the version

_SEARCHED = 1 << 16  # bytes in which the first frame must begin
_HEAD = 256  # bytes of the first frame in which a header counts the frames


class _Frame(NamedTuple):
    size: int  # bytes
    side: int  # where a Xing header stands in it
    kind: tuple[int, int]  # the version and the rate, which do not change inside a file


def after_tag(data: Data) -> int:
    """Where the file begins behind an ID3v2 tag; 0 without one."""
    if data[:3] != b"ID3" or len(data) < 10:
        return 0
    size = 0
    for byte in data[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size + (10 if data[5] & 0x10 else 0)


def counted(data: Data) -> tuple[Spliced, int | None]:
    """``data``, of which a decoder finds all frames, and the number of samples to keep; None for all.

    What is not MPEG audio of layer III stays as it is. Raises `DecodeError` if there are fewer frames than the header
    counts: the file is cut.
    """
    begin = after_tag(data)
    at = _next(data, begin, begin + _SEARCHED)
    first = _frame(data, at)
    # two frames in a row: two bytes that look like the head of a frame are in many files
    if first is None or _frame(data, at + first.size) is None:
        return whole(data), None
    runs, frames, partial = _frames(data, at, first.kind)
    place = _place(data[at : min(runs[0][1], at + _HEAD)], first)
    if place is None:
        held = sum(stop - start for start, stop in runs)
        more = 2 + max(0, frames * first.size - held) // first.size
        silent = data[at : at + 4] + bytes(first.size - 4)
        return Spliced(data, (*runs, more * silent)), frames * (1152 if first.kind[0] == 3 else 576)
    place += at
    promised = int.from_bytes(data[place : place + 4], "big")
    frames -= 1  # that of the header
    if promised > frames + (not partial):  # some count the frame of the header, too
        raise DecodeError(f"unreadable: truncated after {frames} of {promised} MP3 frames")
    if promised >= frames:
        return Spliced(data, runs), None
    (start, stop), *others = runs
    return Spliced(data, ((start, place), struct.pack(">I", frames), (place + 4, stop), *others)), None


def _frame(data: Data, at: int) -> _Frame | None:
    """The frame whose head is at ``at``; None if there is none of layer III."""
    head = data[at : at + 4] if at >= 0 else b""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return None
    version, rate, bits = head[1] >> 3 & 3, head[2] >> 2 & 3, head[2] >> 4
    if version == 1 or rate == 3 or bits in (0, 15):
        return None
    first = version == 3
    hertz = _RATES[version][rate]
    size = (144 if first else 72) * 1000 * _KBITS[1 if first else 2][bits] // hertz + (head[2] >> 1 & 1)
    mono = head[3] >> 6 == 3
    side = 4 + ((17 if mono else 32) if first else (9 if mono else 17))
    return _Frame(size, side, (version, rate))


def _next(data: Data, at: int, stop: int | None = None) -> int:
    """Where the next frame begins in ``at`` to ``stop``, whose successor is one, too, or the end; -1 if none does."""
    while (at := data.find(b"\xff", at, stop)) >= 0:
        frame = _frame(data, at)
        if frame is not None:
            after = at + frame.size
            follows = _frame(data, after)
            if after == len(data) or (follows is not None and follows.kind == frame.kind):
                return at
        at += 1
    return -1


def _frames(data: Data, at: int, kind: tuple[int, int]) -> tuple[tuple[tuple[int, int], ...], int, bool]:
    """Where whole frames are from ``at`` on, their number, and whether a part of another one follows.

    Tags and damage between them are left out: the decoder would write about them to the terminal.
    """
    runs, begin, number, partial = list[tuple[int, int]](), at, 0, False
    while at >= 0:
        frame = _frame(data, at)
        if frame is not None and frame.kind == kind and at + frame.size <= len(data):
            at, number = at + frame.size, number + 1
            continue
        runs.append((begin, at))
        partial = frame is not None and frame.kind == kind
        begin = at = -1 if partial else _next(data, at + 1)
    return tuple(runs), number, partial


def _place(audio: bytes, first: _Frame) -> int | None:
    """Where the first frame counts the frames; None if it does not. ``audio`` begins with it."""
    xing = first.side
    if audio[xing : xing + 4] in (b"Xing", b"Info"):
        return xing + 8 if len(audio) >= xing + 12 and audio[xing + 7] & 1 else None
    return 50 if audio[36:40] == b"VBRI" and len(audio) >= 54 else None
