"""Reads from S3 whose connections and answers are harmed on the way, and processes that fork and end around reads."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rayssl import storage
from rayssl.errors import StorageError
from rayssl.storage import attempts, reading, stores
from tests.fault_proxy import FaultProxy

pytestmark = pytest.mark.s3
DATA = random.Random(0).randbytes(4 << 20)
MIB = 1 << 20
READS: dict[str, Callable[[str], bytes]] = {
    "read_bytes": storage.read_bytes,
    "read_range": lambda uri: storage.read_range(uri, 0, 8 * MIB),
    "read_ranges": lambda uri: b"".join(map(bytes, storage.read_ranges(uri, [(k * MIB, MIB) for k in range(4)]))),
    "open_read": lambda uri: storage.open_read(uri).read(),
}


@pytest.fixture
def place(s3_server: Any) -> str:
    """An object of 4 MiB, whose content is `DATA`."""
    uri = storage.join(s3_server.bucket("faults"), "object")
    storage.write_bytes(uri, DATA)
    return uri


@pytest.fixture
def proxy(s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    between = FaultProxy(s3_server.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
    monkeypatch.setattr(attempts, "FIRST_WAIT_S", 0.01)
    yield between
    between.close()


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("fault", ["reset", "cut", "503", "500", "429"])
def test_harm_that_passes_is_not_seen(read: str, fault: str, place: str, proxy: FaultProxy) -> None:
    proxy.faults = [fault] * (storage.ATTEMPTS - 1)
    assert READS[read](place) == DATA
    assert proxy.faults == []


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("fault", ["reset", "cut", "503"])
def test_harm_that_stays_is_told_in_one_line(
    read: str, fault: str, place: str, proxy: FaultProxy, s3_server: Any
) -> None:
    proxy.faults = [fault] * 40
    with pytest.raises(StorageError) as caught:
        READS[read](place)
    told = "the object store answered '" if fault == "503" else f"no whole answer from {proxy.endpoint} in 4 attempts ("
    assert str(caught.value).startswith(f"{place}: {told}")
    assert "\n" not in str(caught.value) and s3_server.secret_key not in str(caught.value)
    assert caught.value.errno == errno.EIO
    assert len(proxy.requests) <= 4 * storage.ATTEMPTS + 1  # nobody else tries again


def test_a_stall_ends(place: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "READ_TIMEOUT_S", 1)
    proxy.faults = ["stall"]
    began = time.monotonic()
    assert READS["read_ranges"](place) == DATA
    assert time.monotonic() - began < 25


def test_requests_are_few(place: str, proxy: FaultProxy, s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size is asked once; a small file needs one request alone."""
    for start in range(3):
        assert storage.read_range(place, start, 5) == DATA[start : start + 5]
    assert [each.split()[0] for each in proxy.requests] == ["HEAD", "GET", "GET", "GET"]
    proxy.requests.clear()
    assert READS["read_ranges"](place) == DATA
    assert [each.split()[0] for each in proxy.requests] == ["GET"] * 4
    with monkeypatch.context() as changed:
        changed.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
        storage.write_bytes(place, DATA[:100])
    proxy.requests.clear()
    assert storage.read_bytes(place) == DATA[:100]
    assert [each.split()[0] for each in proxy.requests] == ["GET"]


def test_a_replaced_file_is_read_as_it_is_now(place: str) -> None:
    assert storage.read_range(place, 0, 4 * MIB) == DATA
    storage.write_bytes(place, DATA[::-1] + b"more")
    assert storage.read_range(place, 4 * MIB - 1, 100) == DATA[:1] + b"more"
    assert storage.read_range(place, 0, 3) == DATA[:-4:-1]
    storage.write_bytes(place, b"short")
    assert storage.read_range(place, 3, 10) == b"rt"
    storage.write_bytes(place, DATA)
    assert storage.read_range(place, 0, 4 * MIB) == DATA
    storage.write_bytes(place, b"short")
    assert storage.read_ranges(place, [(100, 10), (3, 10)]) == [b"", b"rt"]
    for size in range(len(b"short"), 0, -1):
        storage.write_bytes(place, reading._UNREAD * size)  # true bytes that look like unread ones
        assert storage.read_range(place, 0, 5) == reading._UNREAD * size
    storage.remove(place)
    for read in READS.values():
        with pytest.raises(StorageError, match="object: no such file") as caught:
            read(place)
        assert caught.value.errno in storage.ABSENT


def test_a_file_that_grows_while_it_is_read_is_read_whole(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, longer = reading._Remote.open, [DATA + b"more"]

    def open_and_replace(remote: Any) -> Any:
        file = opened(remote)
        if longer:
            storage.write_bytes(place, longer.pop())
        return file

    monkeypatch.setattr(reading._Remote, "open", open_and_replace)
    monkeypatch.setattr(attempts, "FIRST_WAIT_S", 0.01)
    assert storage.read_bytes(place) == DATA + b"more"


@pytest.mark.parametrize("read", READS)
def test_what_is_refused(read: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same lines and numbers from each function, and each in a short time."""

    def told(uri: str, number: int) -> str:
        began = time.monotonic()
        with pytest.raises(StorageError) as caught:
            READS[read](uri)
        assert time.monotonic() - began < 3
        assert caught.value.errno == number
        return str(caught.value)

    monkeypatch.setattr(attempts, "FIRST_WAIT_S", 0.01)
    assert told("s3://not-there-at-all/key", errno.ENXIO).endswith("create it, or correct the URI")
    assert told(storage.join(place, "below"), errno.ENOENT).endswith("below: no such file")
    assert "write s3://bucket/key" in told(place.rpartition("/")[0], errno.EINVAL)
    with monkeypatch.context() as changed:
        changed.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
        line = told(place, errno.EACCES)
        assert "access denied; check AWS_ACCESS_KEY_ID" in line and "not-the-secret" not in line
    with monkeypatch.context() as changed:
        changed.setenv("AWS_ACCESS_KEY_ID", "nobody")
        assert "access denied; check AWS_ACCESS_KEY_ID" in told(place, errno.EACCES)
    with monkeypatch.context() as changed:
        changed.delenv("AWS_ACCESS_KEY_ID")
        changed.delenv("AWS_SECRET_ACCESS_KEY")
        changed.setenv("AWS_EC2_METADATA_DISABLED", "true")
        changed.setenv("AWS_CONFIG_FILE", os.devnull)
        changed.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        assert "no credentials; set AWS_ACCESS_KEY_ID" in told(place, errno.EACCES)
    with monkeypatch.context() as changed:
        changed.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        assert f"{place}: no answer from http://127.0.0.1:9 in 4 attempts" in told(place, errno.EIO)
    assert READS[read](place) == DATA  # the environment is followed, there and back


def test_several_threads_read_several_files(place: str) -> None:
    for number in range(4):
        storage.write_bytes(f"{place}-{number}", DATA[number * MIB :])
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(READS["read_range"], [f"{place}-{k % 4}" for k in range(12)]))
        several = list(threads.map(READS["read_ranges"], [f"{place}-{k % 4}" for k in range(12)]))
    assert found == several == [DATA[(k % 4) * MIB :] for k in range(12)]


def _read_in_a_child(uri: str) -> bool:
    return READS["read_ranges"](uri) == DATA == storage.read_bytes(uri)


@pytest.mark.parametrize("way", ["fork", "spawn", "forkserver"])
def test_children_read_too(way: str, place: str) -> None:
    assert _read_in_a_child(place)  # its connections and threads are here, not in the child
    with multiprocessing.get_context(way).Pool(2) as children:
        assert children.map_async(_read_in_a_child, [place] * 4).get(60) == [True] * 4
    assert _read_in_a_child(place)


@pytest.mark.parametrize(
    ("last", "status"),
    [("", 0), ("sys.exit(3)", 3), ("threading.Thread(target=again, daemon=True).start(); time.sleep(.2)", 0)],
)
def test_a_process_that_has_read_ends_in_silence(last: str, status: int, place: str) -> None:
    code = (
        "import sys, threading, time\nfrom rayssl import storage\n"
        "def again():\n    try:\n"
        "        while True: storage.read_ranges(sys.argv[1], [(0, 1 << 20), (1 << 20, 1 << 20)])\n"
        "    except storage.StorageError: pass\n"
        "assert len(storage.read_ranges(sys.argv[1], [(0, 10), (5, 10)])[1]) == 10\n"
        f"file = storage.open_read(sys.argv[1]); file.read(3)\n{last}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, place],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")
