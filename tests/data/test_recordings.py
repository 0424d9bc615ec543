"""Long recordings: what a stream of blocks gives is what the whole file in memory gives, and so are parts of it."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import soundfile

from rayssl.data import decode, samples, splices
from rayssl.data.errors import DecodeError
from rayssl.data.recordings import excerpts, stream
from rayssl.errors import StorageError
from tests.data.corpora import encoded, sine
from tests.data.test_containers import FORMATS, OPEN, mutated, written


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seams everywhere."""
    monkeypatch.setattr(splices, "_BLOCK", 1009)
    monkeypatch.setattr(samples, "_LONG_BLOCK", 4096)
    monkeypatch.setattr(samples, "_LEAST_BLOCK", 1000)


def streamed(data: bytes, channels: decode.Channels = "reject_above_2") -> np.ndarray:
    return np.concatenate(list(stream(io.BytesIO(data), channels)))


def outcome(read: object, data: bytes) -> np.ndarray | None:
    try:
        made = read(data)  # type: ignore[operator]
    except DecodeError:
        return None
    assert isinstance(made, np.ndarray)
    return made


@pytest.mark.parametrize("name", FORMATS)
def test_a_stream_is_the_whole_file(name: str) -> None:
    data = written(name)
    for given in (data, data + b"TAG" + bytes(125), data + bytes(300)):
        np.testing.assert_array_equal(streamed(given), decode.decode(given))
    for cut in (data[: len(data) // 2], data[:-1]):
        with pytest.raises(DecodeError, match=r"^unreadable: "):
            streamed(cut)


@pytest.mark.parametrize("name", OPEN)
def test_a_stream_of_a_file_whose_size_was_left_open(name: str) -> None:
    np.testing.assert_array_equal(streamed(OPEN[name]), decode.decode(OPEN[name]))


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_another_rate_and_two_channels(rate: int) -> None:
    both = np.stack([sine(1, 2.0), sine(2, 2.0)], axis=1)
    buffer = io.BytesIO()
    soundfile.write(buffer, both, rate, format="FLAC")
    for channels in ("reject_above_2", "first"):
        whole = decode.decode(buffer.getvalue(), channels)
        np.testing.assert_array_equal(streamed(buffer.getvalue(), channels), whole)
    (second,) = (made for _, made in excerpts(buffer, [(0, 1000)], 1))
    np.testing.assert_allclose(second, decode.resample(both[:, 1], rate)[:1000], atol=1e-4)
    with pytest.raises(DecodeError, match=r"^no channel 2: the file has 2, the first is 0$"):
        list(excerpts(buffer, [(0, 1000)], 2))


@pytest.mark.parametrize("name", ["wav", "flac", "vorbis", "mp3", "w64", "aiff", "sph"])
def test_mutated_files_end_alike(name: str) -> None:
    """No exception but `DecodeError`, and what a stream gives is what the whole file gives."""
    data, chance = written(name), random.Random(name)
    for _ in range(60):
        given = mutated(data, chance)
        whole, parts = outcome(decode.decode, given), outcome(streamed, given)
        assert (whole is None) == (parts is None)
        if whole is not None:
            np.testing.assert_array_equal(parts, whole)


@pytest.mark.parametrize("name", ["wav", "flac", "wav float", "wav gsm", "vorbis", "mp3", "caf", "flac 24"])
@pytest.mark.parametrize("rate", [16000, 22050])
def test_excerpts_are_parts_of_the_whole(name: str, rate: int) -> None:
    format, subtype, endian = FORMATS[name]
    buffer = io.BytesIO()
    soundfile.write(buffer, sine(1, 8.0), rate, format=format, subtype=subtype, endian=endian)
    whole = decode.decode(buffer.getvalue())
    ranges = [(40000, 72000), (50000, 50400), (41000, 44000), (70000, len(whole)), (72001, 72005), (60000, 60000)]
    ranges.append((len(whole) - 100, len(whole) + 8000))
    found = dict(excerpts(buffer, ranges))
    assert sorted(found) == list(range(len(ranges)))
    for position, (start, stop) in enumerate(ranges):
        np.testing.assert_allclose(found[position], whole[start:stop], atol=2e-6 if rate != 16000 else 0)


def test_a_place_is_found_without_decoding_what_is_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten minutes less than three seconds are decoded; damage before them does not matter."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 600 * 8000)
    data = bytearray(encoded(noise, "FLAC", rate=8000))
    data[100_000:100_050] = bytes(50)
    with pytest.raises(DecodeError):
        streamed(bytes(data))
    blocks, read = list[int](), samples._mono

    def counted(found, *others):  # type: ignore[no-untyped-def]
        for block in read(found, *others):
            blocks.append(len(block))
            yield block

    monkeypatch.setattr(samples, "_mono", counted)
    ((_, made),) = excerpts(io.BytesIO(data), [(500 * 16000, 501 * 16000)])
    assert sum(blocks) < 3 * 8000
    wanted = decode.resample(decode.decode(encoded(noise, "FLAC", rate=8000), rate=8000), 8000)
    np.testing.assert_allclose(made, wanted[500 * 16000 : 501 * 16000], atol=2e-6)


def test_an_error_of_the_storage_is_not_taken_for_damage() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 20_000:
                raise StorageError("s3://b/x: connection reset")
            return super().read(size)

    with pytest.raises(StorageError, match=r"^s3://b/x: connection reset$"):
        list(stream(Failing(written("flac"))))


def test_no_bytes_and_no_samples_are_told() -> None:
    for data, told in ((b"", "bytes"), (encoded(np.zeros(0), "WAV"), "samples")):
        with pytest.raises(DecodeError, match=rf"^empty: the file has no {told}$"):
            streamed(data)
