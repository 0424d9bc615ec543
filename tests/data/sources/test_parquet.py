"""Rows of Parquet files: columns by name, filters, and row groups that are read once."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayssl.data.errors import DecodeError
from rayssl.data.sources.checked import CheckedSource
from rayssl.data.sources.parquet import ParquetConfig
from rayssl.errors import CorpusError
from tests.data.corpora import clips, listed, read, write_parquet


@pytest.mark.parametrize("structs", [False, True])
def test_it_gives_back_what_was_put_in(structs: bool, tmp_path: Path) -> None:
    files = clips()
    config = ParquetConfig(uri=write_parquet(tmp_path / "0.parquet", files, structs), recording="session")
    references = listed(config)
    assert [one.name for one in references] == list(files)
    assert all([one.speaker, one.recording] == one.name.split("/")[:2] for one in references)
    some = references[::-2]
    assert read(config, some) == {one.name: files[one.name] for one in some}
    assert config.build().read(some[1]) == files[some[1].name]


def test_every_file_is_a_part_and_files_choose_among_them(tmp_path: Path) -> None:
    for name in ("train-0", "train-1", "test-0"):
        write_parquet(tmp_path / f"{name}.parquet", {f"{name}/rec/{k}.flac": b"audio" for k in range(2)})
    config = ParquetConfig(uri=str(tmp_path), files="train-*.parquet")
    source = CheckedSource(config)
    assert source.parts() == ["train-0.parquet", "train-1.parquet"]
    assert {one.speaker for one in source.list_part("train-1.parquet")} == {"train-1"}
    assert [*config.build().list()] == listed(config)
    assert source.place(listed(config)[0]) == f"{tmp_path}/train-0.parquet"


def test_where_keeps_rows_and_the_places_that_they_have(tmp_path: Path) -> None:
    files = clips()
    uri = write_parquet(tmp_path / "rows.parquet", files)
    config = ParquetConfig(uri=uri, where={"session": ["rec1"], "digit": ["3", "4", "9"]})
    kept = listed(config)
    names = list(files)
    assert [one.name for one in kept] == [names[3], names[4], names[9]]
    assert read(config, kept) == {one.name: files[one.name] for one in kept}
    with pytest.raises(CorpusError, match=r"no column 'fold' .the source's where.fold"):
        listed(ParquetConfig(uri=uri, where={"fold": ["1"]}))


def test_a_filter_that_is_not_there_leaves_no_trace_in_the_settings() -> None:
    assert "where" not in ParquetConfig(uri="rows").model_dump(mode="json")
    kept = {"session": ["rec1"]}
    assert ParquetConfig(uri="rows", where=kept).model_dump(mode="json")["where"] == kept


def test_a_single_file_is_a_source(tmp_path: Path) -> None:
    write_parquet(tmp_path / "0.parquet", clips())
    config = ParquetConfig(uri=str(tmp_path / "0.parquet"))
    assert len(listed(config)) == 12
    assert CheckedSource(config).place(listed(config)[0]) == config.uri


def hugging_face(path: Path, **changes: object) -> ParquetConfig:
    """A file as ``datasets`` writes it: no ids, structs of audio, and classes as numbers, with their names beside."""
    files = clips(6)
    audio = [{"bytes": data, "path": name} for name, data in files.items()]
    audio[4] = {"bytes": None, "path": "far/away.flac"}
    table = pa.table({"audio": audio, "speaker_id": [7, 7, 8, 8, 9, 9], "label": [0, 1, 1, 0, -1, None]})
    features = {"audio": {"_type": "Audio"}, "label": {"names": ["no", "yes"], "_type": "ClassLabel"}}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=4)
    return ParquetConfig.model_validate({"uri": str(path), "speaker": "speaker_id", "label": "label", **changes})


def test_a_data_set_of_hugging_face_is_read_as_it_is(tmp_path: Path) -> None:
    config = hugging_face(tmp_path / "train-00000-of-00001.parquet")
    found = listed(config)
    assert [one.name for one in found] == [f"#{k // 4}.{k % 4}" for k in range(6)]
    assert [one.label for one in found] == ["no", "yes", "yes", "no", None, None]
    assert [one.speaker for one in found] == ["7", "7", "8", "8", "9", "9"]
    audio = read(config, found)
    assert [audio[one.name] for one in found[:4]] == list(clips(6).values())[:4]
    assert str(audio[found[4].name]).startswith("no bytes in the row, only the path 'far/away.flac'; store the audio")
    with pytest.raises(DecodeError, match="no bytes in the row"):
        config.build().read(found[4])


def test_columns_may_be_left_out_when_this_is_said(tmp_path: Path) -> None:
    place = tmp_path / "a.parquet"
    with pytest.raises(
        CorpusError, match=r"no column 'speaker' .*; its columns are .*; source\.speaker: null leaves it"
    ):
        listed(hugging_face(place, speaker="speaker"))
    with pytest.raises(CorpusError, match=r"no column 'id'"):
        listed(hugging_face(place, id="id"))
    plain = listed(hugging_face(place, id=None, speaker=None, label=None))
    assert {(one.speaker, one.label) for one in plain} == {(None, None)}


def test_mistakes_name_file_and_key(tmp_path: Path) -> None:
    rows = write_parquet(tmp_path / "rows" / "0.parquet", clips())
    (tmp_path / "rows" / "text.pq").write_text("no parquet")
    cases = [
        (ParquetConfig(uri=rows, speaker="voice"), "0.parquet: no column 'voice' .the source's speaker"),
        (ParquetConfig(uri=rows, files="x-*"), "no files match 'x-\\*'"),
        (ParquetConfig(uri=rows, files="*.pq"), "text.pq: damaged, or not a Parquet file"),
        (ParquetConfig(uri=str(tmp_path / "none")), "none: no files match"),
    ]
    for config, message in cases:
        with pytest.raises(CorpusError, match=message):
            listed(config)
