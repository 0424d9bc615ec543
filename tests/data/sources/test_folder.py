"""Files below a folder, or those that a CSV file lists."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from rayssl.data.sources.folder import FolderConfig
from rayssl.errors import CorpusError
from tests.data.corpora import clips, listed, read, write_folder


@pytest.mark.parametrize("how", ["layout", "csv"])
def test_it_gives_back_what_was_put_in(how: str, tmp_path: Path) -> None:
    files = clips()
    uri = write_folder(tmp_path / "audio", files)
    rows = "".join(f"{name},{name.split('/')[0]},{name.split('/')[1]}\n" for name in files)
    (tmp_path / "list.csv").write_text("path,speaker,recording\n" + rows)
    given = {"layout": ["speaker", "recording"]} if how == "layout" else {"csv": str(tmp_path / "list.csv")}
    config = FolderConfig.model_validate({"uri": uri, **given})
    references = listed(config)
    assert {one.name for one in references} == set(files)
    assert all([one.speaker, one.recording] == one.name.split("/")[:2] for one in references)
    some = references[::-2]  # any choice, in any order
    assert read(config, some) == {one.name: files[one.name] for one in some}


def test_columns_of_other_names(tmp_path: Path) -> None:
    """What is not named is not read, also if the list has a column of that name, or one that is almost called so."""
    files = clips()
    uri = write_folder(tmp_path / "audio", files)
    rows = "".join(f"{name};{name.split('/')[0]};no;x\n" for name in files)
    (tmp_path / "list.csv").write_text("file;client_id;label;speakers\n" + rows)
    given = {"uri": uri, "csv": str(tmp_path / "list.csv"), "columns": {"path": "file", "speaker": "client_id"}}
    config = FolderConfig.model_validate(given)
    references = listed(config)
    assert {one.name: one.speaker for one in references} == {name: name.split("/")[0] for name in files}
    assert {one.label for one in references} == {None} and "columns" not in FolderConfig(uri=uri).model_dump()
    for wrong in ({"csv": None}, {"columns": {"speaker": "client_id"}}):
        with pytest.raises(ValidationError, match="columns belong to csv, and must name the one of the path"):
            FolderConfig.model_validate({**given, **wrong})


def test_files_choose_by_the_path(tmp_path: Path) -> None:
    uri = write_folder(tmp_path, clips())
    names = {name for name in clips() if name.startswith("spk1/")}
    assert {one.name for one in listed(FolderConfig(uri=uri, files="spk1/*"))} == names


@pytest.mark.parametrize("path", ["nowhere.wav", "/data/a.wav"])
def test_a_listed_file_that_is_absent_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "list.csv").write_text(f"path,speaker\n{path},ann\n")
    config = FolderConfig(uri=str(tmp_path), csv=str(tmp_path / "list.csv"))
    (refused,) = read(config, listed(config)).values()
    assert str(refused) == "no such file; paths in the list are relative to the source's uri"


def test_located_settings_name_absolute_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    located = FolderConfig(uri="audio", csv="list.csv").located()
    assert (located.uri, located.csv) == (str(tmp_path / "audio"), str(tmp_path / "list.csv"))
    assert located.located() == located
    assert FolderConfig(uri="s3://bucket/audio").located() == FolderConfig(uri="s3://bucket/audio")


def test_mistakes_name_file_and_key(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("path,speaker\na.wav,ann\nb.wav,bob,extra\n")
    (tmp_path / "other.csv").write_text("file,speaker\na.wav,ann\n")
    (tmp_path / "flat.wav").write_bytes(b"")
    cases = [
        (FolderConfig(uri=str(tmp_path), csv=str(tmp_path / "bad.csv")), "bad.csv: line 3"),
        (FolderConfig(uri=str(tmp_path), csv=str(tmp_path / "other.csv")), "other.csv: line 1: no column 'path'"),
        (FolderConfig(uri=str(tmp_path / "none")), "none: no such folder"),
        (FolderConfig(uri=str(tmp_path), layout=["speaker"]), "flat.wav: not below folders speaker"),
    ]
    for config, message in cases:
        with pytest.raises(CorpusError, match=message):
            listed(config)


def test_what_is_passed_over_is_counted(tmp_path: Path) -> None:
    uri = write_folder(tmp_path, clips())
    for name in ("a.txt", "b.TXT", "README", "._0.flac", ".DS_Store", "c.jpg", "x.y.wav", "other/d.flac"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    config = FolderConfig(uri=uri)
    assert len(listed(config)) == len(clips()) + 2
    assert config.build().passed_over() == {".txt": 2, "without a suffix": 1, "hidden": 2, ".jpg": 1}
    some = FolderConfig(uri=uri, files="spk1/*")
    listed(some)
    assert some.build().passed_over()["not of 'files'"] == len(clips()) + 2 - len(listed(some))
