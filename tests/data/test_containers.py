"""Every format against every fault: what a header promises and what the file holds. The files are made here."""

from __future__ import annotations

import io
import random
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile

from rayssl.data import decode, mp3, samples
from tests.data.corpora import encoded, sine

COUNT = 32000
SAMPLES = sine(1, 2.0)
FORMATS = {
    "wav": ("WAV", "PCM_16", "FILE"),
    "wav 24": ("WAV", "PCM_24", "FILE"),
    "wav float": ("WAV", "FLOAT", "FILE"),
    "wav ulaw": ("WAV", "ULAW", "FILE"),
    "wav gsm": ("WAV", "GSM610", "FILE"),
    "wav ima": ("WAV", "IMA_ADPCM", "FILE"),
    "wavex": ("WAVEX", "PCM_16", "FILE"),
    "rifx": ("WAV", "PCM_16", "BIG"),
    "rf64": ("RF64", "PCM_16", "FILE"),
    "w64": ("W64", "PCM_16", "FILE"),
    "aiff": ("AIFF", "PCM_16", "FILE"),
    "aifc": ("AIFF", "PCM_16", "LITTLE"),
    "au": ("AU", "PCM_16", "FILE"),
    "au little": ("AU", "PCM_16", "LITTLE"),
    "caf": ("CAF", "PCM_16", "FILE"),
    "sph": ("NIST", "PCM_16", "FILE"),
    "flac": ("FLAC", "PCM_16", "FILE"),
    "flac 24": ("FLAC", "PCM_24", "FILE"),
    "vorbis": ("OGG", "VORBIS", "FILE"),
    "opus": ("OGG", "OPUS", "FILE"),
    "mp3": ("MP3", "MPEG_LAYER_III", "FILE"),
}
BLOCKS = {"wav ima": 544}  # samples to which a format pads its end


def written(name: str, samples: np.ndarray = SAMPLES) -> bytes:
    format, subtype, endian = FORMATS[name]
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16000, format=format, subtype=subtype, endian=endian)
    return buffer.getvalue()


@pytest.mark.parametrize("name", FORMATS)
def test_a_whole_file_is_decoded_whole_also_with_a_tag_behind_it(name: str) -> None:
    data = written(name)
    for given in (data, data + b"TAG" + bytes(125), data + bytes(300)):
        assert 0 <= len(decode.decode(given)) - COUNT <= BLOCKS.get(name, 0)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rest", [0.5, 0.9, -1, -40])
def test_a_file_that_was_cut_is_refused(name: str, rest: float) -> None:
    data = written(name)
    with pytest.raises(decode.DecodeError, match=r"^unreadable: "):
        decode.decode(data[: int(len(data) * rest)] if rest > 0 else data[: int(rest)])


@pytest.mark.parametrize("name", ["voc", "svx", "mat5", "sds", "xi"])
def test_formats_that_cannot_show_a_cut_are_refused_by_name(name: str) -> None:
    subtype = "DPCM_16" if name == "xi" else "PCM_16"
    with pytest.raises(decode.DecodeError, match=r"^unreadable: .*; convert it to FLAC or WAV$"):
        decode.decode(encoded(SAMPLES, name.upper(), subtype))


def patched(data: bytes, at: int, layout: str, *values: int) -> bytes:
    made = bytearray(data)
    struct.pack_into(layout, made, at, *values)
    return bytes(made)


WAV, AIFF, FLAC, AU = written("wav"), written("aiff"), written("flac"), written("au")
OPEN = {
    **{f"wav {size:#x}": patched(WAV, 40, "<I", size) for size in (0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)},
    "wav, all of it": patched(patched(WAV, 40, "<I", 0xFFFFFFFF), 4, "<I", 0xFFFFFFFF),
    "wav, riff too large": patched(WAV, 4, "<I", len(WAV)),
    "wav, riff 0": patched(WAV, 4, "<I", 0),
    "wav 0x80000024": patched(patched(WAV, 40, "<I", 0x80000000), 4, "<I", 0x80000024),
    "rifx": patched(written("rifx"), 40, ">I", 0xFFFFFFFF),
    "aiff": patched(patched(AIFF, AIFF.index(b"SSND") + 4, ">I", 0), AIFF.index(b"COMM") + 10, ">I", 0),
    "au": patched(AU, 8, ">I", 0xFFFFFFFF),
    "caf": patched(written("caf"), written("caf").index(b"data") + 4, ">q", -1),
    "flac": FLAC[:21] + bytes([FLAC[21] & 0xF0]) + bytes(4) + FLAC[26:],
}


@pytest.mark.parametrize("name", OPEN)
def test_a_size_that_was_left_open_reaches_to_the_end(name: str) -> None:
    np.testing.assert_allclose(decode.decode(OPEN[name]), decode.decode(WAV), atol=1e-4)  # formats round differently


def test_an_empty_wav_is_empty_also_with_other_chunks_behind() -> None:
    empty = encoded(np.zeros(0), "WAV")
    for data in (empty, empty + b"LIST" + struct.pack("<I", 4) + b"INFO"):
        with pytest.raises(decode.DecodeError, match=r"^empty: the file has no samples$"):
            decode.decode(data)


@pytest.mark.parametrize("count", [10, COUNT - 1, COUNT + 1, 1 << 35, (1 << 36) - 1])
def test_a_flac_holds_what_it_holds_whatever_it_counts(count: int) -> None:
    data = FLAC[:21] + bytes([FLAC[21] & 0xF0 | count >> 32]) + (count & 0xFFFFFFFF).to_bytes(4, "big") + FLAC[26:]
    if count < COUNT:
        assert len(decode.decode(data)) == COUNT
        return
    with pytest.raises(
        decode.DecodeError, match=rf"^unreadable: truncated or damaged after {COUNT} of {count} samples$"
    ):
        decode.decode(data)


def test_chained_ogg_is_decoded_link_by_link() -> None:
    one, two = written("vorbis"), written("vorbis", sine(2, 1.0))
    both = decode.decode(one + two)
    np.testing.assert_array_equal(both, np.concatenate([decode.decode(one), decode.decode(two)]))
    with pytest.raises(decode.DecodeError, match=r"^unreadable: truncated: the Ogg page at byte"):
        decode.decode(one + two[:-1])
    last = two.rindex(b"OggS")
    with pytest.raises(decode.DecodeError, match=r"^unreadable: truncated: the Ogg stream has no last page$"):
        decode.decode(one + two[:last])
    with pytest.raises(decode.DecodeError, match=r"^unreadable: chained streams of 16000 Hz and 8000 Hz$"):
        decode.decode(one + encoded(sine(1, 1.0, 8000), "OGG", "VORBIS", 8000))


def mpeg(rate: int, channels: int, mode: str) -> bytes:
    buffer = io.BytesIO()
    samples = np.random.default_rng(0).normal(0, 0.05, (2 * rate, channels))
    samples[: rate // 2] *= 1e-3  # so that a variable rate varies, and the first frame is a poor guess
    soundfile.write(buffer, samples, rate, format="MP3", bitrate_mode=mode, compression_level=0.5)
    return buffer.getvalue()


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_an_mp3_without_a_header_has_all_its_frames(rate: int, channels: int, mode: str) -> None:
    """As from a radio stream or a pipe; a frame has 1152 samples from 32 kHz on, else 576."""
    data = mpeg(rate, channels, mode)
    first = mp3._frame(data, 0)
    assert first is not None and mp3._place(data, first) is not None
    whole = decode.decode(data)
    assert len(whole) == 32000
    bare = data[first.size :]
    frames = mp3._frames(bare, 0, first.kind)[1]
    second = mp3._frame(bare, 0)
    assert second is not None
    part = bare[: second.size - 1]
    expected = -(-frames * (1152 if rate >= 32000 else 576) * 16000 // rate)
    for given in (bare, b"ID3\4\0\0\0\0\0\x0a" + bytes(10) + bare, bare + b"TAG" + bytes(125), bare + part):
        assert len(decode.decode(given)) == expected
    damaged = bytearray(bare)
    half = len(bare) // 2
    damaged[half:half] = b"\0" * 3000  # a hole of other bytes
    assert mp3._frames(bytes(damaged), 0, first.kind)[1] in (frames - 1, frames)


def test_an_mp3_that_counts_too_few_frames_is_decoded_whole() -> None:
    data = mpeg(16000, 1, "VARIABLE")
    first = mp3._frame(data, 0)
    assert first is not None
    place = mp3._place(data, first)
    assert place is not None
    true = int.from_bytes(data[place : place + 4], "big")
    assert len(decode.decode(patched(data, place, ">I", true // 2))) >= 32000
    with pytest.raises(decode.DecodeError, match=rf"^unreadable: truncated after {true} of {2 * true} MP3 frames$"):
        decode.decode(patched(data, place, ">I", 2 * true))


@pytest.mark.parametrize("rate", [1, 999, 768_001, 536_886_912])
def test_implausible_rates_are_refused_before_anything_is_resampled(rate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "resample", None)
    with pytest.raises(decode.DecodeError, match=rf"^implausible rate: {rate} Hz, expected 1000 to 768000$"):
        decode.decode(patched(WAV, 24, "<I", rate))


def test_floats_on_the_scale_of_integers_are_refused() -> None:
    with pytest.raises(decode.DecodeError, match=r"^too loud: a sample is \d+.*scale the file by 1/32768$"):
        decode.decode(encoded(32768 * SAMPLES, "WAV", "FLOAT"))
    loud = decode.decode(encoded(4 * SAMPLES, "WAV", "FLOAT"))
    assert np.abs(loud).max() == 1.0  # clipped


def test_length_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MOST", 16000)
    with pytest.raises(decode.DecodeError, match=r"^too long: over 0\.0 h; split the file$"):
        decode.decode(WAV)


def mutated(data: bytes, chance: random.Random) -> bytes:
    made = bytearray(data)
    reach = chance.choice([64, 200, len(made)])  # mostly headers
    for _ in range(chance.choice([1, 1, 2, 4, 16])):
        at = chance.randrange(min(reach, len(made)))
        kind = chance.randrange(5)
        if kind == 0:
            made[at] = chance.choice([0, 127, 128, 255, chance.randrange(256)])
        elif kind == 1:
            made[at : at + 4] = b"\xff\xff\xff\xff"
        elif kind == 2:
            del made[at : at + chance.choice([1, 4, 100])]
        elif kind == 3:
            made[at:at] = chance.randbytes(4)
        else:
            made[at] ^= 1 << chance.randrange(8)
    return bytes(made)


@pytest.mark.parametrize("name", FORMATS)
def test_mutated_files_are_decoded_or_refused(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """No other exception, no traceback printed by a callback, and never more samples than bytes could hold."""
    data, chance = written(name, SAMPLES[:8000]), random.Random(name)
    for _ in range(100):
        given = mutated(data, chance)
        with suppress(decode.DecodeError):
            assert len(decode.decode(given, "mean")) < 1 << 22
    assert "Traceback" not in capfd.readouterr().err


MAGIC = (b"", b"ID3", b"RIFF", b"OggS", b"fLaC", b"NIST_1A", b"FORM", b"riff", b"caff", b".snd", b"\xff\xfb\x90\x40")


@pytest.mark.parametrize("data", MAGIC)
def test_a_magic_number_alone_is_not_a_file(data: bytes) -> None:
    for given in (data, data + bytes(20)):
        with pytest.raises(decode.DecodeError):
            decode.decode(given)


CASES = Path(__file__).parents[3] / "shared" / "cases"
ANSWERS = {
    "mp3_no_xing_cut_short.mp3": 2.088,
    "mp3_cbr_pipe_refused.mp3": 2.088,
    "flac_unknown_length_refused.flac": 0.5,
    "flac_total_2e36_MemoryError.flac": "truncated or damaged after 8000 of ",
    "wav_gsm610_refused.wav": 2.0,
    "wav_rate_1_hz_bomb.wav": "implausible rate: 1 Hz",
    "aiff_truncated_accepted.aiff": "truncated",
    "ogg_truncated_accepted.ogg": "truncated",
    "wav_data_cut_riff_right.wav": "truncated",
    "ogg_half_empty_message.ogg": "truncated",
    "wav_data_size_0_called_empty.wav": 0.5,
    "wav_riff_8_too_big_refused.wav": 0.5,
    "wav_stream_80000024_refused.wav": 0.5,
    "wav_float_in_int16_scale.wav": "too loud",
}


@pytest.mark.parametrize("name", ANSWERS)
def test_files_that_users_meet(name: str) -> None:
    if not (CASES / name).exists():
        pytest.skip("not in the repository; the tests above make files of the same kinds")
    answer = ANSWERS[name]
    data = (CASES / name).read_bytes()
    if isinstance(answer, float):
        assert len(decode.decode(data)) == round(16000 * answer)
        return
    with pytest.raises(decode.DecodeError, match=answer):
        decode.decode(data)
