"""Storage: atomic writes, listings, and errors that name the URI and the way out; the same calls on disk and on S3."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rayssl import storage
from rayssl.errors import StorageError
from tests.data import corpora


@pytest.fixture
def local(tmp_path: Path) -> str:
    return str(tmp_path / "folder")


def two_ranges(uri: str) -> list[Any]:
    return storage.read_ranges(uri, [(0, 1), (5, 10)])


def every_call(root: str) -> None:
    """The contract, on any storage."""
    place = storage.join(root, "a", "b.txt")
    assert not storage.exists(place)
    assert storage.list_files(root) == []
    storage.write_text(place, "one\nzwei ü\n")
    storage.write_bytes(storage.join(root, "c.WAV"), bytes(range(256)) * 20000)
    assert storage.read_text(place) == "one\nzwei ü\n"
    storage.write_text(place, "two")
    assert storage.read_bytes(place) == b"two"
    assert storage.list_files(root) == [place, storage.join(root, "c.WAV")]
    assert storage.list_files(root, [".wav"]) == [storage.join(root, "c.WAV")]
    assert storage.exists(place)
    assert storage.exists(storage.join(root, "a"))
    assert storage.is_file(place)
    assert not storage.is_file(storage.join(root, "a"))
    assert storage.read_range(storage.join(root, "c.WAV"), 255, 3) == bytes([255, 0, 1])
    assert storage.read_range(place, 1, 100) == b"wo"
    assert storage.read_range(place, 50, 10) == b""
    pieces = [(255, 3), (5_119_990, 20), (0, 0), (3_000_000, 1_000_000), (0, 2), (6_000_000, 5)]
    got = storage.read_ranges(storage.join(root, "c.WAV"), pieces)
    assert [bytes(each) for each in got] == [(bytes(range(256)) * 20000)[at : at + size] for at, size in pieces]
    assert storage.read_ranges(place, []) == []
    assert storage.read_bytes(storage.join(root, "c.WAV")) == bytes(range(256)) * 20000
    storage.write_bytes(place, b"")
    assert storage.read_bytes(place) == b"" == storage.read_range(place, 0, 5)
    with storage.open_read(storage.join(root, "c.WAV")) as file:
        file.seek(-2, os.SEEK_END)
        assert file.read() == bytes([254, 255])
        file.seek(3_000_000)
        assert file.read(3) == bytes([k % 256 for k in range(3_000_000, 3_000_003)])
    storage.remove(place)
    storage.remove(place)  # absent is fine
    assert not storage.exists(place)
    storage.remove(root, recursive=True)
    assert storage.list_files(root) == []
    for read in (storage.read_bytes, storage.read_text, storage.open_read, two_ranges):
        with pytest.raises(StorageError, match="no such file") as caught:
            read(place)
        assert str(caught.value).startswith(place)
        assert "\n" not in str(caught.value)


def test_local_folder(local: str) -> None:
    every_call(local)


def test_file_uri(tmp_path: Path) -> None:
    every_call(f"file://{tmp_path}/folder")


def test_what_only_fsspec_knows() -> None:
    every_call("memory://folder/below")


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_the_stores_of_pyarrow(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they are asked for, here of a folder in their place: no server of theirs runs in the tests."""
    from pyarrow import fs

    place = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr(storage.stores, "_google", lambda *_: place)
    monkeypatch.setattr(storage.stores, "_azure", lambda *_: place)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    (tmp_path / "bucket/a").mkdir(parents=True)
    every_call(f"{scheme}://bucket")


def test_a_store_that_does_not_answer_is_not_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    monkeypatch.setattr(storage.stores, "_GCS_RETRIES_S", 0)
    monkeypatch.setattr(storage.attempts, "FIRST_WAIT_S", 0.01)
    for uri in ("gs://bucket/key", "http://127.0.0.1:9/key"):
        for call in (storage.read_bytes, storage.list_files, storage.exists, two_ranges):
            with pytest.raises(StorageError, match="is the store running and reachable") as caught:
                call(uri)
            assert str(caught.value).startswith(f"{uri}: ") and "\n" not in str(caught.value)


def test_relative_paths_become_absolute_and_uris_stay() -> None:
    assert storage.absolute("runs/x") == os.path.join(os.getcwd(), "runs/x")
    assert storage.absolute("s3://bucket/x") == "s3://bucket/x"


@pytest.mark.parametrize("uri", ["s3://", "s3:///", "gs://"])
def test_nothing_is_joined_to_a_uri_without_a_bucket(uri: str) -> None:
    with pytest.raises(StorageError, match=f"{uri}: names no bucket; write "):
        storage.join(uri, "runs", "a")


def test_joined_to_a_root() -> None:
    assert [storage.join(root, "a/", "/b") for root in ("/", "file:///", "s3://c/")] == [
        "/a/b",
        "file:///a/b",
        "s3://c/a/b",
    ]


def test_a_failed_write_leaves_the_old_content_and_no_rest(local: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = storage.join(local, "file")
    storage.write_text(place, "old")

    def fail(_: int) -> None:
        raise OSError(28, "disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="file: no space left on device"):
        storage.write_text(place, "new")
    assert storage.read_text(place) == "old"
    assert os.listdir(local) == ["file"]


def test_what_a_killed_writer_left_is_not_listed_but_removed(local: str) -> None:
    storage.write_text(storage.join(local, "file"), "x")
    (Path(local) / ".file.0123456789ab.part").write_text("half")
    assert storage.list_files(local) == [storage.join(local, "file")]
    storage.remove(local, recursive=True)
    assert not Path(local).exists()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("nope://bucket/key", "'nope://' is not supported; use s3://"),
        ("file://relative/x", "absolute path, file:///"),
        ("s3://", "names no bucket"),
        ("gs://", "names no bucket; write gs://bucket/key"),
        ("az://container/key", "names no account; set AZURE_STORAGE_ACCOUNT_NAME"),
        ("gdrive://folder/key", "'gdrive://' needs a package that is not installed"),
    ],
)
def test_uris_that_cannot_be_used(uri: str, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        storage.read_bytes(uri)


def test_local_mistakes_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(StorageError, match=r"latin\.txt: not UTF-8 text \(byte 3\)"):
        storage.read_text(str(tmp_path / "latin.txt"))
    with pytest.raises(StorageError, match="is a directory"):
        storage.read_bytes(str(tmp_path))
    with pytest.raises(StorageError, match="no such file"):
        storage.read_bytes(str(tmp_path / "latin.txt" / "below"))


def test_an_endpoint_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    monkeypatch.setattr(storage.attempts, "FIRST_WAIT_S", 0.01)
    with pytest.raises(
        StorageError, match=r"s3://bucket/key: no answer from http://127\.0\.0\.1:9 in 4 attempts"
    ) as caught:
        storage.read_bytes("s3://bucket/key")
    assert "very-secret" not in str(caught.value)


@pytest.mark.s3
def test_object_store(s3_server: Any) -> None:
    every_call(storage.join(s3_server.bucket("contract"), "deep", "prefix"))


@pytest.mark.s3
def test_a_missing_bucket_is_named(s3_server: Any) -> None:
    place = "s3://not-there-at-all/key"
    calls = [storage.read_bytes, storage.exists, storage.list_files, storage.open_read, storage.remove, two_ranges]
    for call in (*calls, lambda uri: storage.write_bytes(uri, b"x")):
        with pytest.raises(StorageError, match="no bucket 'not-there-at-all'; create it"):
            call(place)


@pytest.mark.s3
def test_wrong_credentials_name_the_variables_and_no_secret(s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    place = storage.join(s3_server.bucket("secrets"), "key")
    storage.write_bytes(place, b"x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    calls = [storage.read_bytes, storage.exists, storage.list_files, storage.open_read, storage.remove, two_ranges]
    for call in (*calls, lambda uri: storage.write_bytes(uri, b"x")):
        with pytest.raises(StorageError, match="AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY") as caught:
            call(place)
        assert str(caught.value).startswith(place)
        assert "not-the-secret" not in str(caught.value)


@pytest.mark.s3
def test_a_corpus_is_prepared_read_and_verified_on_s3(s3_server: Any, tmp_path: Path) -> None:
    from rayssl.data import integrity, shards

    bucket = s3_server.bucket("corpora")
    for name, data in corpora.clips().items():
        storage.write_bytes(storage.join(bucket, "in", name), data)
    source = {"name": "folder", "uri": storage.join(bucket, "in"), "layout": ["speaker", "recording"]}
    tree = {"source": source, "out": storage.join(bucket, "out"), "shard_utterances": 5}
    manifest = corpora.prepare(corpora.PreparedCorpusConfig.model_validate(tree))
    local = corpora.prepare(corpora.folder_config(tmp_path / "in", tmp_path / "out"))
    assert manifest.fingerprint == local.fingerprint  # where it lies changes nothing
    assert integrity.verify(tree["out"]) == []
    names = [storage.join(tree["out"], name) for name in corpora.files_below(tmp_path / "out")]
    assert storage.list_files(tree["out"]) == names
    columns = pq.ParquetFile(storage.open_read(storage.join(tree["out"], manifest.shards[0].path))).schema_arrow.names
    assert columns == shards.SCHEMA.names


WRONG_SETTINGS = {
    "no scheme": (
        {"AWS_ENDPOINT_URL": "host:9000"},
        r"AWS_ENDPOINT_URL=host:9000: must begin with http:// or https://",
    ),
    "no host": ({"AWS_ENDPOINT_URL": "minio"}, r"AWS_ENDPOINT_URL=minio: must begin with"),
    "the end of a line": ({"AWS_ACCESS_KEY_ID": "key\n"}, r"AWS_ACCESS_KEY_ID: has a space or the end of a line"),
    "no secret": (
        {"AWS_SECRET_ACCESS_KEY": ""},
        "half of the credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    ),
    "no key": ({"AWS_ACCESS_KEY_ID": ""}, "half of the credentials"),
    "a space": ({"AWS_SECRET_ACCESS_KEY": "a b"}, r"AWS_SECRET_ACCESS_KEY: has a space or the end of a line"),
}


@pytest.mark.parametrize("case", WRONG_SETTINGS)
@pytest.mark.parametrize("read", [storage.read_bytes, storage.exists, lambda uri: storage.read_range(uri, 0, 1)])
def test_settings_of_s3_that_cannot_work_are_one_line(
    monkeypatch: pytest.MonkeyPatch, case: str, read: Callable[[str], Any]
) -> None:
    given, message = WRONG_SETTINGS[case]
    settings = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    for name, value in (settings | given).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StorageError, match=rf"^{message}") as caught:
        read("s3://bucket/key")
    assert "a b" not in str(caught.value)  # no secret in a message


def test_links_are_followed_but_not_for_ever(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.wav").write_bytes(b"a")
    root = tmp_path / "root"
    root.mkdir()
    (root / "speaker").symlink_to(tmp_path / "elsewhere")
    (root / "b.wav").symlink_to(tmp_path / "elsewhere" / "a.wav")
    (root / "gone.wav").symlink_to(tmp_path / "nothing")
    (root / "loop").symlink_to(root)
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    found = [uri.removeprefix(f"{root}/") for uri in storage.list_files(str(root))]
    assert found == ["b.wav", "gone.wav", "speaker/a.wav"]


def test_a_place_is_tried_before_long_work(tmp_path: Path) -> None:
    """Nothing stays of it, and folders that exist do."""
    (tmp_path / "there").mkdir()
    for folder in ("there", "there/new/newer", "file:///" + str(tmp_path / "other/x").lstrip("/")):
        storage.check_writable(folder if "://" in folder else str(tmp_path / folder))
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file/below", Path("/proc/none")):
        with pytest.raises(StorageError, match=rf"^{folder}: cannot be written: its folder cannot be made$"):
            storage.check_writable(str(folder))
        with pytest.raises(StorageError, match=r"/x\.txt: cannot be written: its folder cannot be made$"):
            storage.write_text(f"{folder}/x.txt", "x")
