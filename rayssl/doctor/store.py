"""A folder or an object store tried out: writes, reads, lists and removes a small object and a large one."""

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
_TIMES = 5  # that the small object is written and read
_SLOW_MS, _SLOW_MB = 500.0, 5.0
_SKEW_S, _REFUSED_S = 60.0, 900.0  # S3 refuses requests that are 15 minutes off
_CHECKSUM = ("411", "MissingContentLength", "Checksum", "checksum", "NotImplemented")
T = TypeVar("T")


def store(uri: str) -> list[Finding]:
    """Tries ``uri``, which may not exist yet; nothing is left behind.

    What cannot be done is a finding of its own that names the way out, and ends the trial.
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
        if timed:  # something had been written
            _leave_nothing(place, findings)
    finally:
        for folder in created:
            if os.path.isdir(folder) and not os.listdir(folder):
                os.rmdir(folder)
    return findings + ([clock(*skew)] if uri.startswith("s3://") and (skew := server_skew()) else [])


def refused(error: StorageError) -> Finding:
    """The storage's error, which already says the way out behind its last semicolon."""
    found, _, mend = str(error).rpartition("; ")
    if not found:
        found, mend = mend, "see 'Storage and credentials' in README.md"
    if any(word in found + mend for word in _CHECKSUM):
        mend = (
            "a server that does not know new checksums needs AWS_REQUEST_CHECKSUM_CALCULATION=when_required and "
            "AWS_RESPONSE_CHECKSUM_VALIDATION=when_required"
        )
    return fail("storage", found, mend)


def clock(skew: float, who: str) -> Finding:
    """This machine's clock, ``skew`` seconds ahead of the storage server's."""
    said = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} {who}" if abs(skew) >= 2 else f"agrees with {who}"
    if abs(skew) > _REFUSED_S:
        return fail("clock", said, "S3 refuses requests that are 15 minutes off: set the clock (NTP)")
    return warn("clock", said, "set the clock (NTP)") if abs(skew) > _SKEW_S else ok("clock", said)


def server_skew() -> tuple[float, str] | None:
    """Seconds by which this clock is ahead of the endpoint's, to a second, and the endpoint; None if it is unknown."""
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
    # the header has whole seconds, half of one lost on average
    return (began + time.time()) / 2 - server - 0.5, "the storage server"


def _small(place: str, timed: dict[str, list[float]]) -> Finding:
    """Latencies of a small object, listed too."""
    data = os.urandom(SMALL)
    for number in range(_TIMES):
        uri = storage.join(place, f"small-{number}")
        _timed(timed, "write", partial(storage.write_bytes, uri, data))
        back = _timed(timed, "read", partial(storage.read_bytes, uri))
        if back != data:
            return fail("storage", f"{uri}: what was read is not what was written", "check the server and any proxy")
    listed = _timed(timed, "list", lambda: storage.list_files(place))
    if len(listed) != _TIMES:
        mend = "rayssl needs listings that show what was written"
        return fail("storage", f"{place}: {len(listed)} of {_TIMES} objects are listed", mend)
    _timed(timed, "delete", lambda: storage.remove(storage.join(place, "small-0")))
    middle = {name: 1000 * statistics.median(seconds) for name, seconds in timed.items()}
    said = ", ".join(f"{name} {milliseconds:.1f} ms" for name, milliseconds in middle.items())
    what = "storage latency"
    if max(middle["write"], middle["read"]) > _SLOW_MS:
        return warn(what, f"{said} of {SMALL // 1024} KiB", "bring storage and machines into one region or network")
    return ok(what, f"{said} ({SMALL // 1024} KiB, median of {_TIMES})")


def _large(place: str) -> Finding:
    """MB/s of a large object, one request at a time."""
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
    """Removes what was written before something was refused; says so where that is refused, too."""
    try:
        storage.remove(place, recursive=True)
    except StorageError:
        findings.append(fail("storage", f"{place} could not be removed", "remove it, and allow DeleteObject"))


def _absent_folders(uri: str) -> list[str]:
    """Local folders that writing at ``uri`` will create, deepest first."""
    if uri.startswith("s3://"):
        return []
    _, path = storage.filesystem(uri)
    absent = []
    while not os.path.exists(path):
        absent.append(path)
        path = os.path.dirname(path)
    return absent
