"""Parts of a FLAC by the decoder dr_flac, from the package miniaudio: twice as fast as libsndfile for short parts.

dr_flac passes over a frame whose checksum is wrong without a word. So only bytes that were verified before may come
here: those of shards whose pages have checksums, see `rayssl.data.row_groups`. Where the package is not installed (it
has wheels for few machines), `decoder` is None, and `rayssl.data.decode` uses libsndfile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

try:  # the package's own functions decode a whole file; the library below them seeks
    from _miniaudio import ffi, lib

    decoder: Any = lib
except ImportError:
    decoder = None


def read_parts(
    audio: bytes | memoryview, rate: int, samples: int, parts: Sequence[tuple[int, int]], out: np.ndarray
) -> bool:
    """Fills ``out`` (int16) with the ``parts`` of mono ``audio``; see `rayssl.data.decode.pcm_parts`.

    Returns whether the audio is FLAC of 16 bits at ``rate`` Hz with ``samples`` samples and has all parts.
    """
    held = ffi.from_buffer(audio)
    flac = decoder.ma_dr_flac_open_memory(held, len(audio), ffi.NULL)
    if flac == ffi.NULL:
        return False
    try:
        head = (flac.sampleRate, flac.channels, flac.bitsPerSample, flac.totalPCMFrameCount)
        if head != (rate, 1, 16, samples):
            return False
        at = place = 0
        for start, stop in parts:
            if start != place and not decoder.ma_dr_flac_seek_to_pcm_frame(flac, start):
                return False
            size = stop - start
            into = ffi.cast("ma_int16 *", ffi.from_buffer(out[at : at + size], require_writable=True))
            if decoder.ma_dr_flac_read_pcm_frames_s16(flac, size, into) != size:
                return False
            at, place = at + size, stop
        return True
    finally:
        decoder.ma_dr_flac_close(flac)
