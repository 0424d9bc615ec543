"""The shard format: what is written is read back, and `verify` notices every kind of damage."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from rayssl import storage
from rayssl.data import decode, integrity, shards
from rayssl.errors import CorpusError
from tests.data import corpora


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    corpora.prepare(corpora.folder_config(tmp_path / "in", tmp_path / "out"))
    return str(tmp_path / "out")


def test_ids_are_dense_and_audio_is_the_source(corpus: str, tmp_path: Path) -> None:
    manifest = shards.read_manifest(corpus)
    assert manifest.rows == 12
    assert [shard.first_id for shard in manifest.shards] == [0, *np.cumsum([s.rows for s in manifest.shards])[:-1]]
    labels = shards.read_labels(corpus)
    assert labels["speaker"] == ["spk0", "spk1", "spk2"]
    assert (manifest.speakers, manifest.recordings, manifest.labels) == (3, 6, 0)
    seen = {}
    for shard in manifest.shards:
        for row in shards.read_shard(corpus, shard).to_pylist():
            samples = decode.pcm(row["audio"], manifest.format)
            assert len(samples) == row["samples"]
            assert row["name"].startswith(labels["speaker"][row["speaker"]])
            assert row["name"].startswith(labels["recording"][row["recording"]])
            assert row["label"] == -1
            seen[row["name"]] = samples
    for name, data in corpora.clips().items():
        assert np.array_equal(seen[name], decode.quantise(decode.decode(data)))


def test_a_manifest_says_what_resampled_the_audio(corpus: str) -> None:
    manifest = shards.read_manifest(corpus)
    assert manifest.resampler == decode.RESAMPLER
    tree = manifest.model_dump()
    del tree["resampler"]  # as in a corpus of an older version
    storage.write_text(storage.join(corpus, shards.MANIFEST), json.dumps(tree))
    older = shards.read_manifest(corpus)
    assert older.resampler == "scipy.signal.resample_poly"
    assert integrity.verify(corpus) == []
    assert shards.replace_splits(corpus, older, {}).resampler == older.resampler  # new splits are not new audio


def test_columns_can_be_read_alone(corpus: str) -> None:
    shard = shards.read_manifest(corpus).shards[0]
    assert shards.read_shard(corpus, shard, ["name", "speaker"]).column_names == ["name", "speaker"]


def test_a_sound_corpus_has_no_problems(corpus: str) -> None:
    assert integrity.verify(corpus) == []


def test_verify_catches_a_flipped_byte_anywhere_in_a_shard(corpus: str) -> None:
    shard = shards.read_manifest(corpus).shards[1]
    place = Path(corpus) / shard.path
    whole = place.read_bytes()
    for position in np.linspace(0, len(whole) - 1, 9).astype(int):
        place.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert any(shard.path in problem and "sha256" in problem for problem in integrity.verify(corpus))


def test_verify_catches_what_a_hash_does_not(corpus: str) -> None:
    # a writer at fault hashes its own mistake: the manifest agrees with the shard, and both are wrong
    audio = [corpora.encoded(corpora.sine(1)), b"fLaC damaged", corpora.encoded(corpora.sine(1))]
    columns = {"name": ["a", "b", "a"], "audio": audio, "samples": [8000, 8000, 7]}
    columns |= {"speaker": [0, 0, 99], "recording": [0, 0, 0], "label": [-1, -1, -1]}
    part = shards.write_shard(corpus, (0,), columns)
    names = shards.read_labels(corpus)
    shards.write_manifest(corpus, [part], format="flac", names=names, rejected=0, settings={})
    problems = "\n".join(integrity.verify(corpus))
    assert "'b': the audio does not decode" in problems
    assert "'a': the name is not unique" in problems
    assert "speaker index out of range" in problems


def test_verify_catches_a_missing_shard(corpus: str) -> None:
    (Path(corpus) / shards.read_manifest(corpus).shards[0].path).unlink()
    assert any(problem.endswith("00000.parquet: absent") for problem in integrity.verify(corpus))


CONTRADICTIONS = {
    "shards.1.first_id is 7, expected 6": (("shards", 1, "first_id"), 7),
    "shards.1.path is not a file below shards/": (("shards", 1, "path"), "../../../etc/passwd"),
    "shards.0.path is not a file below shards/": (("shards", 0, "path"), "shards/../secret.parquet"),
    "key 'shards.0.rows'": (("shards", 0, "rows"), -5),
    "rows is 1, its shards have ": (("rows",), 1),
    "rate is 0": (("rate",), 0),
    "a count is negative": (("speakers",), -1),
    "fingerprint does not fit the shards": (("fingerprint",), "0" * 16),
}


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_a_manifest_that_contradicts_itself_is_damaged(corpus: str, what: str) -> None:
    (*path, last), value = CONTRADICTIONS[what]
    tree = at = shards.read_manifest(corpus).model_dump()
    for key in path:
        at = at[key]
    at[last] = value
    storage.write_text(storage.join(corpus, shards.MANIFEST), json.dumps(tree))
    with pytest.raises(CorpusError, match=rf"damaged \({re.escape(what)}.*run rayssl prepare with --overwrite$"):
        shards.read_manifest(corpus)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "run rayssl prepare"),
        ("{half", "damaged"),
        ("[]", "damaged"),
        ('{"version": 99}', "version 99"),
        ('{"version": 1}', "damaged .key 'format'"),
    ],
)
def test_a_manifest_that_cannot_be_used_names_the_uri(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / shards.MANIFEST).write_text(text)
    with pytest.raises(CorpusError, match=message) as caught:
        shards.read_manifest(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_a_shard_that_is_no_parquet_names_the_file(corpus: str) -> None:
    shard = shards.read_manifest(corpus).shards[0]
    (Path(corpus) / shard.path).write_bytes(b"not parquet at all")
    with pytest.raises(CorpusError, match=shard.path):
        shards.read_shard(corpus, shard)
