"""Archives: their members one after the other, their hashes, and unpacking that cannot leave its folder."""

from __future__ import annotations

import hashlib
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from rayssl.errors import CorpusError

_PIECE = 1 << 20
_LONGEST_NAME = 4096


@dataclass(frozen=True)
class ArchiveMember:
    """A regular file in the archive at ``archive``. It can be read until the next member is asked for.

    ``name``: without ``./`` at its start. ``executable``: whether its mode lets its owner run it.
    """

    archive: Path
    name: str
    file: IO[bytes]
    executable: bool

    def pieces(self) -> Iterator[bytes]:
        """The content. Raises `CorpusError` if the archive is damaged here."""
        while True:
            with _damage(self.archive):
                piece = self.file.read(_PIECE)
            if not piece:
                return
            yield piece

    def content(self) -> bytes:
        """All of the content. Raises as `pieces` does."""
        return b"".join(self.pieces())


def members(path: Path) -> Iterator[ArchiveMember]:
    """The regular files of a ``.tar``, ``.tar.gz`` or ``.zip``, in its order.

    Raises `CorpusError` for a damaged archive, and for names, links and devices that an archive of recordings does not
    need: they could reach a file outside of the folder.
    """
    with _damage(path):
        yield from _of_zip(path) if zipfile.is_zipfile(path) else _of_tar(path)


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise CorpusError(f"{path}: damaged archive ({error}); delete it and fetch it again") from None


def _of_tar(path: Path) -> Iterator[ArchiveMember]:
    with tarfile.open(path, "r|*") as archive:
        for entry in archive:
            name = _safe(path, entry.name)
            if entry.isdir() or not name:
                continue
            if not entry.isfile():
                raise CorpusError(f"{path}: '{entry.name[:200]}' is a link or a device; it is not unpacked")
            file = archive.extractfile(entry)
            assert file is not None
            yield ArchiveMember(path, name, file, bool(entry.mode & 0o100))


def _of_zip(path: Path) -> Iterator[ArchiveMember]:
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            name, mode = _safe(path, entry.filename), entry.external_attr >> 16
            if entry.is_dir():
                continue
            if mode & 0o170000 not in (0, 0o100000):
                raise CorpusError(f"{path}: '{entry.filename[:200]}' is a link or a device; it is not unpacked")
            with archive.open(entry) as file:
                yield ArchiveMember(path, name, file, bool(mode & 0o100))


def _safe(path: Path, name: str) -> str:
    """The name without ``./``; raises `CorpusError` for one that could leave the folder."""
    parts = PurePosixPath(name).parts
    if "\\" in name or "\0" in name or len(name) > _LONGEST_NAME or ".." in parts or name.startswith("/"):
        raise CorpusError(f"{path}: the name '{name[:200]}' leads out of the folder; nothing of it is kept")
    return "/".join(parts)


def stripped(name: str, count: int) -> str:
    """The name without its first ``count`` folders; empty if it has no more."""
    return "/".join(name.split("/")[count:])


def unpack(path: Path, folder: Path, strip: int) -> None:
    """Writes the members below ``folder``, a new folder that only this process knows. Raises as `members` does."""
    for member in members(path):
        name = stripped(member.name, strip)
        if not name:
            continue
        place = folder / name
        if place.exists():
            raise CorpusError(f"{path}: '{name}' comes twice; get the archive again")
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("xb") as out:
            for piece in member.pieces():
                out.write(piece)


def digest(path: Path, kind: str) -> str:
    """The hash of a file in hexadecimal: ``sha256`` or ``md5``."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()


def git_tree(path: Path) -> str:
    """The name that git gives to the folder in the archive of a commit, from all of its content and names.

    As git does it: SHA-1 of ``"blob SIZE\\0" + content``, and for a folder of ``"tree SIZE\\0"`` and an entry
    ``"MODE NAME\\0" + SHA-1`` for each of its files and folders.
    """
    root: dict[str, Any] = {}
    for member in members(path):
        *folders, name = stripped(member.name, 1).split("/")
        if not name:
            continue
        content, below = member.content(), root
        for folder in folders:
            below = below.setdefault(folder, {})
        mode = "100755" if member.executable else "100644"
        below[name] = (mode, _named("blob", content))
    return _tree(root).hex()


def _tree(folder: dict[str, Any]) -> bytes:
    """The SHA-1 of a folder: each entry is a folder again, or the mode and the SHA-1 of a file."""
    found: dict[bytes, bytes] = {}
    for name, entry in folder.items():
        if isinstance(entry, dict):  # in git's order a folder counts as its name with a slash
            found[name.encode() + b"/"] = f"40000 {name}\0".encode() + _tree(entry)
        else:
            found[name.encode()] = f"{entry[0]} {name}\0".encode() + entry[1]
    return _named("tree", b"".join(found[order] for order in sorted(found)))


def _named(kind: str, content: bytes) -> bytes:
    head = f"{kind} {len(content)}\0".encode()
    return hashlib.sha1(head + content, usedforsecurity=False).digest()
