"""Copies are found under another codec, level, rate and start; other audio is not taken for a copy."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import soundfile

from rayssl.data import decode, speech
from rayssl.data.segments import fingerprints
from rayssl.data.segments.duplicates import near
from rayssl.data.segments.fingerprints import Codes, Print, from_text

COUNT = 24
TALKS = [speech.speak(0, k % 6, k % 2, k, seconds=5.0, channel=0.5) for k in range(COUNT)]


def printed(samples: np.ndarray, block: int = 5000) -> Print:
    codes = Codes()
    for at in range(0, len(samples), block):
        codes.add(samples[at : at + block])
    return codes.of(0, len(samples))


PRINTS = [printed(samples) for samples in TALKS]


def coded(samples: np.ndarray, format: str, subtype: str, level: float) -> np.ndarray:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16000, format=format, subtype=subtype, compression_level=level)
    return decode.decode(buffer.getvalue())


COPIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "the same": lambda samples: samples,
    "quieter": lambda samples: 0.1 * samples,
    "mp3": lambda samples: coded(samples, "MP3", "MPEG_LAYER_III", 0.7),
    "vorbis": lambda samples: coded(samples, "OGG", "VORBIS", 0.7),
    "8 kHz": lambda samples: decode.resample(decode.resample(samples, 16000, 8000), 8000, 16000),
    "begins later": lambda samples: samples[7777:],
    "ends earlier, as mp3": lambda samples: coded(samples[:-9000], "MP3", "MPEG_LAYER_III", 0.5),
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_are_found(how: str) -> None:
    found = near([*PRINTS, *(printed(COPIES[how](samples).astype(np.float32)) for samples in TALKS)])
    assert all(found[copy] == copy - COUNT for copy in found)
    assert len(found) >= COUNT - 1


def test_other_utterances_of_the_same_speaker_are_no_copies() -> None:
    assert near(PRINTS) == {}


def test_a_part_that_is_shared_makes_no_copy() -> None:
    halves = [printed(np.concatenate([one[:40000], other[40000:]])) for one, other in itertools.pairwise(TALKS)]
    assert near([*PRINTS, *halves]) == {}


def test_silence_and_hum_make_no_crowd() -> None:
    hum = [printed((0.1 * np.sin(2 * np.pi * 50 * np.arange(80000) / 16000)).astype(np.float32)) for _ in range(100)]
    assert len(near(hum)) in (0, 99)
    assert near([printed(np.zeros(100, np.float32))] * 2) == {}
    assert near([]) == {}


def test_blocks_and_texts_do_not_change_a_fingerprint() -> None:
    for again in (printed(TALKS[0], 333), printed(TALKS[0], 80000), from_text(PRINTS[0].text())):
        for one, other in zip(PRINTS[0], again, strict=True):
            np.testing.assert_array_equal(one, other)


def test_agreement() -> None:
    assert max(fingerprints.agreement(one, other, 0) for one, other in itertools.pairwise(PRINTS)) == 0
    assert fingerprints.agreement(PRINTS[0], PRINTS[0], 0) == 1
    assert fingerprints.agreement(PRINTS[0], printed(TALKS[0][8192:]), -16) == 1
