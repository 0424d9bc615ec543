"""Lists, tars and Parquet files that users meet: nothing is passed over without a word."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayssl.data import corpus, listing
from rayssl.data.corpus import PreparedCorpusConfig
from rayssl.data.sources.folder import FolderConfig
from rayssl.data.sources.parquet import ParquetConfig
from rayssl.data.sources.webdataset import WebDatasetConfig
from rayssl.errors import CorpusError
from tests.data.corpora import clips, encoded, listed, read, sine

SOUND = {
    "commas": b"path,speaker,label\na.wav,s1,x\n",
    "a byte-order mark": b"\xef\xbb\xbfpath,speaker,label\na.wav,s1,x\n",
    "spaces": b"path, speaker , label\na.wav, s1, x\n",
    "tabs": b"path\tspeaker\tlabel\r\na.wav\ts1\tx\r\n",
    "semicolons": b"path;speaker;label\na.wav;s1;x\n",
    "quotes, another column and empty lines": b'"path","speaker","label","age"\n\n"a.wav","s1","x","3"\n\n',
}
WRONG = {
    "path,Speaker\na.wav,s1\n": "line 1: the column 'Speaker' must be called 'speaker', or something else",
    "path,speakers\na.wav,s1\n": "line 1: the column 'speakers' must be called 'speaker', or something else",
    "Path,speaker\na.wav,s1\n": "line 1: the column 'Path' must be called 'path', or something else",
    "path,speaker,speaker\na.wav,s1,s2\n": "line 1: the column 'speaker' comes twice",
    "name,speaker\na.wav,s1\n": r"line 1: no column 'path' \(found: name, speaker\)",
    "": r"line 1: no column 'path' \(found: nothing\)",
    "path,speaker\na.wav\n": "line 2: expected 2 columns with a path",
    "path,speaker\n,s1\n": "line 2: expected 2 columns with a path",
    "path,speaker\na.wav,s1,s2\n": "line 2: expected 2 columns with a path",
}


@pytest.mark.parametrize("kind", SOUND)
def test_lists_of_every_kind_are_read(tmp_path: Path, kind: str) -> None:
    (tmp_path / "list.csv").write_bytes(SOUND[kind])
    (one,) = listed(FolderConfig(uri=str(tmp_path), csv=str(tmp_path / "list.csv")))
    assert (one.name, one.speaker, one.label) == ("a.wav", "s1", "x")


@pytest.mark.parametrize("text", WRONG)
def test_a_list_that_would_lose_something_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(CorpusError, match=rf"list\.csv: {WRONG[text]}"):
        listed(FolderConfig(uri=str(tmp_path), csv=str(tmp_path / "list.csv")))


def tar(place: Path, members: list[tuple[str, bytes]]) -> WebDatasetConfig:
    with tarfile.open(place, "w") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return WebDatasetConfig(uri=str(place))


ONE = encoded(sine(1))


@pytest.mark.parametrize("names", [("S1.a.wav", "S1.b.wav"), ("x/1.wav", "./x/1.wav"), ("1.wav", "1.flac")])
def test_two_members_of_one_key_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    config = tar(tmp_path / "0.tar", [(name, ONE) for name in names])
    with pytest.raises(CorpusError, match=rf"0\.tar: two audio members of '.*', the second is {names[1]}; a name"):
        listed(config)


def test_a_damaged_or_cut_tar_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "0.tar"
    config = tar(place, [(f"{number}.flac", ONE) for number in range(3)])
    whole = place.read_bytes()
    assert len(listed(config)) == 3
    member = (512 + len(ONE) + 511) // 512 * 512
    damaged = bytearray(whole)
    damaged[member + 150] ^= 0xFF  # the checksum of the second header
    for data in (bytes(damaged), whole[: 2 * member], whole[: 3 * member], whole[: 2 * member + 100]):
        place.write_bytes(data)
        with pytest.raises(CorpusError, match=r"0\.tar: (the tar is damaged or cut at byte|not a complete)"):
            listed(config)


def test_what_macos_adds_is_not_of_the_corpus(tmp_path: Path) -> None:
    members = [("a/0.flac", ONE), ("a/._0.flac", b"x"), ("a/0.json", b'{"speaker": "s"}'), ("a/._0.json", b"\0")]
    (one,) = listed(tar(tmp_path / "0.tar", members))
    assert (one.name, one.speaker) == ("a/0", "s")


def parquet(folder: Path, **columns: Any) -> ParquetConfig:
    pq.write_table(pa.table(columns), folder / "0.parquet")
    return ParquetConfig(uri=str(folder), speaker="speaker" if "speaker" in columns else None)


def test_what_pandas_writes_for_nothing_is_no_speaker(tmp_path: Path) -> None:
    speaker = pa.array([float("nan"), None, 3.0])
    found = listed(parquet(tmp_path, id=["a", "b", "c"], audio=[ONE] * 3, speaker=speaker))
    assert [one.speaker for one in found] == [None, None, "3.0"]


@pytest.mark.parametrize(
    "audio",
    [
        pa.array(["a.wav"]),
        pa.array([{"array": [0.1], "sampling_rate": 16000}]),
        pa.array([[1, 2]]),
        pa.array([{"bytes": "text"}]),
    ],
)
def test_a_column_without_bytes_is_told_before_anything_is_read(tmp_path: Path, audio: pa.Array) -> None:
    with pytest.raises(CorpusError, match=r"the column 'audio' \(the source's audio\) is .*must hold encoded bytes"):
        listed(parquet(tmp_path, id=["a"], audio=audio))


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_bytes_of_every_type_are_read(tmp_path: Path, kind: pa.DataType) -> None:
    config = parquet(tmp_path, id=["a"], audio=pa.array([ONE], kind))
    assert read(config, listed(config)) == {"a": ONE}
    nested = parquet(tmp_path, id=["a"], audio=pa.array([{"bytes": ONE, "path": "x"}]))
    assert read(nested, listed(nested)) == {"a": ONE}


def test_damaged_pages_are_one_line_that_names_the_file(tmp_path: Path) -> None:
    rows = list(clips().values())
    config = parquet(tmp_path, id=[str(k) for k in range(len(rows))], audio=rows)
    place, references = tmp_path / "0.parquet", listed(config)
    data = place.read_bytes()
    seen = 0
    for at in range(4, len(data) - 8, max(1, len(data) // 150)):
        place.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        refused = faults(config, references)
        assert refused is None or refused.startswith(str(place))
        seen += refused is not None
    assert seen


def faults(config: ParquetConfig, references: list[Any]) -> str | None:
    try:
        listed(config)
        read(config, references)
    except CorpusError as error:
        return str(error)
    return None


def test_members_that_are_passed_over_are_counted_in_every_tar(tmp_path: Path) -> None:
    """Also where each tar is listed elsewhere: the counts travel with the rows."""
    (tmp_path / "in").mkdir()
    for number in range(3):
        sound = encoded(sine(number, 0.3))
        members = [(f"{number}.flac", sound), (f"._{number}.flac", b"x"), (f"{number}.txt", b"hi"), ("README", b"x")]
        source = tar(tmp_path / "in" / f"{number}.tar", members)
    source = source.model_copy(update={"uri": str(tmp_path / "in")})
    settings = PreparedCorpusConfig.model_validate({"source": source, "out": str(tmp_path / "out"), "min_s": 0})
    batches = [batch for part in ("0.tar", "1.tar", "2.tar") for batch in listing.list_rows(settings, 0, part)]
    found = corpus.plan(settings, 0, batches)
    assert found.passed_over == {"hidden": 3, ".txt": 3, "without a suffix": 3} and found.sources == 3
