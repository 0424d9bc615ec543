"""Archives of the wrong kind leave nothing behind; the name of a tree is that of git."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from rayssl.data.fetch import archives
from rayssl.errors import CorpusError


def tar(path: Path, *entries: tarfile.TarInfo | tuple[str, bytes]) -> Path:
    """A ``.tar.gz`` of files, or of entries of other kinds."""
    with tarfile.open(path, "w:gz") as archive:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry)
                continue
            info = tarfile.TarInfo(entry[0])
            info.size = len(entry[1])
            archive.addfile(info, io.BytesIO(entry[1]))
    return path


def zipped(path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def unpacked(path: Path, folder: Path, strip: int = 0) -> dict[str, bytes]:
    folder.mkdir()
    archives.unpack(path, folder, strip)
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


GOOD = (("./set/a/x.wav", b"one"), ("./set/b/y.wav", b"two" * 1_000_000), ("./set/README", b""))
WANTED = {"a/x.wav": b"one", "b/y.wav": b"two" * 1_000_000, "README": b""}


def test_tar_and_zip(tmp_path: Path) -> None:
    assert unpacked(tar(tmp_path / "a.tar.gz", *GOOD), tmp_path / "tar", 1) == WANTED
    assert unpacked(zipped(tmp_path / "a.zip", *GOOD), tmp_path / "zip", 1) == WANTED


BAD_NAMES = ("../evil.wav", "a/../../evil.wav", "/evil.wav", "a\\..\\..\\evil.wav", "a" * 5000)


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: name[:20])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_names_that_lead_out_of_the_folder(tmp_path: Path, kind: str, name: str) -> None:
    make = tar if kind == "tar" else zipped
    path = make(tmp_path / "a.archive", ("x.wav", b"1"), (name, b"2"))
    with pytest.raises(CorpusError, match="leads out of the folder"):
        unpacked(path, tmp_path / "in" if kind == "tar" else tmp_path / "out")
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("link")
    info.type, info.linkname = kind, "/etc"
    path = tar(tmp_path / "a.tar.gz", info, ("link/passwd", b"2"))
    with pytest.raises(CorpusError, match="link or a device"):
        unpacked(path, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    with pytest.raises(CorpusError, match="link or a device"):
        unpacked(zipped(tmp_path / "a.zip", (info, b"/etc")), tmp_path / "out")


def test_a_name_that_comes_twice(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"'x\.wav' comes twice"):
        unpacked(tar(tmp_path / "a.tar.gz", ("x.wav", b"1"), ("x.wav", b"2")), tmp_path / "out")


def test_damage_is_one_line(tmp_path: Path) -> None:
    """Cut anywhere before the end of the last file. Other changes are the business of the hash, which comes before."""
    whole = tar(tmp_path / "a.tar.gz", ("x.wav", bytes(range(256)) * 40)).read_bytes()
    for number, cut in enumerate((0, 5, 30, len(whole) // 2)):
        path = tmp_path / f"cut{number}.tar.gz"
        path.write_bytes(whole[:cut])
        with pytest.raises(CorpusError, match="damaged archive"):
            unpacked(path, tmp_path / f"cut{number}")
    path = tmp_path / "cut.zip"
    path.write_bytes(zipped(tmp_path / "b.zip", ("x.wav", b"1" * 999)).read_bytes()[:500])
    with pytest.raises(CorpusError, match="damaged archive"):
        unpacked(path, tmp_path / "zip")


def test_digests(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"rayssl")
    assert archives.digest(path, "sha256") == hashlib.sha256(b"rayssl").hexdigest()
    assert archives.digest(path, "md5") == hashlib.md5(b"rayssl").hexdigest()


def test_the_name_of_a_tree_is_that_of_git(tmp_path: Path) -> None:
    """Over names whose order is that of git only if a folder counts as its name with a slash."""
    work = tmp_path / "work"
    for name in ("a.wav", "a/x.wav", "a/deep/y.wav", "a-b", "ab/z", "öä.txt"):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(name.encode() * 7)
    (work / "a-b").chmod(0o755)
    git = ["git", "-C", str(work), "-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    tree = subprocess.run([*git, "rev-parse", "HEAD^{tree}"], check=True, capture_output=True, text=True).stdout
    for kind in ("tar.gz", "zip"):
        path = tmp_path / f"set.{kind}"
        subprocess.run([*git, "archive", "--prefix", "set/", "-o", str(path), "HEAD"], check=True)
        assert archives.git_tree(path) == tree.strip()
    changed = tar(tmp_path / "other.tar.gz", ("set/a.wav", b"other"))
    assert archives.git_tree(changed) != tree.strip()
