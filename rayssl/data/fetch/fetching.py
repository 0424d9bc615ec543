"""Brings a data set of the catalogue into its folder: downloads or takes from a mirror, verifies, unpacks, records.

The folder appears when everything in it is complete. ``.fetched.json`` in it says where it came from.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rayssl.data.fetch import archives, tables
from rayssl.data.fetch.catalogue import PublicFile, PublicSet, in_units
from rayssl.data.fetch.download import FIRST_WAIT_S, Progress, download
from rayssl.errors import CorpusError, StorageError, UserError

RECORD = ".fetched.json"
_DOWNLOADS = "downloads"
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")


class FetchOptions(NamedTuple):
    """How to fetch.

    Args:
        into: the folder of all data sets.
        mirror: a folder that has the files by their names, or the tables of the set; instead of the network.
        keep: whether downloaded archives stay in ``into/downloads``.
        wait_s: the first wait before a broken download goes on.
    """

    into: Path
    mirror: Path | None = None
    keep: bool = False
    wait_s: float = FIRST_WAIT_S


def there(one: PublicSet, into: Path) -> str | None:
    """A line that says since when the set is there, and from where; None if it is not.

    Raises `CorpusError` if the folder of the set holds something that was not fetched, or not all of it any more.
    """
    folder = into / one.name
    if not folder.exists():
        return None
    if not one.files:
        return f"{one.name} is in {folder}, put there by hand"
    try:
        record = json.loads((folder / RECORD).read_text())
        files, size, source, when = (record[key] for key in ("files", "bytes", "from", "fetched"))
    except (OSError, ValueError, KeyError, TypeError):
        raise CorpusError(f"{folder}: not made by rayssl fetch; move it away, or choose another --into") from None
    has = _contents(folder)
    if has["files"] < files or has["bytes"] < size:
        lacks = f"{has['files']} of {files} files, {has['bytes']} of {size} bytes"
        raise CorpusError(f"{folder}: incomplete ({lacks}); delete this folder and fetch it again")
    return f"{one.name} is in {folder}: {files} files, {in_units(size)}, fetched {when} from {source}"


def fetch(one: PublicSet, how: FetchOptions, say: Callable[[str], None], progress: Progress) -> str:
    """Brings ``one`` into ``how.into/NAME`` and returns a line that says so; at once if it is `there`.

    Raises:
        CorpusError: a hash or an archive is wrong, the mirror lacks a file, or the set is to be had by hand only.
        StorageOutage: there is no network; the message says what to put where.
        StorageError: the server refuses, or the disk has too little room.
    """
    try:
        if not one.files and (found := there(one, how.into)) is not None:
            return found
        if not one.files:
            by_hand = one.by_hand.format(folder=how.into / one.name)
            raise CorpusError(f"{one.name} cannot be downloaded without its publisher's consent: {one.page}: {by_hand}")
        how.into.mkdir(parents=True, exist_ok=True)
        with _alone(how.into / f".{one.name}.lock", one.name):
            return there(one, how.into) or _fetch(one, how, say, progress)
    except OSError as error:
        if isinstance(error, UserError):
            raise
        raise StorageError(
            f"{error.filename or how.into}: {error.strerror or error}; correct it and try again"
        ) from None


def _fetch(one: PublicSet, how: FetchOptions, say: Callable[[str], None], progress: Progress) -> str:
    for unfinished in how.into.glob(f".{one.name}.*.tmp"):
        shutil.rmtree(unfinished)
    copied = _tables_of_mirror(one, how.mirror)
    _check_room(one, how, copied)
    record: dict[str, Any] = {"name": one.name, "licence": one.licence, "page": one.page}
    paths = [] if copied else [_obtain(one, file, how, say, progress) for file in one.files]
    if copied:
        record["from"] = str(how.mirror)
        record["sources"] = [{"name": path.name, "sha256": archives.digest(path, "sha256")} for path in copied]
    else:
        record["from"] = str(how.mirror) if how.mirror else one.page
        record["sources"] = [_verified(file, path, how, say) for file, path in zip(one.files, paths, strict=True)]
    folder = how.into / one.name
    with tempfile.TemporaryDirectory(prefix=f".{one.name}.", suffix=".tmp", dir=how.into) as made:
        ready = Path(made) / "data"
        ready.mkdir()
        if copied:
            tables.copy(copied, ready)
        elif one.tables is not None:
            tables.write(paths, one.strip, one.tables, ready, say)
        else:
            _place(paths, one.strip, ready)
        record |= {**_contents(ready), "fetched": time.strftime("%Y-%m-%d")}
        (ready / RECORD).write_text(json.dumps(record, indent=2) + "\n")
        ready.rename(folder)
    if how.mirror is None and not how.keep:
        for path in paths:
            path.unlink()
    return f"{one.name}: {record['files']} files, {in_units(record['bytes'])} in {folder}"


def _obtain(
    one: PublicSet, file: PublicFile, how: FetchOptions, say: Callable[[str], None], progress: Progress
) -> Path:
    """The path of a file of the set: in the mirror, or downloaded."""
    if how.mirror is not None:
        path = how.mirror / file.name
        if not path.is_file():
            others = f", nor the tables of a mirror ({', '.join(one.tables.counts)}-*.parquet)" if one.tables else ""
            raise CorpusError(f"{how.mirror}: no {file.name}{others}; get it from {file.url}")
        return path
    path = how.into / _DOWNLOADS / file.name
    if not path.exists():
        say(f"  {file.url} ({in_units(file.bytes)})")
        try:
            download(file.url, path, file.size, progress, how.wait_s)
        except StorageError as error:
            put = f"get {file.name} elsewhere, put it into a folder F, then: rayssl fetch {one.name} --from F"
            raise type(error)(f"{error}; the same command resumes; or without a network here: {put}") from None
    return path


def _verified(file: PublicFile, path: Path, how: FetchOptions, say: Callable[[str], None]) -> dict[str, str | None]:
    """The record of a file, with its hash. Raises `CorpusError`, and removes a download, if the hash is wrong."""
    record = {"name": file.name, "url": file.url, "sha256": archives.digest(path, "sha256"), "verified": file.kind}
    if file.kind is None:
        say(f"  {file.name}: nobody publishes its hash, so it cannot be verified; its sha256 is {record['sha256']}")
        return record
    seen = archives.git_tree(path) if file.kind == "git tree" else archives.digest(path, file.kind)
    if seen != file.expected:
        wrong = f"{path}: its {file.kind} is {seen}, and not {file.expected}: another file, or a damaged one"
        if how.mirror is not None:
            raise CorpusError(f"{wrong}; get it again from {file.url}")
        path.unlink()
        raise CorpusError(f"{wrong}; it is removed: fetch it again")
    say(f"  {file.name}: {file.kind} {seen[:12]}... is right")
    return record


def _place(paths: list[Path], strip: int, folder: Path) -> None:
    """Unpacks archives below ``folder``, and copies plain files."""
    for path in paths:
        if path.name.endswith(_ARCHIVES):
            archives.unpack(path, folder, strip)
        else:
            shutil.copyfile(path, folder / path.name)


def _tables_of_mirror(one: PublicSet, mirror: Path | None) -> list[Path]:
    if mirror is None:
        return []
    if not mirror.is_dir():
        raise CorpusError(f"{mirror}: no such folder; --from names the folder with {one.files[0].name}")
    return [] if one.tables is None else tables.mirrored(mirror, one.tables)


def _check_room(one: PublicSet, how: FetchOptions, copied: list[Path]) -> None:
    """Raises `StorageError` if the disk has too little room for what is still to come."""
    if copied:
        wanted = sum(path.stat().st_size for path in copied)
    else:
        wanted = int(one.unpacked * one.bytes)
        if how.mirror is None:
            downloads = [how.into / _DOWNLOADS / file.name for file in one.files]
            there = [path for name in downloads for path in (name, name.with_name(name.name + ".part"))]
            wanted += max(0, one.bytes - sum(path.stat().st_size for path in there if path.exists()))
    free = shutil.disk_usage(how.into).free
    if free < wanted:
        needed = f"{one.name} needs about {in_units(wanted)}, and {in_units(free)} are free"
        raise StorageError(f"{how.into}: {needed}; make room, or choose another place with --into")


def _contents(folder: Path) -> dict[str, int]:
    """How many files and bytes a folder holds, without the record."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != RECORD]
    return {"files": len(sizes), "bytes": sum(sizes)}


@contextmanager
def _alone(lock: Path, name: str) -> Iterator[None]:
    """Only one process at a time fetches a set into a folder."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StorageError(
                f"{lock.parent}: another rayssl fetch {name} works here; wait until it has ended"
            ) from None
        yield
