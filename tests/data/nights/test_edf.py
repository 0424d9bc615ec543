"""EDF headers, ranges of one channel, time stamps: against edfio as a writer and a reader of whole files."""

from __future__ import annotations

import warnings
from datetime import date, datetime, time
from pathlib import Path

import edfio
import numpy as np
import pytest

from rayssl.data.decode import DecodeError
from rayssl.data.nights.edf import Annotation, open_edf
from rayssl.errors import StorageError
from tests.data.nights.edf_files import START, Signal, Tal, edf_bytes, seconds_signal


def noise(seconds: float, rate: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-32768, 32768, round(seconds * rate), dtype=np.int16)


def written(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize("record_s", [0.5, 1, 10, 90])
@pytest.mark.parametrize("number", [0, 1])
def test_a_channel_in_blocks_is_that_channel(number: int, record_s: float, tmp_path: Path) -> None:
    signals = [Signal("Flow", noise(180, 10), 10), Signal("Mic", noise(180, 400, 1), 400)]
    edf = open_edf(written(tmp_path / "a.edf", edf_bytes(signals, record_s=record_s)), "a.edf")
    assert (edf.channels[number].label, edf.rate(number)) == (signals[number].label, signals[number].rate)
    blocks = list(edf.digital(number, 0, edf.records))
    assert max(map(len, blocks)) <= max(30, record_s if record_s < 30 else 0) * signals[number].rate
    assert np.array_equal(np.concatenate(blocks), signals[number].samples)
    first, count = edf.records // 2, edf.records - edf.records // 2
    some = np.concatenate(list(edf.digital(number, first, count)))
    assert np.array_equal(some, signals[number].samples[round(first * record_s * signals[number].rate) :])


def test_a_record_of_an_hour_is_read_in_pieces(tmp_path: Path) -> None:
    signals = [Signal("Flow", noise(3600, 10), 10), Signal("Mic", noise(3600, 50), 50)]
    edf = open_edf(written(tmp_path / "a.edf", edf_bytes(signals, record_s=3600)), "a.edf")
    blocks = list(edf.digital(1, 0, 1))
    assert {len(block) for block in blocks} == {1500}
    assert np.array_equal(np.concatenate(blocks), signals[1].samples)


def test_files_of_edfio_are_read_as_it_reads_them(tmp_path: Path) -> None:
    data = np.random.default_rng(0).uniform(-3, 3, 200 * 60)
    notes = [edfio.EdfAnnotation(1.5, 30, "Sleep stage W"), edfio.EdfAnnotation(40, None, "Schnarchen \N{BULLET}")]
    made = edfio.Edf(
        [edfio.EdfSignal(data, 200, label="Mic", physical_range=(-3, 3.5), physical_dimension="mV")],
        recording=edfio.Recording(startdate=date(2031, 5, 6)),
        starttime=time(23, 59, 58, 250000),
        annotations=notes,
        data_record_duration=2,
    )
    made.write(tmp_path / "a.edf")
    edf = open_edf(str(tmp_path / "a.edf"), "a.edf")
    assert edf.clock == datetime(2031, 5, 6, 23, 59, 58) and edf.dated and edf.lead == 0.25
    assert (edf.records, edf.promised, edf.record_s, edf.discontinuous) == (30, 30, 2, False)
    back = edfio.read_edf(tmp_path / "a.edf")
    assert np.array_equal(np.concatenate(list(edf.digital(0, 0, 30))), back.signals[0].digital)
    assert edf.channels[0].physical == (-3, 3.5) and edf.channels[0].digital == (-32768, 32767)
    onsets, found = edf.times
    assert np.array_equal(onsets, 0.25 + 2 * np.arange(30))
    assert found == [Annotation(1.75, 30.0, "Sleep stage W"), Annotation(40.25, None, "Schnarchen \N{BULLET}")]


def test_the_writer_of_the_tests_writes_what_edfio_reads(tmp_path: Path) -> None:
    signals = [Signal("Flow", noise(4, 10), 10), Signal("Mic", noise(4, 400, 1), 400, (-2000, 2000), (-5.0, 7.0))]
    told = [Tal(0, 2, "Sleep stage W"), Tal(2.5, None, "Lights off")]
    path = written(tmp_path / "a.edf", edf_bytes(signals, plus="EDF+C", annotations=told))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = edfio.read_edf(path)
        assert back.startdatetime == START and back.num_data_records == 4
    for given, found in zip(signals, back.signals, strict=True):
        assert (found.label, found.sampling_frequency) == (given.label, given.rate)
        assert np.array_equal(found.digital, given.samples)
        assert (*found.digital_range, *found.physical_range) == (*given.digital, *given.physical)
    assert [tuple(one) for one in back.annotations] == [(0, 2, "Sleep stage W"), (2.5, None, "Lights off")]


def test_years_have_two_digits(tmp_path: Path) -> None:
    signal = seconds_signal(0, 1, rate=10)
    for year, dated in ((1986, True), (1999, True), (2000, True), (2084, True), (1985, False)):
        start = datetime(year, 1, 1, 3, 4, 5)
        edf = open_edf(written(tmp_path / "a.edf", edf_bytes([signal], start=start)), "a.edf")
        assert edf.clock == start and edf.dated == dated
    # EDF+ repeats the date with four digits; X hides it there
    for recording, expected in (("Startdate 02-MAR-2091 X X X", datetime(2091, 3, 2)), ("Startdate X X X X", START)):
        data = edf_bytes([signal], recording=recording, plus="EDF+C")
        found = open_edf(written(tmp_path / "a.edf", data), "a.edf").clock
        assert found.date() == expected.date() and found.time() == START.time()


def test_a_record_without_a_time_stamp_is_damage(tmp_path: Path) -> None:
    data = bytearray(edf_bytes([seconds_signal(0, 3, rate=10)], plus="EDF+D"))
    at = data.index(b"+2\x14\x14")
    data[at : at + 4] = bytes(4)
    with pytest.raises(DecodeError, match=r"damaged: record 2 of a\.edf has no time stamp"):
        assert open_edf(written(tmp_path / "a.edf", bytes(data)), "a.edf").times


@pytest.mark.parametrize("kept", [0, 100, 255, 300, 511])
def test_half_a_header_is_no_edf(kept: int, tmp_path: Path) -> None:
    data = edf_bytes([seconds_signal(0, 3, rate=10)])
    with pytest.raises(DecodeError, match=r"unreadable: a\.edf is not EDF, or its header is damaged"):
        open_edf(written(tmp_path / "a.edf", data[:kept]), "a.edf")


@pytest.mark.parametrize(
    ("at", "text"), [(0, b"1"), (168, b"99.99.99"), (176, b"xx"), (236, b"many"), (244, b"0 "), (252, b"-1  ")]
)
def test_a_damaged_field_is_one_line(at: int, text: bytes, tmp_path: Path) -> None:
    data = edf_bytes([seconds_signal(0, 3, rate=10)])
    with pytest.raises(DecodeError, match=r"unreadable: a\.edf is not EDF") as caught:
        open_edf(written(tmp_path / "a.edf", data[:at] + text + data[at + len(text) :]), "a.edf")
    assert "\n" not in str(caught.value)


def test_an_absent_file_is_an_error_of_the_storage(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such file"):
        open_edf(str(tmp_path / "none.edf"), "none.edf")
