"""Every source lists names and facts without audio, and gives back the audio it was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayssl.data import sources
from rayssl.data.sources import FolderConfig, ParquetConfig, Reference, SourceConfig, WebDatasetConfig
from rayssl.data.synthetic import SyntheticConfig
from rayssl.errors import CorpusError
from tests.data import corpora


def listed(source: SourceConfig) -> list[Reference]:
    return [reference for part in sources.parts(source) for reference in sources.list_part(source, part)]


def make(kind: str, folder: Path) -> SourceConfig:
    files = corpora.clips()
    if kind == "folder":
        return FolderConfig(uri=corpora.write_folder(folder, files), layout=["speaker", "recording"])
    if kind == "csv":
        rows = "".join(f"{name},{name.split('/')[0]},{name.split('/')[1]}\n" for name in files)
        (folder / "list.csv").write_text("path,speaker,recording\n" + rows)
        return FolderConfig(uri=corpora.write_folder(folder / "audio", files), csv=str(folder / "list.csv"))
    if kind == "webdataset":
        return WebDatasetConfig(uri=corpora.write_tar(folder / "tars" / "0.tar", files))
    uri = corpora.write_parquet(folder / "rows" / "0.parquet", files, structs=kind == "structs")
    return ParquetConfig(uri=uri, recording="session")


@pytest.mark.parametrize("kind", ["folder", "csv", "parquet", "structs", "webdataset"])
def test_a_source_gives_back_what_was_put_in(kind: str, tmp_path: Path) -> None:
    source = make(kind, tmp_path)
    references = listed(source)
    wanted = corpora.clips()
    suffix = ".flac" if kind == "webdataset" else ""
    assert {reference.name + suffix for reference in references} == set(wanted)
    some = references[::-2]  # any choice, in any order
    read = dict(sources.read(source, some))
    assert len(read) == len(some)
    for position, audio in read.items():
        name = some[position].name + suffix
        assert audio == wanted[name]
        assert [some[position].speaker, some[position].recording] == name.split("/")[:2]


def test_synthetic_speakers_of_ranges_that_do_not_meet_differ() -> None:
    first = listed(SyntheticConfig(speakers=3, recordings=2, utterances=2))
    second = listed(SyntheticConfig(speakers=3, recordings=2, utterances=2, first_speaker=3))
    assert len(first) == len(second) == 12
    assert not {reference.speaker for reference in first} & {reference.speaker for reference in second}


def test_files_choose_among_containers(tmp_path: Path) -> None:
    for name in ("train-0", "train-1", "test-0"):
        files = {f"{name}/rec/{k}.flac": b"audio" for k in range(2)}
        corpora.write_parquet(tmp_path / f"{name}.parquet", files)
    source = ParquetConfig(uri=str(tmp_path), files="train-*.parquet")
    assert {reference.speaker for reference in listed(source)} == {"train-0", "train-1"}


def test_where_keeps_rows_and_the_places_that_they_have(tmp_path: Path) -> None:
    files = corpora.clips()
    uri = corpora.write_parquet(tmp_path / "rows.parquet", files)
    source = ParquetConfig(uri=uri, where={"session": ["rec1"], "digit": ["3", "4", "9"]})
    kept = listed(source)
    names = list(files)
    assert [reference.name for reference in kept] == [names[3], names[4], names[9]]
    assert dict(sources.read(source, kept)) == {k: files[reference.name] for k, reference in enumerate(kept)}
    with pytest.raises(CorpusError, match=r"no column 'fold' .the source's where.fold"):
        listed(ParquetConfig(uri=uri, where={"fold": ["1"]}))


def test_a_filter_that_is_not_there_leaves_no_trace_in_the_settings() -> None:
    assert "where" not in ParquetConfig(uri="rows").model_dump(mode="json")
    kept = {"session": ["rec1"]}
    assert ParquetConfig(uri="rows", where=kept).model_dump(mode="json")["where"] == kept


def test_a_single_parquet_file_is_a_source(tmp_path: Path) -> None:
    corpora.write_parquet(tmp_path / "0.parquet", corpora.clips())
    assert len(listed(ParquetConfig(uri=str(tmp_path / "0.parquet")))) == 12


def test_a_listed_file_that_is_absent_has_no_bytes(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,speaker\nnowhere.wav,ann\n")
    source = FolderConfig(uri=str(tmp_path), csv=str(tmp_path / "list.csv"))
    assert list(sources.read(source, listed(source))) == [(0, b"")]


def test_mistakes_name_file_and_key(tmp_path: Path) -> None:
    corpora.write_parquet(tmp_path / "rows" / "0.parquet", corpora.clips())
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "0.tar").write_bytes(b"no tar" * 500)
    (tmp_path / "bad.csv").write_text("path,speaker\na.wav,ann\nb.wav,bob,extra\n")
    (tmp_path / "other.csv").write_text("file,speaker\na.wav,ann\n")
    (tmp_path / "rows" / "text.pq").write_text("no parquet")
    (tmp_path / "flat.wav").write_bytes(b"")
    rows, tars = str(tmp_path / "rows"), str(tmp_path / "tars")
    cases: list[tuple[SourceConfig, str]] = [
        (ParquetConfig(uri=rows, speaker="voice"), "0.parquet: no column 'voice' .the source's speaker"),
        (ParquetConfig(uri=rows, files="x-*"), "no files match 'x-\\*'"),
        (ParquetConfig(uri=rows, files="*.pq"), "text.pq: not a Parquet file"),
        (ParquetConfig(uri=str(tmp_path / "none")), "none: no files match"),
        (WebDatasetConfig(uri=tars), "0.tar: not a whole, uncompressed tar"),
        (FolderConfig(uri=rows, csv=str(tmp_path / "bad.csv")), "bad.csv: line 3"),
        (FolderConfig(uri=rows, csv=str(tmp_path / "other.csv")), "other.csv: line 1: no column 'path'"),
        (FolderConfig(uri=str(tmp_path / "none")), "none: no such folder"),
        (FolderConfig(uri=str(tmp_path), layout=["speaker"]), "flat.wav: not below folders speaker"),
    ]
    for source, message in cases:
        with pytest.raises(CorpusError, match=message):
            listed(source)
