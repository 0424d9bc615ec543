"""`integrity.verify` sees what is wrong with a corpus of nights, and names the file."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayssl.data import integrity, shards
from tests.data.nights.fake_nights import make

NIGHTS = {"a/n0": "WWLLL_DDRR?L", "a/n1": "L" * 14, "b/n0": "WLDR"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    make(NIGHTS, folder, splits={"all": {"nights": {}}})
    return folder


@pytest.fixture
def uri(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(whole, tmp_path / "corpus")
    assert integrity.verify(str(tmp_path / "corpus")) == []
    return tmp_path / "corpus"


def edit_manifest(uri: Path, change: Callable[[dict[str, Any]], None]) -> None:
    tree = json.loads((uri / shards.MANIFEST).read_text())
    change(tree)
    (uri / shards.MANIFEST).write_text(json.dumps(tree))


def rewrite_runs(uri: Path, change: Callable[[dict[str, list[int]]], None], *, listed: bool = True) -> None:
    """Other runs; with ``listed`` the manifest has their hash."""
    place = uri / "nights.parquet"
    table = pq.read_table(place)
    columns = table.to_pydict()
    change(columns)
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, schema=table.schema), buffer)
    place.write_bytes(buffer.getvalue())
    if listed:
        edit_manifest(uri, lambda tree: tree["nights"].update(sha256=hashlib.sha256(buffer.getvalue()).hexdigest()))


def rewrite_shard(uri: Path, number: int, change: Callable[[dict[str, list[Any]]], None]) -> None:
    """Another shard, with its hash and the fingerprint in the manifest."""
    manifest = shards.read_manifest(str(uri))
    old = manifest.shards[number]
    columns = shards.read_shard(str(uri), old).to_pydict()
    change(columns)
    place = tuple(int(part) for part in Path(old.path).stem.split("-"))
    new = shards.write_shard(str(uri), place, columns, group_rows=8, seconds=old.seconds)
    assert new.path == old.path
    listed = [*manifest.shards]
    listed[number] = new.model_copy(update={"first_id": old.first_id})

    def told(tree: dict[str, Any]) -> None:
        tree["shards"] = [shard.model_dump() for shard in listed]
        tree["fingerprint"] = shards.fingerprint(listed)

    edit_manifest(uri, told)


def put(key: str, row: int, value: Any) -> Callable[[dict[str, list[Any]]], None]:
    def change(columns: dict[str, list[Any]]) -> None:
        columns[key][row] = value

    return change


def first_runs(uri: Path, count: int = 1) -> list[dict[str, int]]:
    return list(pq.read_table(uri / "nights.parquet").slice(0, count).to_pylist())


def test_the_file_of_runs(uri: Path) -> None:
    place = uri / "nights.parquet"
    data = place.read_bytes()
    place.write_bytes(data[:-3])
    assert integrity.verify(str(uri)) == [
        f"{place}: content differs from the manifest (sha256)",
        f"{place}: not a Parquet file of runs",
    ]
    place.unlink()
    assert integrity.verify(str(uri)) == [f"{place}: absent"]
    place.write_bytes((uri / "labels.parquet").read_bytes())
    assert integrity.verify(str(uri))[-1] == f"{place}: not a Parquet file of runs"
    place.write_bytes(data)
    assert integrity.verify(str(uri)) == []


@pytest.mark.parametrize("key", ["first", "epochs", "night", "index"])
def test_every_column_of_the_runs(uri: Path, key: str) -> None:
    """One number is another one, although the manifest has the hash of the file."""
    last = len(pq.read_table(uri / "nights.parquet")) - 1
    for row in (0, last):
        rewrite_runs(uri, lambda columns, row=row: put(key, row, columns[key][row] + 1)(columns))  # type: ignore[misc]
        assert integrity.verify(str(uri)) == [
            f"{uri}/nights.parquet: its runs are not those of the epochs in the shards"
        ]
        rewrite_runs(uri, lambda columns, row=row: put(key, row, columns[key][row] - 1)(columns))  # type: ignore[misc]
        assert integrity.verify(str(uri)) == []


def test_a_run_that_is_missing_or_joined(uri: Path) -> None:
    problem = [f"{uri}/nights.parquet: its runs are not those of the epochs in the shards"]
    kept = pq.read_table(uri / "nights.parquet").to_pydict()

    def without_last(columns: dict[str, list[int]]) -> None:
        for column in columns.values():
            column.pop()

    rewrite_runs(uri, without_last)
    assert integrity.verify(str(uri)) == problem
    rewrite_runs(uri, lambda columns: columns.update({key: [*values] for key, values in kept.items()}))
    assert integrity.verify(str(uri)) == []
    at = next(k for k, night in enumerate(kept["night"]) if kept["night"].count(night) == 2)

    def over_the_gap(columns: dict[str, list[int]]) -> None:
        columns["epochs"][at] += columns["epochs"][at + 1]
        for column in columns.values():
            del column[at + 1]

    rewrite_runs(uri, over_the_gap)
    assert integrity.verify(str(uri)) == problem


def test_counts_of_the_manifest(uri: Path) -> None:
    edit_manifest(uri, lambda tree: tree["nights"]["stages"].update(Wake=99))
    assert integrity.verify(str(uri)) == [f"{uri}: the number of epochs of a stage differs from the manifest"]
    edit_manifest(uri, lambda tree: tree["nights"]["stages"].update(Wake=3))
    edit_manifest(uri, lambda tree: tree["nights"].update(nights=4, subjects=1))
    assert integrity.verify(str(uri)) == [f"{uri}: 3 nights of 2 subjects, the manifest says 4 of 1"]


def shard_of(uri: Path, night: str) -> int:
    for number, shard in enumerate(shards.read_manifest(str(uri)).shards):
        if shards.read_shard(str(uri), shard, ["name"])["name"][0].as_py().startswith(night):
            return number
    raise AssertionError(night)


def test_rows_of_the_shards(uri: Path) -> None:
    number = shard_of(uri, "b/n0")
    shard = shards.read_manifest(str(uri)).shards[number]
    place, columns = uri / shard.path, shards.read_shard(str(uri), shard).to_pydict()
    picture = np.frombuffer(columns["audio"][1], np.float16).copy()
    picture[5] = np.inf
    for key, value, problem in (
        ("audio", picture.tobytes(), f"{place}: 'b/n0/0001': its picture has values that are not finite"),
        ("audio", picture[6:].tobytes(), f"{place}: 'b/n0/0001': 118 samples, the row says 124"),
        ("speaker", 0, f"{uri}: the epochs of 'b/n0' have several subjects or recordings"),
        ("recording", 0, f"{uri}: the epochs of 'b/n0' have several subjects or recordings"),
        ("name", "b/n0/0007", f"{uri}/nights.parquet: its runs are not those of the epochs in the shards"),
        ("name", "b/n0/late", f"{uri}/nights.parquet: its runs are not those of the epochs in the shards"),
        ("label", 0, f"{uri}: the number of epochs of a stage differs from the manifest"),
    ):
        rewrite_shard(uri, number, put(key, 1, value))
        assert problem in integrity.verify(str(uri)), key
        rewrite_shard(uri, number, put(key, 1, columns[key][1]))
        assert integrity.verify(str(uri)) == []


def test_pictures_of_another_size(uri: Path) -> None:
    """They would be read as pictures of the manifest's size."""
    edit_manifest(uri, lambda tree: tree["mel"].update(n_mels=5))
    found = integrity.verify(str(uri))
    assert len(found) == 11 + 14 + 4 and all("124 values, an epoch of this corpus has 155" in line for line in found)
