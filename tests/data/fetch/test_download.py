"""Downloads from a real server that breaks off: every byte comes once, and what cannot be had is one line."""

from __future__ import annotations

import fcntl
import socket
from pathlib import Path

import numpy as np
import pytest

from rayssl.data.fetch.download import ATTEMPTS, download
from rayssl.errors import CorpusError, StorageError, StorageOutage
from tests.data.fetch.server import Files, serving

CONTENT = np.random.default_rng(0).bytes(1_000_003)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def get(files: Files, place: Path, size: int = len(CONTENT)) -> list[tuple[int, int]]:
    """Downloads the file, and returns what was told of its progress."""
    told: list[tuple[int, int]] = []
    download(f"{files.url}/a.tar", place, size, lambda have, total: told.append((have, total)), wait_s=0)
    return told


@pytest.mark.parametrize("size", [len(CONTENT), 0])
def test_in_one_piece(tmp_path: Path, size: int) -> None:
    with serving(Files({"a.tar": CONTENT})) as files:
        told = get(files, tmp_path / "deep" / "a.tar", size)
    assert (tmp_path / "deep" / "a.tar").read_bytes() == CONTENT
    assert told[-1] == (len(CONTENT), len(CONTENT)) and told == sorted(told)
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["a.tar"]


def test_three_breaks_ask_for_the_rest_each_time(tmp_path: Path) -> None:
    with serving(Files({"a.tar": CONTENT}, cuts=[300_000, 1, 200_000])) as files:
        get(files, tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == CONTENT
    asked = [request.get("Range") for request in files.seen]
    assert asked == [None, "bytes=300000-", "bytes=300001-", "bytes=500001-"]
    assert {request.get("If-Range") for request in files.seen[1:]} == {files.tag}


def test_a_later_call_resumes(tmp_path: Path) -> None:
    with serving(Files({"a.tar": CONTENT}, cuts=[400_000] + [0] * ATTEMPTS)) as files:
        with pytest.raises(StorageOutage):
            get(files, tmp_path / "a.tar")
        assert (tmp_path / "a.tar.part").stat().st_size == 400_000 and not (tmp_path / "a.tar").exists()
        files.cuts.clear()
        get(files, tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == CONTENT
    assert files.seen[-1]["Range"] == "bytes=400000-"


def test_a_part_that_is_complete_is_taken(tmp_path: Path) -> None:
    """The process ended between the last byte and the renaming."""
    (tmp_path / "a.tar.part").write_bytes(CONTENT)
    with serving(Files({"a.tar": CONTENT})) as files:
        get(files, tmp_path / "a.tar", 0)
        assert [request["Range"] for request in files.seen] == [f"bytes={len(CONTENT)}-"]
    assert (tmp_path / "a.tar").read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_begins_again(tmp_path: Path) -> None:
    other = CONTENT[::-1]
    files = Files({"a.tar": CONTENT}, cuts=[400_000] + [0] * ATTEMPTS)
    with serving(files):
        with pytest.raises(StorageOutage):
            get(files, tmp_path / "a.tar")
        files.content["a.tar"], files.tag, files.cuts = other, '"two"', []
        get(files, tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == other


def test_a_server_without_ranges_begins_again(tmp_path: Path) -> None:
    with serving(Files({"a.tar": CONTENT}, cuts=[400_000], ranges=False)) as files:
        get(files, tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == CONTENT


def test_busy_answers_are_tried_again(tmp_path: Path) -> None:
    with serving(Files({"a.tar": CONTENT}, busy=[503, 429, 500])) as files:
        get(files, tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == CONTENT and len(files.seen) == 4


def test_other_answers_are_not(tmp_path: Path) -> None:
    with serving(Files({})) as files, pytest.raises(StorageError, match="answers 404 Not Found"):
        get(files, tmp_path / "a.tar")
    assert len(files.seen) == 1


def test_another_size_is_told_before_the_download(tmp_path: Path) -> None:
    with serving(Files({"a.tar": CONTENT})) as files, pytest.raises(CorpusError, match="1000003 bytes, and 7 are exp"):
        get(files, tmp_path / "a.tar", 7)


def test_nobody_answers(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(StorageOutage, match="refused") as caught:
        download(f"http://127.0.0.1:{port}/a.tar", tmp_path / "a.tar", 0, lambda *_: None, wait_s=0)
    assert "\n" not in str(caught.value) and "object at" not in str(caught.value)


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    with (tmp_path / "a.tar.part").open("ab") as other, serving(Files({"a.tar": CONTENT})) as files:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="another rayssl fetch"):
            get(files, tmp_path / "a.tar")
        assert files.seen == []
