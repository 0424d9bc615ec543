"""Parts of an utterance are those of the whole one, wherever they lie; damage in what is used is one line."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pytest
import soundfile

from rayssl.data import decode, flac
from rayssl.errors import CorpusError
from tests.data.corpora import encoded, sine

FRAME = 4096  # libsndfile's block of FLAC
LENGTH = 10 * FRAME + 777
PCM = decode.quantise(sine(1, LENGTH / decode.RATE))
AUDIO: dict[decode.Format, bytes] = {"flac": decode.encode(PCM, "flac"), "pcm16": decode.encode(PCM, "pcm16")}
Parts = list[tuple[int, int]]


def parts_of(
    audio: bytes, format: decode.Format, parts: Parts, samples: int = LENGTH, verified: bool = False
) -> np.ndarray:
    out = np.full(sum(stop - start for start, stop in parts), -1, np.int16)
    decode.pcm_parts(memoryview(audio), format, samples, parts, out, verified=verified)
    return out


def assert_parts(parts: Parts) -> None:
    expected = np.concatenate([PCM[start:stop] for start, stop in parts])
    for format, audio in AUDIO.items():
        for verified in (False, True):  # by libsndfile, and by dr_flac
            found = parts_of(audio, format, parts, verified=verified)
            np.testing.assert_array_equal(found, expected, err_msg=f"{format} {parts} {verified}")


BORDERS = [0, 1, FRAME - 1, FRAME, FRAME + 1, 3 * FRAME, 9 * FRAME, 10 * FRAME, 10 * FRAME + 1, LENGTH - 1, LENGTH]
SEEK = decode._SEEK_COSTS
SEVERAL: dict[str, Parts] = {
    "frames": [(k * FRAME, (k + 1) * FRAME) for k in (1, 3, 5, 9)],
    "first and last sample": [(0, 1), (LENGTH - 1, LENGTH)],
    "gaps of one sample": [(0, 500), (501, FRAME), (FRAME + 1, 2 * FRAME)],
    "a gap that is read": [(10, 20), (20 + SEEK, 30 + SEEK)],
    "a gap that is sought": [(10, 20), (21 + SEEK, 31 + SEEK), (32 + 2 * SEEK, 40 + 2 * SEEK)],
    "begins where a seek begins to pay": [(SEEK, SEEK + 5)],
    "one sample later": [(SEEK + 1, SEEK + 5)],
    "the last frame, which is short": [(10 * FRAME, LENGTH)],
    "to the end after a seek": [(5, 6), (9 * FRAME, LENGTH)],
}


@pytest.mark.parametrize("start", BORDERS[:-1])
def test_a_part_between_any_borders(start: int) -> None:
    """Borders of FLAC's frames, and of the utterance."""
    for stop in BORDERS:
        if stop > start:
            assert_parts([(start, stop)])


@pytest.mark.parametrize("parts", SEVERAL.values(), ids=list(SEVERAL))
def test_several_parts(parts: Parts) -> None:
    assert_parts(parts)


def test_parts_at_random() -> None:
    random = np.random.default_rng(0)
    for count in (1, 2, 3, 5, 8) * 4:
        at = np.sort(random.choice(LENGTH + 1, 2 * count, replace=False)).tolist()
        assert_parts(list(zip(at[::2], at[1::2], strict=True)))


def test_parts_of_short_utterances() -> None:
    """Shorter than a frame of FLAC, down to a single sample."""
    for length in (1, 2, 17, 800):
        pcm = PCM[:length]
        for format in AUDIO:
            audio = decode.encode(pcm, format)
            borders = sorted({0, length // 2, length - 1, length})
            for start, stop in pairwise(borders):
                for verified in (False, True):
                    found = parts_of(audio, format, [(start, stop)], length, verified)
                    np.testing.assert_array_equal(found, pcm[start:stop])


def test_nothing_is_no_part() -> None:
    for format, audio in AUDIO.items():
        assert len(parts_of(audio, format, [])) == 0


def test_what_comes_before_a_part_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is sought, not decoded: fewer samples are read than come before the part."""
    read = soundfile.SoundFile.read
    counted: list[int] = []

    def counting(self: soundfile.SoundFile, frames: int = -1, *args: object, **more: object) -> np.ndarray:
        found = read(self, frames, *args, **more)
        counted.append(len(found))
        return np.asarray(found)

    monkeypatch.setattr(soundfile.SoundFile, "read", counting)
    parts_of(AUDIO["flac"], "flac", [(9 * FRAME, 9 * FRAME + 100)])
    assert sum(counted) == 100


def refused(
    audio: bytes, parts: Parts, format: decode.Format = "flac", samples: int = LENGTH, verified: bool = False
) -> str:
    with pytest.raises(CorpusError) as caught:
        parts_of(audio, format, parts, samples, verified)
    text = str(caught.value)
    assert text.startswith("damaged audio in a shard: ") and text.endswith("; run rayssl prepare --verify")
    assert "\n" not in text
    return text


WHOLE: Parts = [(0, LENGTH)]
MIDDLE: Parts = [(4 * FRAME, 7 * FRAME)]


def garbled(share: float) -> bytes:
    """The FLAC with other bytes at ``share`` of its size."""
    data = bytearray(AUDIO["flac"])
    at = int(share * len(data))
    data[at : at + 400] = bytes(byte ^ 0x5A for byte in data[at : at + 400])
    return bytes(data)


@pytest.mark.parametrize("parts", [WHOLE, MIDDLE, [(0, 10), (6 * FRAME, LENGTH)]], ids=["whole", "middle", "two"])
def test_damage_in_a_part_that_is_used_is_told(parts: Parts) -> None:
    flac = AUDIO["flac"]
    start = max(parts[-1][0], 5 * FRAME) / LENGTH
    for data in (garbled(start + 0.1), flac[: int((start + 0.05) * len(flac))], b"text", b"", flac[:100]):
        refused(data, parts)


@pytest.mark.parametrize("rest", [1, 3, 10, 200, 2000])
def test_an_end_that_is_missing_is_told(rest: int) -> None:
    """Also the last bytes of the last frame."""
    refused(AUDIO["flac"][:-rest], [(10 * FRAME, LENGTH)])
    refused(AUDIO["flac"][:-rest], WHOLE)


def test_another_length_than_the_row_says_is_told() -> None:
    for samples in (LENGTH - 1, LENGTH + 1):
        for verified in (False, True):
            message = refused(AUDIO["flac"], [(0, 100)], samples=samples, verified=verified)
            assert "not complete mono FLAC at 16 kHz" in message
        assert "not as long as its row says" in refused(AUDIO["pcm16"], [(0, 100)], "pcm16", samples)
    refused(AUDIO["pcm16"][:-1], [(0, 100)], "pcm16")
    refused(AUDIO["pcm16"][:-2], [(0, 100)], "pcm16")


def test_another_rate_or_more_channels_are_told() -> None:
    time = np.arange(LENGTH) / decode.RATE
    tone = np.sin(2000 * time) * 0.3
    for verified in (False, True):
        refused(encoded(tone, rate=8000), [(0, 100)], verified=verified)
        refused(encoded(np.stack([tone, tone], axis=1)), [(0, 100)], verified=verified)


@pytest.mark.parametrize(
    "data", [b"", b"text", AUDIO["flac"][:100], AUDIO["flac"][:-2000]], ids=["empty", "text", "head", "cut"]
)
def test_verified_bytes_that_were_no_flac_when_they_were_written_are_told(data: bytes) -> None:
    refused(data, [(10 * FRAME, LENGTH)], verified=True)


def test_without_the_fast_decoder_the_samples_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package has wheels for few machines."""
    monkeypatch.setattr(flac, "decoder", None)
    np.testing.assert_array_equal(parts_of(AUDIO["flac"], "flac", MIDDLE, verified=True), PCM[slice(*MIDDLE[0])])


def test_a_header_without_a_length_is_told() -> None:
    """A stream that was never closed: it decodes, but its length is unknown."""
    data = bytearray(AUDIO["flac"])
    data[21] &= 0xF0  # the total samples of STREAMINFO, 36 bits
    data[22:26] = bytes(4)
    with soundfile.SoundFile(io.BytesIO(bytes(data))) as file:
        assert file.frames != LENGTH
    refused(bytes(data), [(0, 100)])
