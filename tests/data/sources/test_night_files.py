"""Nights from EDF and audio files with their labels: joined, placed in time, and every fault in one line."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from pydantic import ValidationError

from rayssl import storage
from rayssl.data import decode
from rayssl.data.decode import DecodeError
from rayssl.data.sources.base import Reference
from rayssl.data.sources.night_files import NightFiles, NightFilesConfig
from rayssl.data.sources.nights import EPOCH_SAMPLES, UNSCORED, Dropped, Epoch
from rayssl.data.sources.registry import SOURCES
from rayssl.errors import CorpusError
from tests.data.nights.edf_files import START, Signal, Tal, edf_bytes, heard_seconds, rml, seconds_signal, write_part
from tests.data.test_ffmpeg import ffmpeg

NIGHT = "00000995-100507"


def source(folder: Path, **keys: object) -> NightFiles:
    made = SOURCES.read({"name": "nights", "uri": str(folder), **keys}).build()
    assert isinstance(made, NightFiles)
    return made


def night(folder: Path, **keys: object) -> tuple[list[Epoch], list[Dropped]]:
    """The epochs of the only night, and what was dropped."""
    made = source(folder, **keys)
    (reference,) = made.list()
    return split(made, reference)


def split(made: NightFiles, reference: Reference) -> tuple[list[Epoch], list[Dropped]]:
    epochs, dropped = [], []
    for one in made.epochs(reference):
        if isinstance(one, Dropped):
            assert ": " in one.reason and "\n" not in one.reason
            dropped.append(one)
            continue
        assert one.samples.shape == (EPOCH_SAMPLES,) and one.samples.dtype == np.float32
        epochs.append(one)
    assert all(a.index < b.index for a, b in itertools.pairwise(epochs))
    return epochs, dropped


def begins(epochs: list[Epoch]) -> list[int]:
    """The second of the night at which each epoch begins; each epoch must be 30 s without a seam."""
    starts = []
    for one in epochs:
        seconds = heard_seconds(one.samples)
        assert seconds[0] == seconds[15999]
        assert np.array_equal(seconds, seconds[0] + np.arange(EPOCH_SAMPLES) // 16000)
        starts.append(int(seconds[0]))
    return starts


def stages(epochs: list[Epoch]) -> list[int]:
    return [one.stage for one in epochs]


def test_parts_are_joined_and_labels_placed(tmp_path: Path) -> None:
    """Names with %5B and with brackets, the RML in another folder, records of 1 s, channel by name."""
    write_part(tmp_path / f"edf/{NIGHT}%5B001%5D.edf", 0, 100)
    write_part(tmp_path / f"edf/{NIGHT}[002].edf", 100, 200)
    (tmp_path / "rml").mkdir()
    (tmp_path / f"rml/{NIGHT}.rml").write_text(rml())
    made = source(tmp_path)
    (reference,) = made.list()
    paths = (f"rml/{NIGHT}.rml", f"edf/{NIGHT}%5B001%5D.edf", f"edf/{NIGHT}[002].edf")
    assert reference == Reference(f"edf/{NIGHT}", "00000995", f"edf/{NIGHT}", None, (1, *paths))
    assert made.place(reference) == f"{tmp_path}/edf/{NIGHT}%5B001%5D.edf"
    assert made.config.describe() == str(tmp_path)
    epochs, dropped = split(made, reference)
    assert begins(epochs) == list(range(0, 300, 30)) and [one.index for one in epochs] == list(range(10))
    assert stages(epochs) == [0, 0, 1, 1, 2, 2, 3, 3, 3, 3] and dropped == []


def test_a_gap_is_a_jump_of_the_index(tmp_path: Path) -> None:
    write_part(tmp_path / f"{NIGHT}[001].edf", 0, 100)
    write_part(tmp_path / f"{NIGHT}[002].edf", 170, 130)
    (tmp_path / f"{NIGHT}.rml").write_text(rml())
    epochs, dropped = night(tmp_path)
    assert begins(epochs) == [0, 30, 60, 180, 210, 240, 270]
    assert [one.index for one in epochs] == [0, 1, 2, 6, 7, 8, 9] and stages(epochs) == [0, 0, 1, 3, 3, 3, 3]
    (gap,) = dropped
    assert gap.epochs == 3 and gap.reason.startswith("gap: ")
    for part in (f"{NIGHT}[001].edf ends at 2019-03-01 22:16:40", f"{NIGHT}[002].edf begins at 2019-03-01 22:17:50"):
        assert part in gap.reason


def test_headers_in_whole_seconds_make_no_gap_and_no_seam(tmp_path: Path) -> None:
    """The first part has 100.7 s and the next header says second 100: the audio goes on as it was recorded."""
    whole = seconds_signal(0, 300)
    for number, (first, last, clock) in enumerate([(0, 1007, 0), (1007, 3000, 100)], 1):
        part = whole._replace(samples=whole.samples[first * 1600 : last * 1600])
        start = START + timedelta(seconds=clock)
        (tmp_path / f"{NIGHT}[00{number}].edf").write_bytes(edf_bytes([part], start=start, record_s=0.1))
    epochs, dropped = night(tmp_path)
    assert begins(epochs) == list(range(0, 300, 30)) and dropped == []


def test_parts_that_overlap_are_used_once(tmp_path: Path) -> None:
    write_part(tmp_path / f"{NIGHT}[001].edf", 0, 100)
    write_part(tmp_path / f"{NIGHT}[002].edf", 80, 100)
    write_part(tmp_path / f"{NIGHT}[003].edf", 80, 100)
    epochs, dropped = night(tmp_path)
    assert begins(epochs) == [0, 30, 60, 90, 120, 150]
    assert [(one.epochs, one.reason.partition(":")[0]) for one in dropped] == [(0, "overlap"), (0, "overlap")]


@pytest.mark.parametrize("date_goes_on", [True, False])
def test_midnight(date_goes_on: bool, tmp_path: Path) -> None:
    """Also with recorders that keep the date of the first part."""
    start = datetime(2019, 12, 31, 23, 58, 0)
    write_part(tmp_path / f"{NIGHT}[001].edf", 0, 120, start=start)
    later = start if date_goes_on else start - timedelta(days=1)
    write_part(tmp_path / f"{NIGHT}[002].edf", 120, 120, start=later)
    (tmp_path / f"{NIGHT}.rml").write_text(rml(start=start, seconds=240))
    epochs, dropped = night(tmp_path)
    assert begins(epochs) == list(range(0, 240, 30)) and stages(epochs) == [0, 0, 1, 1, 2, 2, 3, 3] and dropped == []


@pytest.mark.parametrize(("late", "first", "lost"), [(-70, 20, 3), (0, 0, 0), (70, 10, 0), (-60, 0, 2)])
def test_labels_that_begin_earlier_or_later(late: int, first: int, lost: int, tmp_path: Path) -> None:
    """Epochs lie on the grid of the scoring; the stage is that of the clock."""
    write_part(tmp_path / f"{NIGHT}[001].edf", 0, 240)
    points = [(0, "Wake"), (60, "NonREM1"), (120, "NonREM3"), (180, "REM")]
    text = rml(
        [one for one in points if one[0] < 240 - late], start=START + timedelta(seconds=late), seconds=240 - late
    )
    (tmp_path / f"{NIGHT}.rml").write_text(text)
    epochs, dropped = night(tmp_path)
    starts = begins(epochs)
    assert starts == list(range(first, 240 - 29, 30)) and [one.index for one in epochs] == list(range(len(starts)))
    expected = [UNSCORED if at < late else min(3, (at - late) // 60) for at in starts]
    assert stages(epochs) == expected
    assert [one for one in dropped if one.epochs] == ([] if not lost else [dropped[0]])
    if lost:
        assert dropped[0].epochs == lost and dropped[0].reason.startswith(f"no audio: {NIGHT}.rml begins at 2019")
    if late == 70:
        assert dropped[0].reason.startswith("unscored: ") and "22:16:10" in dropped[0].reason


def test_the_offset_moves_the_labels(tmp_path: Path) -> None:
    write_part(tmp_path / f"{NIGHT}[001].edf", 0, 240)
    (tmp_path / f"{NIGHT}.rml").write_text(rml(seconds=240))
    epochs, _ = night(tmp_path, label_offset_s=9)
    assert begins(epochs) == list(range(9, 240 - 29, 30)) and stages(epochs) == [0, 0, 1, 1, 2, 2, 3]
    epochs, _ = night(tmp_path, label_offset_s=-9)
    assert begins(epochs) == list(range(21, 240 - 29, 30)) and stages(epochs) == [0, 1, 1, 2, 2, 3, 3]


def test_a_label_file_of_another_night_is_refused(tmp_path: Path) -> None:
    write_part(tmp_path / f"{NIGHT}[001].edf", 0, 60)
    (tmp_path / f"{NIGHT}.rml").write_text(rml(start=START + timedelta(days=1), seconds=28800))
    other = "another night: .*rml is from 2019-03-02 22:15:00 to 2019-03-03 06:15:00, .*edf from 2019-03-01 22:15:00 to"
    with pytest.raises(DecodeError, match=other):
        night(tmp_path)
    (tmp_path / f"{NIGHT}.rml").write_text(rml(start=START - timedelta(hours=5), seconds=28800))
    with pytest.raises(DecodeError, match=r"another night: .*17:15:00.*22:15:00.*max_start_difference_h"):
        night(tmp_path)
    epochs, _ = night(tmp_path, max_start_difference_h=6)
    assert stages(epochs) == [3, 3]


def test_hidden_dates_leave_the_time_of_day(tmp_path: Path) -> None:
    write_part(tmp_path / f"{NIGHT}[001].edf", 0, 120, start=datetime(1985, 1, 1, 0, 1, 0))
    (tmp_path / f"{NIGHT}.rml").write_text(rml(start=datetime(2019, 3, 1, 23, 59, 0)))
    epochs, _ = night(tmp_path)
    assert stages(epochs) == [2, 2, 3, 3]


@pytest.mark.parametrize("promised", [None, 600, -1])
def test_what_is_whole_of_a_truncated_file_is_kept(promised: int | None, tmp_path: Path) -> None:
    """Cut inside record 100; the header says 300 or 600 records, or -1 (unknown)."""
    path = tmp_path / f"{NIGHT}[001].edf"
    write_part(path, 0, 300, promised=promised)
    path.write_bytes(path.read_bytes()[: 256 * 3 + 100 * 32200 + 4567])
    (tmp_path / f"{NIGHT}.rml").write_text(rml(seconds=promised or 300))
    epochs, dropped = night(tmp_path)
    assert begins(epochs) == [0, 30, 60] and stages(epochs) == [0, 0, 1]
    (one,) = [one for one in dropped if one.reason.startswith("truncated: ")]
    assert path.name in one.reason
    if promised == -1:
        assert one.epochs == 0
    else:
        assert one.epochs == (promised or 300) // 30 - 3 and f"100 of {promised or 300} records" in one.reason


def test_a_truncated_part_in_the_middle(tmp_path: Path) -> None:
    """What is missing is counted as truncated up to where the part should end, and as a gap behind it."""
    path = tmp_path / f"{NIGHT}[001].edf"
    write_part(path, 0, 150)
    path.write_bytes(path.read_bytes()[: 256 * 3 + 70 * 32200])
    write_part(tmp_path / f"{NIGHT}[002].edf", 210, 90)
    epochs, dropped = night(tmp_path)
    assert begins(epochs) == [0, 30, 210, 240, 270] and [one.index for one in epochs] == [0, 1, 7, 8, 9]
    assert [(one.reason.partition(":")[0], one.epochs) for one in dropped] == [("truncated", 3), ("gap", 2)]


def test_more_bytes_than_the_header_says_are_not_audio(tmp_path: Path) -> None:
    write_part(tmp_path / f"{NIGHT}[001].edf", 0, 120, promised=60)
    epochs, dropped = night(tmp_path)
    assert begins(epochs) == [0, 30] and dropped == []


def test_one_bad_part_leaves_the_others(tmp_path: Path) -> None:
    write_part(tmp_path / f"{NIGHT}[001].edf", 0, 60)
    (tmp_path / f"{NIGHT}[002].edf").write_bytes(b"not EDF")
    write_part(tmp_path / f"{NIGHT}[003].edf", 120, 60)
    (tmp_path / f"{NIGHT}[004].edf").write_bytes(b"")
    epochs, dropped = night(tmp_path)
    assert begins(epochs) == [0, 30, 120, 150] and [one.index for one in epochs] == [0, 1, 4, 5]
    assert [one.epochs for one in dropped] == [2, 0]
    assert all(one.reason.startswith(f"unreadable: {NIGHT}[00{k}].edf") for k, one in zip((2, 4), dropped, strict=True))


def test_labels_that_end_early_leave_the_rest_unscored(tmp_path: Path) -> None:
    write_part(tmp_path / f"{NIGHT}[001].edf", 0, 300)
    (tmp_path / f"{NIGHT}.rml").write_text(rml(seconds=200))
    epochs, dropped = night(tmp_path)
    assert stages(epochs) == [0, 0, 1, 1, 2, 2, 3, UNSCORED, UNSCORED, UNSCORED]
    (one,) = dropped
    assert one.epochs == 0 and one.reason.startswith(f"unscored: {NIGHT}.rml ends at 2019-03-01 22:18:20")
    epochs, dropped = night(tmp_path, unscored="drop")
    assert len(epochs) == 7 and sum(one.epochs for one in dropped) == 3


def test_an_rml_that_is_cut_off(tmp_path: Path) -> None:
    write_part(tmp_path / f"{NIGHT}[001].edf", 0, 300)
    text = rml()
    (tmp_path / f"{NIGHT}.rml").write_text(text[: text.index('Start="180"') + 3])
    epochs, dropped = night(tmp_path)
    assert stages(epochs) == [0, 0, 1, 1, 2] + [UNSCORED] * 5
    assert any(f"{NIGHT}.rml is cut off at line 5" in one.reason for one in dropped)


def test_a_missing_channel_names_those_there_are(tmp_path: Path) -> None:
    write_part(tmp_path / f"{NIGHT}[001].edf", 0, 60)
    with pytest.raises(DecodeError, match=r"no channel: .*\.edf has no channel 'Tracheal'; .* one of: Flow, Mic"):
        night(tmp_path, channel="Tracheal")
    assert len(night(tmp_path, channel=["Tracheal", "mic"])[0]) == 2


def test_machine_staging_only_if_asked(tmp_path: Path) -> None:
    write_part(tmp_path / f"{NIGHT}[001].edf", 0, 60)
    (tmp_path / f"{NIGHT}.rml").write_text(rml(stages=(), machine=[(0, "REM")], seconds=60))
    epochs, dropped = night(tmp_path)
    assert stages(epochs) == [UNSCORED, UNSCORED]
    assert f"{NIGHT}.rml has only MachineStaging; set the source's staging to 'machine'" in dropped[0].reason
    for staging in ("machine", "any"):
        assert stages(night(tmp_path, staging=staging)[0]) == [3, 3]
    (tmp_path / f"{NIGHT}.rml").write_text(rml(stages=[(0, "Wake")], machine=[(0, "REM")], seconds=60))
    assert [stages(night(tmp_path, staging=kind)[0])[0] for kind in ("user", "machine", "any")] == [0, 3, 0]


def test_edf_plus_with_its_own_stages(tmp_path: Path) -> None:
    told = [Tal(0, 30, "Sleep stage W"), Tal(30, 30, "Sleep stage N2"), Tal(60, 30, "Sleep stage R"), Tal(65, 3, "A")]
    told += [Tal(90, 30, "Sleep stage ?"), Tal(120, 30, "Sleep stage 4"), Tal(0, None, "Lights off")]
    data = edf_bytes([seconds_signal(0, 180)], plus="EDF+C", annotations=told)
    (tmp_path / "sc-1.edf").write_bytes(data)
    epochs, dropped = night(tmp_path)
    assert begins(epochs) == list(range(0, 180, 30))
    assert stages(epochs) == [0, 1, 3, UNSCORED, 2, UNSCORED]
    assert [one.reason.startswith("unscored: sc-1.edf ends at") for one in dropped] == [True]
    bare = [Tal(30 * k, 30, name) for k, name in enumerate("W1234R")]
    (tmp_path / "sc-1.edf").write_bytes(edf_bytes([seconds_signal(0, 180)], plus="EDF+C", annotations=bare))
    assert stages(night(tmp_path)[0]) == [0, 1, 1, 2, 2, 3]
    assert stages(night(tmp_path, scoring="none")[0]) == [UNSCORED] * 6


def test_edf_plus_begins_a_fraction_of_a_second_late(tmp_path: Path) -> None:
    told = [Tal(0.25, 60, "Sleep stage W"), Tal(60.25, 60, "Sleep stage N3")]
    onsets = [0.25 + k for k in range(120)]
    data = edf_bytes([seconds_signal(0, 120)], plus="EDF+C", annotations=told, onsets=onsets)
    (tmp_path / "sc-1.edf").write_bytes(data)
    epochs, _ = night(tmp_path)
    assert begins(epochs) == [0, 30, 60, 90] and stages(epochs) == [0, 0, 2, 2]


def test_time_stamps_place_the_records_of_edf_d(tmp_path: Path) -> None:
    """100 records, a pause of 70 s, 100 records; stages by clock. Records last half a second."""
    onsets = [0.5 * k for k in range(200)] + [170 + 0.5 * k for k in range(200)]
    audio = np.concatenate([seconds_signal(0, 100).samples, seconds_signal(170, 100).samples])
    told = [Tal(0, 60, "Sleep stage W"), Tal(60, 120, "Sleep stage N1"), Tal(180, 90, "Sleep stage R")]
    data = edf_bytes([Signal("Mic", audio, 16000)], record_s=0.5, plus="EDF+D", onsets=onsets, annotations=told)
    (tmp_path / "sc-1.edf").write_bytes(data)
    epochs, dropped = night(tmp_path)
    assert begins(epochs) == [0, 30, 60, 180, 210, 240] and [one.index for one in epochs] == [0, 1, 2, 6, 7, 8]
    assert stages(epochs) == [0, 0, 1, 3, 3, 3]
    assert [(one.epochs, one.reason.partition(":")[0]) for one in dropped] == [(3, "gap")]


@pytest.mark.parametrize("record_s", [0.25, 7, 30, 60, 90])
def test_records_need_not_last_a_second(record_s: float, tmp_path: Path) -> None:
    (tmp_path / "a.edf").write_bytes(edf_bytes([seconds_signal(0, 360)], record_s=record_s))
    epochs, _ = night(tmp_path)
    assert begins(epochs) == list(range(0, int(360 // record_s * record_s) - 29, 30))


def test_samples_are_physical_values_over_the_largest_of_the_night(tmp_path: Path) -> None:
    """Two parts with other ranges have one scale; an inverted range inverts the sound."""
    quiet = Signal("Mic", np.full(30 * 16000, 1000, np.int16), 16000, (-2000, 2000), (-50.0, 50.0))
    loud = Signal("Mic", np.full(30 * 16000, 1000, np.int16), 16000, (-2000, 2000), (200.0, -200.0))
    (tmp_path / "a[1].edf").write_bytes(edf_bytes([quiet]))
    (tmp_path / "a[2].edf").write_bytes(edf_bytes([loud], start=START + timedelta(seconds=30)))
    epochs, _ = night(tmp_path)
    assert np.allclose(epochs[0].samples, 25 / 200, atol=1e-6) and np.allclose(epochs[1].samples, -100 / 200, atol=1e-6)


def test_an_offset_in_the_physical_range_stays(tmp_path: Path) -> None:
    signal = Signal("Mic", np.array([-100, 0, 100, 300] * 120000, np.int16), 16000, (-100, 300), (0.0, 8.0))
    (tmp_path / "a.edf").write_bytes(edf_bytes([signal]))
    assert np.allclose(night(tmp_path)[0][0].samples[:4], [0, 0.25, 0.5, 1.0], atol=1e-6)


def test_a_range_without_meaning_is_full_scale(tmp_path: Path) -> None:
    signal = Signal("Mic", np.full(30 * 16000, 16384, np.int16), 16000, (-32768, 32767), (0.0, 0.0))
    (tmp_path / "a.edf").write_bytes(edf_bytes([signal]))
    assert np.array_equal(night(tmp_path)[0][0].samples, np.full(EPOCH_SAMPLES, 0.5, np.float32))


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_blocks_and_parts_leave_no_seam(rate: int, tmp_path: Path) -> None:
    """A night of two parts, read in blocks, has the same bits as the whole night resampled at once."""
    noise = np.random.default_rng(rate).normal(0, 8000, 95 * rate).clip(-32768, 32767).astype(np.int16)
    for number, (first, last) in enumerate([(0, 40), (40, 95)], 1):
        part = Signal("Mic", noise[first * rate : last * rate], rate)
        (tmp_path / f"a[{number}].edf").write_bytes(edf_bytes([part], start=START + timedelta(seconds=first)))
    epochs, _ = night(tmp_path)
    scaled = noise.astype(np.float32) * np.float32(2 / 65535) + np.float32(32768 * 2 / 65535 - 1)
    whole = decode.resample(scaled, rate).clip(-1, 1)
    assert len(epochs) == 3
    assert np.array_equal(np.concatenate([one.samples for one in epochs]), whole[: 3 * EPOCH_SAMPLES])


LABELS = {
    "a.csv": "onset,duration,stage\n0,60,W\n60,30,N2\n90,30,R\n",
    "a.CSV": "Start;Stage\n0;Sleep stage W\n60;S2\n90;REM\n",
    "a-hypnogram.csv": "epoch,stage\n1,W\n2,W\n3,N1\n4,REM\n",
    "a.tsv": "epoch\tstage\n0\t0\n1\t0\n2\t2\n3\t5\n",
    "a.txt": "# by hand\nW\nWake\nN1\n\nR\n",
}


@pytest.mark.parametrize("name", LABELS)
def test_hypnograms_beside_audio(name: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, 125 * 16000)
    soundfile.write(tmp_path / "a.wav", noise, 16000)
    (tmp_path / name).write_text(LABELS[name])
    epochs, dropped = night(tmp_path)
    assert stages(epochs) == [0, 0, 1, 3] and dropped == []


@pytest.mark.parametrize(
    ("format", "rate"), [("wav", 44100), ("flac", 16000), ("flac", 22050), ("ogg", 8000), ("mp3", 16000)]
)
def test_audio_files_are_read_in_blocks_without_a_seam(format: str, rate: int, tmp_path: Path) -> None:
    """The same bits as if the file was decoded and resampled as a whole; MP3 decodes to a last bit that varies."""
    noise = np.random.default_rng(0).normal(0, 0.05, (65 * rate, 2)).astype(np.float32)
    soundfile.write(tmp_path / f"a.{format}", noise, rate)
    epochs, dropped = night(tmp_path)
    whole = decode.decode((tmp_path / f"a.{format}").read_bytes())
    assert len(epochs) == 2 and dropped == []
    heard = np.concatenate([one.samples for one in epochs])
    assert np.abs(heard - whole[: 2 * EPOCH_SAMPLES]).max() <= (1e-7 if format == "mp3" else 0)


@pytest.mark.long
@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("m4a", "-c:a aac"),
        ("webm", "-c:a libopus"),
        ("mp3", "-q:a 4 -write_xing 0"),
        ("wav", "-f wav"),
        ("w64", "-f w64"),
    ],
)
def test_audio_of_phones_and_of_pipes(suffix: str, options: str, tmp_path: Path) -> None:
    """Nights in every container, also where the header does not know the length."""
    noise = np.random.default_rng(0).normal(0, 0.05, 65 * 16000).astype(np.float32)
    soundfile.write(tmp_path / "source.flac", noise, 16000)
    made = ffmpeg(
        "-i", str(tmp_path / "source.flac"), *options.split(), "-" if "-f" in options else f"{tmp_path}/a.{suffix}"
    )
    if made:
        (tmp_path / f"a.{suffix}").write_bytes(made)
    (tmp_path / "source.flac").unlink()
    epochs, dropped = night(tmp_path)
    assert [one.index for one in epochs] == [0, 1] and dropped == []
    heard, given = (np.fft.rfft(one) for one in (epochs[1].samples, noise[EPOCH_SAMPLES : 2 * EPOCH_SAMPLES]))
    alike = np.fft.irfft(heard * given.conj())  # codecs delay: the largest of all shifts
    assert alike.max() > 0.5 * np.sqrt(np.mean(np.abs(heard) ** 2) * np.mean(np.abs(given) ** 2))


def test_chained_streams_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.ogg", np.random.default_rng(0).normal(0, 0.05, 35 * 16000), 16000)
    (tmp_path / "a.ogg").write_bytes((tmp_path / "a.ogg").read_bytes() * 2)
    with pytest.raises(DecodeError, match=r"^unreadable: a\.ogg: 2 chained streams; convert the file to FLAC$"):
        night(tmp_path)


def test_truncated_audio_keeps_what_is_whole(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, 120 * 16000)
    for format in ("wav", "flac"):
        path = tmp_path / format / f"a.{format}"
        path.parent.mkdir()
        soundfile.write(path, noise, 16000)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 5 // 8])
        epochs, dropped = night(tmp_path / format)
        assert [one.index for one in epochs] == [0, 1]
        (one,) = dropped
        assert one.epochs == 2 and f"a.{format}" in one.reason, one
        assert one.reason.startswith("truncated: " if format == "wav" else ("truncated: ", "unreadable: "))


def test_audio_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF____WAVE")
    with pytest.raises(DecodeError, match=r"unreadable: a\.wav: "):
        night(tmp_path)
    soundfile.write(tmp_path / "a.wav", np.zeros((16000, 3)), 16000)
    with pytest.raises(DecodeError, match=r"3 channels: a\.wav"):
        night(tmp_path)
    broken = np.zeros(70 * 16000, np.float32)
    broken[40 * 16000] = np.nan
    soundfile.write(tmp_path / "a.wav", broken, 16000, subtype="FLOAT")
    epochs, dropped = night(tmp_path)
    assert len(epochs) == 1 and dropped[0].reason.startswith("not finite: a.wav") and dropped[0].epochs == 1


def test_no_labels(tmp_path: Path) -> None:
    write_part(tmp_path / "a.edf", 0, 60)
    epochs, dropped = night(tmp_path)
    assert stages(epochs) == [UNSCORED] * 2 and dropped == []
    with pytest.raises(DecodeError, match=r"no scoring: a\.edf has no labels"):
        night(tmp_path, unscored="drop")


def test_unscored_epochs_can_be_dropped(tmp_path: Path) -> None:
    write_part(tmp_path / "a.edf", 0, 180)
    (tmp_path / "a.txt").write_text("W\n?\nMovement\nN2\n?\n")
    epochs, dropped = night(tmp_path, unscored="drop")
    assert [(one.index, one.stage) for one in epochs] == [(0, 0), (3, 1)]
    kinds = [(one.reason, one.epochs) for one in dropped if one.epochs]
    assert kinds == [("unscored: a.txt gives no stage", 3), ("unscored: a.txt ends earlier", 1)]


def test_subjects(tmp_path: Path) -> None:
    for path in ("7-1.edf", "s8/n1.edf", "s8/9-2.edf", "n3.edf"):
        write_part(tmp_path / path, 0, 1)

    def subjects(**keys: object) -> dict[str, str | None]:
        return {one.name: one.speaker for one in source(tmp_path, **keys).list()}

    assert subjects() == {"7-1": "7", "s8/n1": "s8", "s8/9-2": "9", "n3": "n3"}
    assert subjects(subject="folder", files="s8/*") == {"s8/n1": "s8", "s8/9-2": "s8"}
    assert subjects(subject=r"(\d)")["s8/9-2"] == "8"
    with pytest.raises(CorpusError, match=r"7-1\.edf: the source's subject '\^\(q\)' finds nothing"):
        list(source(tmp_path, subject="^(q)").list())
    for bad in ("(", "x"):
        with pytest.raises(ValidationError, match="subject"):
            NightFilesConfig(uri=str(tmp_path), subject=bad)


def test_labels_of_one_name_in_several_folders(tmp_path: Path) -> None:
    for folder in ("s1", "s2"):
        write_part(tmp_path / f"audio/{folder}/night.edf", 0, 30)
    for folder, stage in (("s1", "W"), ("s2", "R")):
        (tmp_path / "labels" / folder).mkdir(parents=True)
        (tmp_path / f"labels/{folder}/night.txt").write_text(stage)
    keys = {"scorings": str(tmp_path / "labels")}
    made = source(tmp_path / "audio", **keys)
    assert [stages(split(made, one)[0]) for one in made.list()] == [[0], [3]]
    (tmp_path / "labels/s2/night.txt").unlink()  # the other night's label is not taken instead
    assert [stages(split(made, one)[0]) for one in made.list()] == [[0], [UNSCORED]]
    (tmp_path / "labels/s1/night.txt").rename(tmp_path / "labels/night.txt")
    with pytest.raises(CorpusError, match=r"night\.txt: fits the nights s1/night and s2/night"):
        list(made.list())


def test_two_label_files_are_refused(tmp_path: Path) -> None:
    write_part(tmp_path / "a.edf", 0, 30)
    (tmp_path / "a.txt").write_text("W")
    (tmp_path / "a-stages.txt").write_text("R")
    with pytest.raises(DecodeError, match=r"2 label files: a-stages\.txt, a\.txt; keep one"):
        night(tmp_path)
    (tmp_path / "a.rml").write_text(rml())  # of several forms the first is taken
    assert stages(night(tmp_path)[0]) == [0]


def test_one_file_is_a_source(tmp_path: Path) -> None:
    write_part(tmp_path / "7-1.edf", 0, 60)
    (tmp_path / "7-1.rml").write_text(rml())
    (tmp_path / "other.txt").write_text("R\nR\n")
    made = source(tmp_path / "7-1.edf")
    (reference,) = made.list()
    assert (reference.name, reference.speaker) == ("7-1", "7")
    assert made.place(reference) == f"{tmp_path}/7-1.edf"
    assert stages(split(made, reference)[0]) == [0, 0]
    assert stages(night(tmp_path / "7-1.edf", scorings=f"{tmp_path}/other.txt")[0]) == [3, 3]


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    for keys, message in [
        ({"uri": str(tmp_path / "none")}, "none: no such folder; correct the source's uri"),
        ({"uri": str(tmp_path)}, r"no \.edf or audio file matches '\*'"),
    ]:
        with pytest.raises(CorpusError, match=message):
            list(NightFilesConfig.model_validate(keys).build().list())
    write_part(tmp_path / "a.edf", 0, 30)
    with pytest.raises(CorpusError, match="labels: no such folder; correct the source's scorings"):
        list(source(tmp_path, scorings=str(tmp_path / "labels")).list())
    soundfile.write(tmp_path / "a.wav", np.zeros(100), 16000)
    with pytest.raises(CorpusError, match=r"a\.edf and a\.wav are both night 'a'; set the source's kind"):
        list(source(tmp_path).list())
    assert [one.locator for one in source(tmp_path, kind="audio").list()] == [(0, "a.wav")]


def test_a_file_that_vanishes_is_one_line(tmp_path: Path) -> None:
    for name in ("a.edf", "b.edf"):
        write_part(tmp_path / name, 0, 30)
    (tmp_path / "a.txt").write_text("W")
    soundfile.write(tmp_path / "c.wav", np.zeros(100), 16000)
    made = source(tmp_path)
    a, b, c = made.list()
    for name in ("a.txt", "b.edf", "c.wav"):
        (tmp_path / name).unlink()
    for reference, message in ((a, r"unreadable: .*a\.txt"), (b, r"b\.edf is absent"), (c, r"c\.wav is absent")):
        with pytest.raises(DecodeError, match=message):
            list(made.epochs(reference))


def test_located_settings_name_absolute_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    located = NightFilesConfig(uri="edf", scorings="rml").located()
    assert (located.uri, located.scorings) == (str(tmp_path / "edf"), str(tmp_path / "rml"))


@pytest.mark.s3
def test_nights_of_an_object_store_are_those_of_a_folder(s3_server: Any, tmp_path: Path) -> None:
    """Names with brackets and %5B, EDF+D, an audio file."""
    write_part(tmp_path / f"edf/{NIGHT}%5B001%5D.edf", 0, 100)
    write_part(tmp_path / f"edf/{NIGHT}[002].edf", 130, 100, plus="EDF+C")
    (tmp_path / "rml").mkdir()
    (tmp_path / f"rml/{NIGHT}.rml").write_text(rml())
    onsets = [*range(40), *range(100, 140)]
    told = [Tal(0, 60, "Sleep stage W"), Tal(60, 90, "Sleep stage R")]
    data = edf_bytes([seconds_signal(0, 80)], plus="EDF+D", onsets=onsets, annotations=told)
    (tmp_path / "d.edf").write_bytes(data)
    soundfile.write(tmp_path / "w.flac", np.random.default_rng(0).normal(0, 0.1, 44100 * 40), 44100)
    (tmp_path / "w.txt").write_text("W\n")
    bucket = s3_server.bucket("night-files")
    for path in sorted(tmp_path.rglob("*.*")):
        storage.write_bytes(f"{bucket}/all/{path.relative_to(tmp_path)}", path.read_bytes())
    here, there = source(tmp_path), NightFilesConfig(uri=f"{bucket}/all").build()
    references = list(here.list())
    assert list(there.list()) == references and len(references) == 3
    for reference in references:
        near, far = split(here, reference), split(there, reference)
        assert near[1] == far[1] and len(near[0]) == len(far[0]) > 0
        for a, b in zip(near[0], far[0], strict=True):
            assert (a.index, a.stage) == (b.index, b.stage) and np.array_equal(a.samples, b.samples)
