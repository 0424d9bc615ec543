"""Audio in containers of video, which libsndfile does not read: m4a and mp4 (VoxCeleb2 as it is downloaded), AAC, WebM.

FFmpeg decodes it, as the package PyAV carries it: the extra ``media``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np

from rayssl.data.errors import DecodeError
from rayssl.data.splices import Data

_EBML, _SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"
_LATE_S = 0.25  # so much shorter than the container says may be padding of codecs


def is_media(data: Data) -> bool:
    """Whether ``data`` begins like MP4, ADTS (AAC without a container), Matroska or WebM."""
    head = data[:8]
    adts = len(head) > 6 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0
    return head[4:] == b"ftyp" or head[:4] == _EBML or adts


@contextmanager
def opened(data: Data, file: BinaryIO) -> Iterator[tuple[int, int, Iterator[np.ndarray]]]:
    """The rate, the number of channels, and blocks of float32 ``[T, channels]`` of the first stream of audio.

    ``file``: ``data`` as a file.

    Raises `DecodeError`: PyAV is not installed, there is no audio, or it is damaged or shorter than the file says.
    """
    try:
        import av
    except ImportError:
        how = "pip install av, or convert: ffmpeg -i FILE -ar 16000 -ac 1 FILE.flac"
        raise DecodeError(f"unreadable: audio in a container of video needs PyAV; {how}") from None
    cut = _missing(data)
    if cut:
        raise DecodeError(f"unreadable: truncated after {len(data)} of {cut} bytes")
    try:
        with av.open(file) as container:
            if not container.streams.audio:
                raise DecodeError("unreadable: the file has no stream of audio")
            stream = container.streams.audio[0]
            context: Any = stream.codec_context
            if context is None:
                raise DecodeError("unreadable: audio of a kind that FFmpeg does not know")
            yield int(context.sample_rate), int(context.channels), _blocks(container, stream)
    except av.error.FFmpegError as error:
        raise DecodeError(f"unreadable: {(error.strerror or 'damaged').lower()}") from None


def _blocks(container: Any, stream: Any) -> Iterator[np.ndarray]:
    rate, count, done = int(stream.codec_context.sample_rate), int(stream.codec_context.channels), 0
    for frame in container.decode(stream):
        block = frame.to_ndarray()
        if (frame.sample_rate, frame.layout.nb_channels) != (rate, count):
            raise DecodeError("unreadable: the rate or the number of channels changes inside the file")
        planar = frame.format.is_planar or count == 1
        block = block.T if planar else block.reshape(-1, count)
        if block.dtype.kind == "i":
            block = block.astype(np.float32) / np.float32(-float(np.iinfo(block.dtype).min))
        elif block.dtype == np.uint8:
            block = (block.astype(np.float32) - 128) / 128
        done += len(block)
        yield block.astype(np.float32, copy=False)
    said = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
    if done / rate < said - max(_LATE_S, 0.01 * said):
        raise DecodeError(f"unreadable: truncated after {done / rate:.2f} of {said:.2f} s")


def _missing(data: Data) -> int:
    """How long a file would be whose last box (MP4) or whose segment (Matroska, WebM) is cut; else 0."""
    if data[:4] == _EBML:
        at = _element(data, 0)[1]
        start, end = _element(data, at)
        return end if data[at : at + 4] == _SEGMENT and end > len(data) >= start else 0
    at = 0
    while data[4:8] == b"ftyp" and at + 8 <= len(data):
        size, head = int.from_bytes(data[at : at + 4], "big"), 8
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        if size < head:
            break  # 0: to the end of the file
        at += size
    return at if at > len(data) else 0


def _element(data: Data, at: int) -> tuple[int, int]:
    """Where the content of the element of Matroska at ``at`` begins and ends (RFC 8794); 0 for an open end.

    Its name has four bytes. The leading zeros of the first byte of its size say how many bytes follow.
    """
    head = data[at + 4 : at + 12]
    if not head or not head[0]:
        return 0, 0
    width = 9 - head[0].bit_length()
    bits = int.from_bytes(head[:width], "big") & (1 << 7 * width) - 1
    begin = at + 4 + width
    return begin, 0 if bits == (1 << 7 * width) - 1 else begin + bits
