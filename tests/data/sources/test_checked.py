"""A source that breaks the rules gives one line that names it and the utterance; ours keep their tracebacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from rayssl.data.decode import DecodeError
from rayssl.data.sources.base import Reference
from rayssl.data.sources.checked import CheckedSource
from rayssl.data.sources.folder import Folder, FolderConfig
from rayssl.errors import CorpusError, StorageError
from tests.data.corpora import listed, prepare
from tests.data.sources.tones import corpus_of, tones_config

LIST = "            for tone in range(self.config.tones):\n"
YIELD = 'yield Reference(f"p{speaker}/{tone}", f"p{speaker}", "room", None, (speaker, tone))'
READ = "        speaker, tone = map(int, reference.locator)\n"
BROKEN = {
    "names not unique": ("p{speaker}/{tone}", "p/{tone}", "two utterances are named 'p/0'; names must be unique"),
    "nothing": (LIST, "            for tone in ():\n", "no utterances found; correct the keys of the source"),
    "listing raises": (LIST, f"            1 / 0\n{LIST}", r"listing failed: ZeroDivision.* \(line 2\d of tones\.py\)"),
    "no reference": (YIELD, 'yield (f"p{speaker}", None)', r"lists \('p0', None\), which is not a Reference"),
    "name": ('f"p{speaker}/{tone}", f"p', 'tone, f"p', "lists a name that is not text: 0"),
    "facts": ('"room"', "7", r"'p0/0' with a speaker, recording or label that is not text: \['p0', 7, None\]"),
    "locator": ("(speaker, tone))", "(speaker, np.int64(tone)))", "'p0/0' with a locator that is not a tuple of str"),
    "reading raises": (READ, f"{READ}        assert tone != 2, 'lost'\n", r"failed at 'p\d/2': AssertionError: lost"),
    "one line": (READ, f"{READ}        raise OSError('a\\n b')\n", r"reading failed at 'p\d/\d': OSError: a b \(line"),
    "kind": ("return np.float32", "return 3 or np.float32", r"reading 'p\d/\d' gives int, not bytes or a numpy array"),
    "shape": ("return np.float32(0.2)", "return np.ones((2, 1))", r"of float64 \[2, 4000\], not float32 \[T\]"),
    "type": ("return np.float32(0.2)", "return np.ones(4000, int) if tone else 0.2", r"of int64 \[4000\], not float32"),
    "no list": ("    def list", "    def listing", "failed: NotImplementedError: Tones.list is not implemented"),
    "init": (
        "    config: Config\n",
        "    def __init__(self, config):\n        self.a = b\n",
        "cannot be opened: NameError",
    ),
}
MANY = """    def read_many(self, references):
        for k, one in enumerate(references):
            yield {position}, self.read(one)

    def read(self"""
BROKEN_MANY = {
    "unknown": ("k + 1", r"the position \d, which is unknown or given twice; give each position of 0 to \d once"),
    "twice": ("0", r"reading gives the position 0, which is unknown or given twice"),
    "no position": ("one.name", r"reading gives the position 'p\d/\d', which is unknown"),
}


@pytest.mark.parametrize("fault", list(BROKEN))
def test_the_line_says_what_and_where(fault: str, tmp_path: Path) -> None:
    old, new, message = BROKEN[fault]
    with pytest.raises(CorpusError, match=message) as caught:
        prepare(corpus_of(tones_config(tmp_path, old, new), tmp_path / "out"))
    text = str(caught.value)
    assert text.startswith(f"the source {tmp_path}/tones.py:Tones: ") and "\n" not in text


@pytest.mark.parametrize("fault", list(BROKEN_MANY))
def test_positions_are_those_that_were_asked_for(fault: str, tmp_path: Path) -> None:
    position, message = BROKEN_MANY[fault]
    config = tones_config(tmp_path, "    def read(self", MANY.format(position=position))
    with pytest.raises(CorpusError, match=message):
        prepare(corpus_of(config, tmp_path / "out"))


def test_none_is_left_out(tmp_path: Path) -> None:
    many = MANY.format(position="k").replace("enumerate(references)", "enumerate(references[:-2])")
    config = tones_config(tmp_path, "    def read(self", many)
    source = CheckedSource(config)
    with pytest.raises(CorpusError, match=r"reading gives nothing for 'p2/2' \(2 of 12 missing\)"):
        list(source.read(listed(config)))


@pytest.mark.parametrize("parts", ["[]", "[1]"])
def test_there_are_parts(parts: str, tmp_path: Path) -> None:
    config = tones_config(tmp_path, "    def read(self", f"    def parts(self): return {parts}\n    def read(self")
    with pytest.raises(CorpusError, match=r"parts\(\) must give a list of strings; give \[''\]"):
        CheckedSource(config).parts()


def test_errors_that_it_words_itself_are_left_alone(tmp_path: Path) -> None:
    lost = READ + "        from rayssl.errors import StorageError\n        raise StorageError('s3://b/k: gone')\n"
    with pytest.raises(StorageError, match=r"^s3://b/k: gone$"):
        prepare(corpus_of(tones_config(tmp_path, READ, lost), tmp_path / "out"))


def test_a_defect_of_ours_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Folder, references: Sequence[Reference]) -> Iterator[tuple[int, Any]]:
        raise ZeroDivisionError

    monkeypatch.setattr(Folder, "read_many", broken)
    with pytest.raises(ZeroDivisionError):
        list(CheckedSource(FolderConfig(uri=str(tmp_path))).read([Reference("a", locator=("a",))]))


def test_what_can_be_bytes_or_an_error_is_one(tmp_path: Path) -> None:
    """A memoryview of a file is bytes, a `DecodeError` is given, and float64 becomes float32."""
    changed = READ + "        if tone == 1: return memoryview(b'RIFF')\n        if tone == 2: return np.zeros(3)\n"
    config = tones_config(tmp_path, READ, changed, speakers=1, tones=10)
    found = listed(config)
    read = dict(CheckedSource(config).read([found[1], found[2], found[9]]))
    assert read[0] == b"RIFF"
    assert read[1].dtype == "float32"  # type: ignore[union-attr]
    assert isinstance(read[2], DecodeError)
