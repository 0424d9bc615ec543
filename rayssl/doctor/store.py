"""Tests a folder or an object store: writes, reads, lists and removes a small object and a large one."""

from __future__ import annotations

import os
import re
import statistics
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TypeVar

from rayssl import storage
from rayssl.doctor.findings import Finding, fail, ok, size, warn
from rayssl.errors import StorageError

SMALL, LARGE = 1 << 10, 16 << 20  # bytes
_TIMES = 5  # how often the small object is written and read
_SLOW_MS, _SLOW_MB = 500.0, 5.0
_SKEW_S, _REFUSED_S = 60.0, 900.0  # S3 refuses requests whose clock is 15 minutes wrong
_CHECKSUM = ("411", "MissingContentLength", "Checksum", "checksum", "NotImplemented")
T = TypeVar("T")


def store(uri: str) -> list[Finding]:
    """Tests ``uri``, which may not exist yet. It removes everything that it has written.

    The first operation that fails ends the test; its finding says how to fix it.
    """
    place = storage.join(uri, f"rayssl-doctor-{uuid.uuid4().hex[:12]}")
    findings: list[Finding] = []
    timed: dict[str, list[float]] = {}
    try:
        created = _absent_folders(uri)
    except StorageError as error:
        return [refused(error)]
    try:
        findings.append(_small(place, timed))
        findings.append(_large(place))
        storage.remove(place, recursive=True)
        if storage.list_files(place):
            findings.append(fail("storage", f"{place} is still there after it was removed", "allow DeleteObject"))
    except StorageError as error:
        findings.append(refused(StorageError(re.sub(rf"{re.escape(place)}(/[\w-]+)?", uri, str(error)))))
        if timed:  # something has been written
            _leave_nothing(place, findings)
    finally:
        for folder in created:
            if os.path.isdir(folder) and not os.listdir(folder):
                os.rmdir(folder)
    return findings + ([clock(*skew)] if uri.startswith("s3://") and (skew := server_skew()) else [])


def refused(error: StorageError) -> Finding:
    """The finding for a storage error. The text after its last semicolon is the fix."""
    found, _, fix = str(error).rpartition("; ")
    if not found:
        found, fix = fix, "see 'Storage and credentials' in README.md"
    if any(word in found + fix for word in _CHECKSUM):
        fix = (
            "a server that does not know new checksums needs AWS_REQUEST_CHECKSUM_CALCULATION=when_required and "
            "AWS_RESPONSE_CHECKSUM_VALIDATION=when_required"
        )
    return fail("storage", found, fix)


def clock(skew: float, who: str) -> Finding:
    """This machine's clock, ``skew`` seconds ahead of the storage server's."""
    said = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} {who}" if abs(skew) >= 2 else f"agrees with {who}"
    if abs(skew) > _REFUSED_S:
        return fail("clock", said, "set the clock (NTP): S3 refuses requests from a clock that is 15 minutes wrong")
    return warn("clock", said, "set the clock (NTP)") if abs(skew) > _SKEW_S else ok("clock", said)


def server_skew() -> tuple[float, str] | None:
    """How many seconds this clock is ahead of the endpoint's (to about 1 s), and a name for it; None if unknown."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if not endpoint:
        return None
    began = time.time()
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=5) as answer:
            date = answer.headers.get("Date")
    except urllib.error.HTTPError as error:
        date = error.headers.get("Date")
    except (OSError, ValueError):
        return None
    try:
        server = parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return None
    # the header has whole seconds: on average it is half a second too early
    return (began + time.time()) / 2 - server - 0.5, "the storage server"


def _small(place: str, timed: dict[str, list[float]]) -> Finding:
    """Measures the latencies of a small object, and checks that it is listed."""
    data = os.urandom(SMALL)
    for number in range(_TIMES):
        uri = storage.join(place, f"small-{number}")
        _timed(timed, "write", partial(storage.write_bytes, uri, data))
        back = _timed(timed, "read", partial(storage.read_bytes, uri))
        if back != data:
            return fail("storage", f"{uri}: what was read is not what was written", "check the server and any proxy")
    listed = _timed(timed, "list", lambda: storage.list_files(place))
    if len(listed) != _TIMES:
        fix = "use a store whose listings show an object as soon as it is written"
        return fail("storage", f"{place}: {len(listed)} of {_TIMES} objects are listed", fix)
    _timed(timed, "delete", lambda: storage.remove(storage.join(place, "small-0")))
    middle = {name: 1000 * statistics.median(seconds) for name, seconds in timed.items()}
    said = ", ".join(f"{name} {milliseconds:.1f} ms" for name, milliseconds in middle.items())
    what = "storage latency"
    if max(middle["write"], middle["read"]) > _SLOW_MS:
        return warn(what, f"{said} of {SMALL // 1024} KiB", "bring storage and machines into one region or network")
    return ok(what, f"{said} ({SMALL // 1024} KiB, median of {_TIMES})")


def _large(place: str) -> Finding:
    """Measures the MB/s of a large object, with one request at a time."""
    data, timed = os.urandom(LARGE), dict[str, list[float]]()
    uri = storage.join(place, "large")
    _timed(timed, "write", lambda: storage.write_bytes(uri, data))
    if _timed(timed, "read", lambda: storage.read_bytes(uri)) != data:
        return fail("storage", f"{uri}: what was read is not what was written", "check the server and any proxy")
    rates = {name: LARGE / 1e6 / seconds[0] for name, seconds in timed.items()}
    said = ", ".join(f"{name} {rate:.0f} MB/s" for name, rate in rates.items()) + f" ({size(LARGE)}, one stream)"
    if min(rates.values()) < _SLOW_MB:
        return warn("storage throughput", said, "bring storage and machines into one region or network")
    return ok("storage throughput", said)


def _timed(timed: dict[str, list[float]], name: str, action: Callable[[], T]) -> T:
    began = time.perf_counter()
    result = action()
    timed.setdefault(name, []).append(max(1e-9, time.perf_counter() - began))
    return result


def _leave_nothing(place: str, findings: list[Finding]) -> None:
    """Removes what was written before the failure. If that fails too, it adds a finding."""
    try:
        storage.remove(place, recursive=True)
    except StorageError:
        findings.append(fail("storage", f"{place} could not be removed", "remove it, and allow DeleteObject"))


def _absent_folders(uri: str) -> list[str]:
    """The local folders that writing to ``uri`` will create, the deepest first."""
    fs, path = storage.filesystem(uri)
    if "file" not in fs.protocol:
        return []
    absent = []
    while not os.path.exists(path):
        absent.append(path)
        path = os.path.dirname(path)
    return absent
