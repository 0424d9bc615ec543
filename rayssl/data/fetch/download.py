"""A download that resumes: what has come stays in ``FILE.part``, and the next attempt asks for the rest."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeAlias

import requests
import urllib3

from rayssl.errors import CorpusError, StorageError, StorageOutage

#: Told how many bytes there are, and how many there will be (0: nobody knows).
Progress: TypeAlias = Callable[[int, int], None]

ATTEMPTS = 5  # one after the other that bring nothing
FIRST_ATTEMPTS = 3  # where nothing has answered yet: there may be no network
FIRST_WAIT_S = 1.0
_MOST_WAIT_S = 30.0
_TIMEOUT_S = (15.0, 60.0)  # to connect, and between two pieces
_PIECE = 1 << 18
_MAY_PASS = (408, 425, 429, 500, 502, 503, 504)
_BROKEN = (
    *(requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError),
    urllib3.exceptions.HTTPError,
)


def download(url: str, place: Path, size: int, progress: Progress, wait_s: float = FIRST_WAIT_S) -> None:
    """Downloads ``url`` to the file ``place``, which appears when it is complete.

    A broken connection, no answer and the answers of a busy server are tried again, `ATTEMPTS` times in a row without a
    new byte (`FIRST_ATTEMPTS` before any answer), with waits that begin at ``wait_s`` seconds and double. A later call
    resumes.

    Args:
        size: how many bytes the file has, 0 if that is not known.

    Raises:
        StorageOutage: no connection, or none that lasts.
        StorageError: the server refuses; or another process downloads this file.
        CorpusError: the server has a file of another size.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(place.name + ".part")
    with part.open("ab") as out, requests.Session() as session:
        try:
            fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StorageError(f"{part}: another rayssl fetch downloads it now; wait until it has ended") from None
        _Download(url, part, out, size, progress).run(session, wait_s)
        part.replace(place)
    _mark_of(part).unlink(missing_ok=True)


class _Download:
    """One file on its way. ``total`` is its size as far as it is known, else 0; ``answered``: whether a server has."""

    answered = False

    def __init__(self, url: str, part: Path, out: IO[bytes], size: int, progress: Progress) -> None:
        self.url, self.part, self.out, self.total, self.progress = url, part, out, size, progress

    def run(self, session: requests.Session, wait_s: float) -> None:
        failures, wait = 0, wait_s
        while True:
            before = self.have
            try:
                if self._attempt(session):
                    return
                why = f"the connection ended after {self.have} bytes"
            except _BROKEN as error:
                why = _reason(error)
            except requests.RequestException as error:
                raise StorageError(f"{self.url}: {_reason(error)}") from None
            failures, wait = (failures + 1, wait) if self.have <= before else (1, wait_s)
            if failures >= (ATTEMPTS if self.answered else FIRST_ATTEMPTS):
                raise StorageOutage(f"{self.url}: {why}")
            time.sleep(wait)
            wait = min(2 * wait, _MOST_WAIT_S)

    @property
    def have(self) -> int:
        """How many bytes are there."""
        return self.out.seek(0, 2)

    def _attempt(self, session: requests.Session) -> bool:
        """One request. Returns whether the file is complete."""
        have = self.have
        if have and have == self.total:
            return True
        # not compressed on the way: what comes must be the bytes of the file
        headers = {"Accept-Encoding": "identity", **self._asking_for_the_rest(have)}
        with session.get(self.url, headers=headers, stream=True, timeout=_TIMEOUT_S) as answer:
            self.answered = True
            if answer.status_code in _MAY_PASS:
                raise requests.ConnectionError(f"the server answers {answer.status_code} {answer.reason}")
            if answer.status_code == 416:  # no such rest: the file is complete, or another one now
                if answer.headers.get("Content-Range") == f"bytes */{have}":
                    return True
                self._from_the_start("")
                return False
            if answer.status_code not in (200, 206):
                raise StorageError(f"{self.url}: the server answers {answer.status_code} {answer.reason}")
            rest = answer.status_code == 206 and _first(answer) == have
            if answer.status_code == 206 and not rest:
                raise StorageError(f"{self.url}: the server sends another part than the one that was asked for")
            length = int(answer.headers.get("Content-Length") or 0)
            self._check(have + length if rest and length else length)
            if not rest:
                self._from_the_start(answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "")
            while piece := answer.raw.read(_PIECE, decode_content=False):
                self.out.write(piece)
                self.progress(self.out.tell(), self.total)
            self.out.flush()
        return self.total == 0 or self.have == self.total

    def _asking_for_the_rest(self, have: int) -> dict[str, str]:
        """The headers of a request for what is missing, if the file is still the one that was begun."""
        if not have:
            return {}
        mark = _mark_of(self.part)
        known = mark.read_text() if mark.exists() else ""
        unchanged = {"If-Range": known} if known and not known.startswith("W/") else {}
        return {"Range": f"bytes={have}-", **unchanged}

    def _from_the_start(self, mark: str) -> None:
        self.out.truncate(0)
        _mark_of(self.part).write_text(mark)

    def _check(self, total: int) -> None:
        """Takes the size that the server says. Raises `CorpusError` if another one was expected."""
        if total and self.total and total != self.total:
            what = f"the server's file has {total} bytes, and {self.total} are expected"
            raise CorpusError(f"{self.url}: {what}: it is another file now")
        self.total = total or self.total


def _mark_of(part: Path) -> Path:
    """Beside a part: which version of the file it is of, as the server says."""
    return part.with_name(part.name + ".etag")


def _first(answer: requests.Response) -> int:
    """The position at which the sent range begins; -1 if the server does not say."""
    begins = answer.headers.get("Content-Range", "").removeprefix("bytes ").split("-")[0]
    return int(begins) if begins.isdigit() else -1


def _reason(error: BaseException) -> str:
    """Why there is no connection, in a few words: the innermost cause."""
    inner: BaseException | None = error
    while inner is not None:
        error = inner
        found = [arg for arg in error.args if isinstance(arg, BaseException)]
        inner = getattr(error, "reason", None) if isinstance(getattr(error, "reason", None), BaseException) else None
        inner = inner or (found[0] if found else None)
    text = str(error).rpartition(": ")[2] if "object at 0x" in str(error) else str(error)
    return " ".join(text.split())[:160] or type(error).__name__
