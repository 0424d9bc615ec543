"""What the header of an audio file promises, against what the file holds. In pure Python, before anything is decoded.

libsndfile believes headers: it stops where a header says that the audio ends, and does not say that a file was cut
where the header is right about less. Recorders and streaming writers leave sizes open; downloads end early. `opened`
finds the audio itself, raises `DecodeError` if it is cut, and corrects the sizes so that libsndfile reads all of it.

| container | how a cut shows | what may be open |
|---|---|---|
| RIFF, RIFX, RF64, BW64, W64, AIFF, AIFC, CAF | the chunk of samples is longer than the file | the chunk's size |
| AU, SPH | the samples that the header counts are longer than the file | AU: the size |
| FLAC | fewer samples than the header counts; the decoder finds it | the number of samples |
| Ogg | a stream has no last page, or a page is incomplete | - |
| MP3 | fewer frames than the Xing or VBRI header counts | the whole header; see `rayssl.data.mp3` |
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rayssl.data import mp3
from rayssl.data.errors import CutError, DecodeError
from rayssl.data.splices import Data, Spliced, after, unpack, whole

_OPEN = 0x7FFFF000  # streaming writers put such a size or a larger one where they do not know it
_OPEN_64 = 1 << 62


@dataclass(frozen=True)
class Opened:
    """What is to be decoded: ``parts``, one after the other (chained Ogg has several), each like a whole file.

    ``samples``: how many samples the header promises, if only the decoder can tell whether they are there. ``keep``:
    how many are of the file, if there are others behind them. ``otherwise``: to be decoded if ``parts`` cannot be, and
    then it must have ``samples``.
    """

    parts: tuple[Spliced, ...]
    samples: int | None = None
    keep: int | None = None
    otherwise: Spliced | None = None


def opened(data: Data) -> Opened:
    """The file ``data`` with sizes that hold.

    Raises `DecodeError` if the file is cut. A container that is not known here is left to the decoder.
    """
    start = mp3.after_tag(data)
    for magic, mend in _CONTAINERS.items():
        if data.startswith(magic, start):
            return mend(after(data, start))
    frames, keep = mp3.counted(data)
    return Opened((frames,), keep=keep)


def _chunks(data: Data, at: int, layout: str, align: int) -> Iterator[tuple[bytes, int, int]]:
    """The chunks from ``at``: name, where the content begins, and the size that is written; the last may be cut."""
    head = struct.calcsize(layout)
    while at + head <= len(data):
        name, size = unpack(layout, data, at)
        yield name, at + head, size
        at += head + size + -size % align


def _riff(data: Data) -> Opened:
    order = ">" if data[:4] == b"RIFX" else "<"
    long = 0  # of RF64: the size of the samples, which 32 bits may not hold
    for name, at, size in _chunks(data, 12, f"{order}4sI", 2):
        if name == b"ds64" and len(data) >= at + 16:
            long = unpack("<Q", data, at + 8)[0]
        if name == b"data":
            large = data[:4] in (b"RF64", b"BW64") and size == 0xFFFFFFFF and long
            size = long if large else size
            have = len(data) - at
            if _is_open(data, at, size, f"{order}4sI") and not large:
                return Opened((_resized(data, at, have, f"{order}I"),))
            if size > have:
                raise CutError(len(data), at + size)
            break
    return Opened((whole(data),))


def _is_open(data: Data, at: int, size: int, layout: str) -> bool:
    """Whether ``size`` of the samples at ``at`` is a placeholder: very large, or 0 before bytes that are no chunks."""
    if size:
        return size >= _OPEN
    ends = at
    for _, begin, length in _chunks(data, at, layout, 2):
        ends = begin + length
    return ends < len(data) - 1 or ends > len(data)


def _patched(data: Data, *patches: tuple[int, bytes]) -> Spliced:
    """``data`` with other bytes at some places, which ascend."""
    pieces, done = list[bytes | tuple[int, int]](), 0
    for at, put in patches:
        pieces += [(done, at), put]
        done = at + len(put)
    return Spliced(data, (*pieces, (done, len(data))))


def _resized(data: Data, at: int, size: int, layout: str, *others: tuple[int, bytes]) -> Spliced:
    """``data`` with ``size`` in the header of the chunk whose content begins at ``at``, and in that of the file.

    ``others``: what else is to be corrected, between both.
    """
    if size + at > 0xFFFFFFFF:
        return whole(data)  # libsndfile reads such a file to its end
    sizes = (4, struct.pack(layout, len(data) - 8)), (at - 4, struct.pack(layout, size))
    return _patched(data, sizes[0], *others, sizes[1])


def _w64(data: Data) -> Opened:
    at = 40
    while at + 24 <= len(data):
        name, size = unpack("<4s12xQ", data, at)  # the size counts these 24 bytes, too
        if name == b"data" and 24 < size < _OPEN_64:
            if at + size > len(data):
                raise CutError(len(data), at + size)
            return Opened((Spliced(data, ((0, at + size),)),))  # libsndfile takes what follows for audio
        if name == b"data" and size >= _OPEN_64:  # libsndfile does not open it
            sizes = struct.pack("<Q", len(data)), struct.pack("<Q", len(data) - at)
            return Opened((_patched(data, (16, sizes[0]), (at + 16, sizes[1])),))
        if name == b"data" or size < 24:
            break
        at += size + -size % 8
    return Opened((whole(data),))


def _aiff(data: Data) -> Opened:
    frame = common = 0
    for name, at, size in _chunks(data, 12, ">4sI", 2):
        if name == b"COMM" and len(data) >= at + 8:
            channels, _, bits = unpack(">hIh", data, at)
            common, frame = at, channels * -(-bits // 8)
        if name == b"SSND":
            have = len(data) - at
            if _is_open(data, at, size, ">4sI"):
                counted = [(common + 2, struct.pack(">I", (have - 8) // frame))] if common and frame > 0 else []
                return Opened((_resized(data, at, have, ">I", *counted),))
            if size > have:
                raise CutError(len(data), at + size)
            break
    return Opened((whole(data),))


def _caf(data: Data) -> Opened:
    for name, at, size in _chunks(data, 8, ">4sq", 1):
        if name == b"data" and size == -1:  # to the end of the file, which libsndfile does not read
            return Opened((_patched(data, (at - 8, struct.pack(">q", len(data) - at))),))
        if size < 0:
            break
        if name == b"data":
            if at + size > len(data):
                raise CutError(len(data), at + size)
            break
    return Opened((whole(data),))


def _au(data: Data) -> Opened:
    order = ">" if data[:4] == b".snd" else "<"
    if len(data) >= 12:
        at, size = unpack(f"{order}II", data, 4)
        if size < _OPEN and at + size > len(data):
            raise CutError(len(data), at + size)
    return Opened((whole(data),))


def _sph(data: Data) -> Opened:
    facts = {}
    lines = data[:65536].split(b"end_head", 1)[0].split(b"\n")
    for line in lines[2:]:
        words = line.split(None, 2)
        if len(words) == 3:
            facts[words[0]] = words[2]
    try:
        head = int(lines[1])
        sizes = [int(facts[key]) for key in (b"sample_count", b"channel_count", b"sample_n_bytes")]
    except (IndexError, KeyError, ValueError):
        return Opened((whole(data),))
    stop = head + sizes[0] * sizes[1] * sizes[2]
    if b"," in facts.get(b"sample_coding", b"") or min(sizes) <= 0:  # after a comma: how it is compressed
        return Opened((whole(data),))
    if stop > len(data):
        raise CutError(len(data), stop)
    return Opened((Spliced(data, ((0, stop),)),))  # libsndfile takes what follows for audio


def _flac(data: Data) -> Opened:
    if len(data) < 26:
        return Opened((whole(data),))
    samples = int.from_bytes(data[21:26], "big") & (1 << 36) - 1
    if not samples:
        return Opened((whole(data),))
    # without a number libsndfile reads to the end, but does not accept other bytes there, which some programs add
    endless = _patched(data, (21, bytes([data[21] & 0xF0, 0, 0, 0, 0])))
    return Opened((endless,), samples, otherwise=whole(data))


def _ogg(data: Data) -> Opened:
    at, links, open_streams = 0, [0], set[int]()
    while at < len(data):
        if not data.startswith(b"OggS", at):
            if open_streams:
                raise DecodeError(f"unreadable: damaged Ogg: no page at byte {at}")
            break  # what follows the last page is not audio
        head = at + 27
        count = data[at + 26] if head <= len(data) else 0
        end = head + count + sum(data[head : head + count])
        if head > len(data) or end > len(data):
            raise DecodeError(f"unreadable: truncated: the Ogg page at byte {at} is incomplete")
        flags, serial = data[at + 5], int.from_bytes(data[at + 14 : at + 18], "little")
        if flags & 2 and not open_streams and at:
            links.append(at)
        open_streams = open_streams - {serial} if flags & 4 else open_streams | {serial}
        at = end
    if open_streams:
        raise DecodeError("unreadable: truncated: the Ogg stream has no last page")
    return Opened(
        tuple(Spliced(data, ((begin, end),)) for begin, end in zip(links, [*links[1:], len(data)], strict=True))
    )


_CONTAINERS: dict[bytes, Callable[[Data], Opened]] = {
    b"RIFF": _riff,
    b"RIFX": _riff,
    b"RF64": _riff,
    b"BW64": _riff,
    b"riff": _w64,
    b"FORM": _aiff,
    b"caff": _caf,
    b".snd": _au,
    b"dns.": _au,
    b"NIST_1A": _sph,
    b"fLaC": _flac,
    b"OggS": _ogg,
}
