"""The files of ../shared/cases, made after public bug reports, each with the answer that its README gives.

Files of the same kinds that everybody can make are in test_containers.py, test_ffmpeg.py, test_media.py and
sources/test_listings.py; names are in test_names.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from rayssl.cli import main
from rayssl.data import decode, shards, trials
from rayssl.data.sources.registry import SOURCES
from rayssl.errors import CorpusError
from rayssl.evaluation.verification import verification_result
from tests.data.corpora import listed

CASES = Path(__file__).parents[2].parent / "shared/cases"
pytestmark = pytest.mark.skipif(not CASES.exists(), reason="../shared/cases is not beside this checkout")

SECONDS = {
    "mp3_no_xing_cut_short.mp3": 2.088,
    "mp3_cbr_pipe_refused.mp3": 2.088,
    "flac_unknown_length_refused.flac": 0.5,
    "wav_gsm610_refused.wav": 2.0,
    "wav_riff_8_too_big_refused.wav": 0.5,
    "wav_stream_80000024_refused.wav": 0.5,
}
REFUSED = {
    "flac_total_2e36_MemoryError.flac": "truncated or damaged",
    "wav_rate_1_hz_bomb.wav": "implausible rate: 1 Hz",
    "aiff_truncated_accepted.aiff": "truncated",
    "ogg_truncated_accepted.ogg": "truncated",
    "wav_data_cut_riff_right.wav": "truncated",
    "ogg_half_empty_message.ogg": "truncated",
    "wav_float_in_int16_scale.wav": "too loud",
}


@pytest.mark.parametrize("name", SECONDS)
def test_audio_that_is_whole(name: str) -> None:
    seconds = len(decode.decode((CASES / name).read_bytes())) / decode.RATE
    assert seconds == pytest.approx(SECONDS[name], abs=0.08)  # MP3 and GSM are padded to whole frames


@pytest.mark.parametrize("name", REFUSED)
def test_audio_that_is_refused(name: str) -> None:
    with pytest.raises(decode.DecodeError, match=REFUSED[name]):
        decode.decode((CASES / name).read_bytes())


def test_a_size_field_of_0_reaches_to_the_end() -> None:
    assert len(decode.decode((CASES / "wav_data_size_0_called_empty.wav").read_bytes())) == 8000


def source(kind: str, **keys: Any) -> Any:
    return SOURCES.models({"name": kind}).pop()(name=kind, **keys)


@pytest.fixture
def alone(tmp_path: Path) -> Any:
    """Puts a case into a folder of its own, and gives that."""

    def put(name: str) -> str:
        shutil.copy(CASES / name, tmp_path / name)
        return str(tmp_path)

    return put


def test_a_clash_and_a_damaged_tar_are_errors(alone: Any) -> None:
    with pytest.raises(CorpusError, match=r"tar_dots_3_become_1\.tar: two audio members of '"):
        listed(source("webdataset", uri=alone("tar_dots_3_become_1.tar")))
    with pytest.raises(CorpusError, match=r"tar_bad_header_3_become_1\.tar: the tar is damaged"):
        listed(source("webdataset", uri=alone("tar_bad_header_3_become_1.tar"), files="tar_bad*"))


def test_what_macos_adds_is_passed_over(alone: Any) -> None:
    assert len(listed(source("webdataset", uri=alone("tar_appledouble_json_refused.tar")))) == 1


@pytest.mark.parametrize("name", ["list_bom.csv", "list_space_after_comma_no_speakers.csv"])
def test_lists(alone: Any, name: str) -> None:
    folder = alone(name)
    found = listed(source("folder", uri=folder, csv=f"{folder}/{name}"))
    assert found and all(one.speaker for one in found)


def test_absolute_paths_in_a_list_are_no_such_files(alone: Any) -> None:
    folder = alone("list_absolute_paths_called_empty.csv")
    settings = source("folder", uri=folder, csv=f"{folder}/list_absolute_paths_called_empty.csv")
    with pytest.raises(decode.DecodeError, match=r"^no such file; paths in the list are relative to the source's uri$"):
        settings.build().read(listed(settings)[0])


def test_parquet(alone: Any) -> None:
    folder = alone("parquet_nan_speaker.parquet")
    found = listed(source("parquet", uri=folder))
    assert None in {one.speaker for one in found} and "nan" not in {one.speaker for one in found}
    for name in ("parquet_string_paths.parquet", "parquet_hf_array.parquet"):
        with pytest.raises(CorpusError, match=rf"{name}: the column 'audio' \(the source's audio\) is "):
            listed(source("parquet", uri=alone(name), files=name, speaker=None))


def test_a_damaged_page_header_is_one_line(alone: Any) -> None:
    name = "parquet_page_header_traceback.parquet"
    settings = source("parquet", uri=alone(name))
    with pytest.raises(CorpusError, match=rf"{name}: "):
        list(settings.build().read_many(listed(settings)))


def test_trials(capsys: pytest.CaptureFixture[str]) -> None:
    assert trials.read(str(CASES / "trials_bom.txt"))
    one = trials.read(str(CASES / "trials_one_target_traceback.txt"))
    assert sorted(trial.label for trial in one) == [0, 1]
    names = [trial.enrol for trial in one], [trial.test for trial in one]
    speakers = {name: k for k, name in enumerate(dict.fromkeys([*names[0], *names[1]]))}
    places = [[speakers[name] for name in side] for side in names]
    found = verification_result(
        [0.2, 0.1], [trial.label for trial in one], *places, seed=0, resamples=10, norm="none", checkpoint="x"
    )
    assert found.eer_low is None


def test_a_section_that_comes_twice(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(CASES / "yaml_section_twice.yaml")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "training" in said and "twice" in said


def test_a_folder_that_mixes_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The counts add up to the files there are."""
    config = tmp_path / "all.yaml"
    config.write_text(
        f"corpora: {{all: {{source: {{name: folder, uri: {CASES}}}, out: {tmp_path}/out, max_reject_share: 1}}}}"
    )
    assert main(["prepare", str(config), "--local", "--quiet"]) == 0
    said = capsys.readouterr().out
    manifest = shards.read_manifest(f"{tmp_path}/out")
    passed = int(said.split("passed over ")[1].split()[0])
    files = sum(path.is_file() for path in CASES.rglob("*"))
    assert manifest.rows + manifest.rejected + passed == files
