"""Tars: the member's offset is its place, and the JSON beside it says who speaks."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayssl.data.sources.checked import CheckedSource
from rayssl.data.sources.webdataset import WebDatasetConfig
from rayssl.errors import CorpusError
from tests.data.corpora import clips, listed, read, write_tar


def test_it_gives_back_what_was_put_in(tmp_path: Path) -> None:
    files = clips()
    config = WebDatasetConfig(uri=write_tar(tmp_path / "0.tar", files))
    references = listed(config)
    assert {one.name + ".flac" for one in references} == set(files)
    assert all([one.speaker, one.recording] == one.name.split("/")[:2] for one in references)
    some = references[::-2]
    assert read(config, some) == {one.name: files[one.name + ".flac"] for one in some}
    assert CheckedSource(config).place(some[0]) == f"{tmp_path}/0.tar"


def test_what_is_no_tar_is_told(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"no tar" * 500)
    with pytest.raises(CorpusError, match=r"0\.tar: not a complete, uncompressed tar"):
        listed(WebDatasetConfig(uri=str(tmp_path)))
