"""The files of splits: what is written is read back, and `verify` notices every kind of damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayssl.data import integrity, shards, splits
from rayssl.errors import CorpusError
from tests.data.corpora import write_labelled

NAMES = ["bed", "cat", "dog"]
LABELS = [k % 4 - 1 for k in range(40)]
WANTED = {"s": {"labelled": {"per_class": 4}, "open_set": ["cat"], "unknown": True}}


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[str, shards.Manifest]:
    return str(tmp_path), write_labelled(str(tmp_path), LABELS, NAMES, WANTED, [15, 25])


def rewrite(uri: str, roles: np.ndarray, numbers: np.ndarray, **changes: Any) -> str:
    """The split with other content, which the manifest vouches for; what `verify` says about it."""
    manifest = shards.read_manifest(uri)
    path, sha256 = splits.write(uri, "s", roles, numbers)
    assert path == manifest.splits["s"].path
    other = manifest.splits["s"].model_copy(update={"sha256": sha256, **changes})
    shards.replace_splits(uri, manifest, {"s": other})
    return "\n".join(integrity.verify(uri))


def test_a_sound_split_is_read_back_and_has_no_problems(corpus: tuple[str, shards.Manifest]) -> None:
    uri, manifest = corpus
    made = manifest.splits["s"]
    roles, classes = splits.columns(f"{uri}/{made.path}", made.sha256)
    assert roles.dtype == np.int8 and classes.dtype == np.int16 and len(roles) == 40
    assert not roles.flags.writeable and not classes.flags.writeable  # they are shared by all who ask
    assert splits.columns(f"{uri}/{made.path}", made.sha256)[0] is roles
    assert classes.tolist() == [{-1: -1, 0: 0, 1: -1, 2: 1}[label] for label in LABELS]
    assert (made.labelled, made.unlabelled, made.unknown) == (8, 32, 10)
    assert integrity.verify(uri) == [] and splits.unchanged(uri, made)


def test_verify_catches_a_flipped_byte_and_an_absent_file(corpus: tuple[str, shards.Manifest]) -> None:
    uri, manifest = corpus
    place = Path(uri) / manifest.splits["s"].path
    whole = place.read_bytes()
    for position in np.linspace(0, len(whole) - 1, 9).astype(int):
        place.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert any("splits/s.parquet: content differs" in problem for problem in integrity.verify(uri))
        assert not splits.unchanged(uri, manifest.splits["s"])
    place.unlink()
    assert integrity.verify(uri) == [f"{place}: absent"] and not splits.unchanged(uri, manifest.splits["s"])


def test_verify_catches_what_a_hash_does_not(corpus: tuple[str, shards.Manifest]) -> None:
    uri, manifest = corpus
    made = manifest.splits["s"]
    roles, classes = splits.columns(f"{uri}/{made.path}", made.sha256)
    assert rewrite(uri, roles, classes) == ""
    assert "the number of utterances of a class differs" in rewrite(uri, np.roll(roles, 1), classes)
    assert "its classes do not fit the labels of the corpus" in rewrite(uri, roles, np.roll(classes, 1))
    assert "39 rows, the corpus has 40" in rewrite(uri, roles[:-1], classes[:-1])
    assert "a role is out of range 0..3" in rewrite(uri, np.where(roles == 1, 4, roles), classes)
    assert "8 labelled and 32 unlabelled utterances, the manifest says 9" in rewrite(uri, roles, classes, labelled=9)
    other = made.classes[0].model_copy(update={"label": 7})
    assert "classes are not labels of the corpus" in rewrite(uri, roles, classes, classes=[other, made.classes[1]])


def test_a_file_that_is_no_longer_the_manifests_is_not_used(corpus: tuple[str, shards.Manifest]) -> None:
    uri, manifest = corpus
    made = manifest.splits["s"]
    rewrite(uri, np.ones(40, np.int8), np.zeros(40, np.int16))
    splits.columns.cache_clear()
    with pytest.raises(CorpusError, match=r"s\.parquet: not the file that the manifest lists .*run rayssl prepare"):
        splits.columns(f"{uri}/{made.path}", made.sha256)
    (Path(uri) / made.path).write_bytes(b"no parquet")
    assert any("not a Parquet file of roles and classes" in problem for problem in integrity.verify(uri))


def test_a_manifest_with_a_damaged_split_names_the_key(corpus: tuple[str, shards.Manifest]) -> None:
    uri, manifest = corpus
    tree = manifest.model_dump()
    del tree["splits"]["s"]["sha256"]
    (Path(uri) / shards.MANIFEST).write_text(json.dumps(tree))
    with pytest.raises(CorpusError, match=r"damaged \(key 'splits\.s\.sha256'\)"):
        shards.read_manifest(uri)
