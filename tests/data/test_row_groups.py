"""Some rows of a shard are those of the whole shard, and no other part of its file is read."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from rayssl import storage
from rayssl.data import row_groups, shards
from rayssl.data.shards import Shard
from rayssl.errors import CorpusError, StorageError, UserError

ROWS, GROUP = 50, 8  # six groups of eight and one of two


@pytest.fixture(autouse=True)
def no_footers() -> Iterator[None]:
    """Each test reads its own."""
    row_groups._footer.cache_clear()
    yield
    row_groups._footer.cache_clear()


class Asked:
    """The ranges that were read, and how many requests were made one after the other."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.ranges: list[tuple[int, int]] = []
        self.together: list[int] = []
        one, many = storage.read_range, storage.read_ranges

        def read_range(uri: str, start: int, size: int) -> bytes:
            self.ranges.append((start, size))
            return one(uri, start, size)

        def read_ranges(uri: str, ranges: Sequence[tuple[int, int]]) -> list[Any]:
            with pytest.MonkeyPatch.context() as inner:
                inner.setattr(storage, "read_range", one)
                self.ranges += ranges
                self.together.append(len(ranges))
                return many(uri, ranges)

        patch.setattr(storage, "read_range", read_range)
        patch.setattr(storage, "read_ranges", read_ranges)
        for name in ("read_bytes", "open_read"):
            patch.setattr(storage, name, lambda *_: pytest.fail("the whole file is read"))


def write(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, rows: int = ROWS, group: int = GROUP, size: int = 12_000
) -> Shard:
    """A shard whose audio is noise: what it holds does not matter here. ``size``: bytes of an utterance, about."""
    random = np.random.default_rng(rows)
    audio = [random.bytes(size + int(random.integers(100))) for _ in range(rows)]
    columns: dict[str, Any] = {"name": [f"utterance-{k:04d}" for k in range(rows)], "audio": audio}
    columns["samples"] = [len(data) for data in audio]
    columns |= {kind: random.integers(-1, 30, rows).tolist() for kind in shards.KINDS}
    with monkeypatch.context() as patch:
        patch.setattr(shards, "GROUP_ROWS", group)
        return shards.write_shard(str(folder), (0,), columns)


def assert_rows(folder: Path, shard: Shard, rows: Sequence[int], group: int) -> None:
    found = row_groups.read_rows(str(folder), shard, np.array(rows, np.int64), group)
    table = pq.read_table(folder / shard.path).take(list(rows))
    assert found.rows.tolist() == list(rows)
    assert [bytes(data) for data in found.audio] == table["audio"].to_pylist()
    assert found.nbytes == sum(len(data) for data in found.audio)
    assert found.samples.tolist() == table["samples"].to_pylist()
    assert found.columns.keys() == set(shards.KINDS)
    for kind, column in found.columns.items():
        assert column.dtype == np.int32 and column.tolist() == table[kind].to_pylist()


CHOICES: list[Sequence[int]] = [range(ROWS), [0], [49], [7, 8], [0, 1, 30, 49], range(8, 16), range(3, 50, 9), [48, 49]]


@pytest.mark.parametrize("rows", CHOICES, ids=str)
@pytest.mark.parametrize("group", [GROUP, 0, 1, 100])
def test_rows_are_those_of_the_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int, rows: Sequence[int]
) -> None:
    """With groups that do not divide it, of one row, larger than the shard, and from before there were groups."""
    shard = write(tmp_path, monkeypatch, group=group or 1000, size=60)
    assert_rows(tmp_path, shard, rows, group)


@pytest.mark.parametrize(
    ("rows", "groups", "ranges"),
    [([9], 1, 1), ([0, 15], 2, 1), ([0, 49], 2, 2), ([0, 20, 27, 45], 4, 3), (range(ROWS), 7, 1), ([0, 20, 40], 3, 3)],
    ids=str,
)
def test_only_the_groups_that_are_needed_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: Sequence[int], groups: int, ranges: int
) -> None:
    """Neighbours are one range, all ranges one request; before it, one of the footer."""
    shard = write(tmp_path, monkeypatch)
    metadata = pq.read_metadata(tmp_path / shard.path)
    assert metadata.num_row_groups == 7
    asked = Asked(monkeypatch)
    assert_rows(tmp_path, shard, rows, GROUP)
    (footer, *parts), tail = asked.ranges, 1 << 15
    assert footer == (shard.bytes - tail, tail) and asked.together == [ranges] and len(parts) == ranges
    needed = {row // GROUP for row in rows}
    wanted = sum(metadata.row_group(k).column(j).total_compressed_size for k in needed for j in range(6))
    assert len(needed) == groups and 0.95 * wanted < sum(size for _, size in parts) <= wanted


def test_groups_that_almost_touch_are_one_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small group in between costs less than a request."""
    shard = write(tmp_path, monkeypatch, size=500)
    asked = Asked(monkeypatch)
    assert_rows(tmp_path, shard, [0, 20, 40], GROUP)
    assert asked.together == [1]


def test_a_footer_is_read_once_in_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = write(tmp_path, monkeypatch)
    asked = Asked(monkeypatch)
    for _ in range(3):
        assert_rows(tmp_path, shard, [0], GROUP)
    assert len(asked.ranges) == 4 and asked.together == [1, 1, 1]
    again = write(tmp_path, monkeypatch, rows=40)  # the corpus is prepared anew: the manifest lists another file
    assert_rows(tmp_path, again, [39], GROUP)
    assert len(asked.ranges) == 6


def test_a_large_footer_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = write(tmp_path, monkeypatch, rows=400, group=1, size=500)
    footer = pq.read_metadata(tmp_path / shard.path).serialized_size + 8
    assert footer > 1 << 15
    asked = Asked(monkeypatch)
    assert_rows(tmp_path, shard, [0, 200, 399], 1)
    assert asked.ranges[0] == (shard.bytes - (1 << 15), 1 << 15) and asked.ranges[1] == (shard.bytes - footer, footer)


def test_a_file_smaller_than_a_footer_is_one_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = write(tmp_path, monkeypatch, rows=3, size=20)
    assert shard.bytes < 1 << 15
    assert_rows(tmp_path, shard, [2], GROUP)


def refused(folder: Path, shard: Shard, group: int = GROUP, rows: Sequence[int] = range(ROWS)) -> str:
    with pytest.raises(UserError) as caught:
        row_groups.read_rows(str(folder), shard, np.array(rows, np.int64), group)
    text = str(caught.value)
    assert isinstance(caught.value, CorpusError | StorageError)
    assert text.startswith(f"{folder}/shards/00000.parquet: ") and "\n" not in text
    return text


def test_another_file_than_the_manifest_lists_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = write(tmp_path, monkeypatch)
    data = (tmp_path / shard.path).read_bytes()
    for changed in (data[:-10], data[:1000], b"", data[: 1 << 15] + data):
        (tmp_path / shard.path).write_bytes(changed)
        text = refused(tmp_path, shard)
        assert f"not the file that the manifest lists ({shard.bytes} bytes); run rayssl prepare --verify" in text
    (tmp_path / shard.path).unlink()
    assert refused(tmp_path, shard).endswith(": no such file")


def test_another_number_of_rows_or_groups_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = write(tmp_path, monkeypatch)
    text = refused(tmp_path, shard.model_copy(update={"rows": 51}))
    assert text.endswith("holds 50 rows, the manifest says 51; run rayssl prepare --verify")
    for group in (4, 0, 7):
        if -(-ROWS // group if group else -1) != 7:
            assert "7 row groups of other sizes than the manifest says; run rayssl" in refused(tmp_path, shard, group)
    old = write(tmp_path, monkeypatch, group=1000)
    assert "1 row groups of other sizes than the manifest says" in refused(tmp_path, old)


@pytest.mark.parametrize("damage", ["footer", "header", "pages", "dictionary"])
def test_damage_inside_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    """Of the same size. Damage inside the audio shows when it is decoded."""
    shard = write(tmp_path, monkeypatch)
    group = pq.read_metadata(tmp_path / shard.path).row_group(0)
    names = [group.column(j).path_in_schema for j in range(6)]
    audio, samples = group.column(names.index("audio")), group.column(names.index("samples"))
    places = {
        "footer": slice(shard.bytes - 600, shard.bytes - 100),
        "header": slice(audio.data_page_offset, audio.data_page_offset + 30),
        "pages": slice(samples.data_page_offset, samples.data_page_offset + samples.total_compressed_size // 2),
        "dictionary": slice(samples.dictionary_page_offset, samples.dictionary_page_offset + 20),
    }
    data = bytearray((tmp_path / shard.path).read_bytes())
    where = places[damage]
    data[where] = b"\xff" * (where.stop - where.start)
    (tmp_path / shard.path).write_bytes(data)
    assert "run rayssl prepare --verify" in refused(tmp_path, shard)
    with pytest.raises(CorpusError, match="not a Parquet file"):
        shards.read_shard(str(tmp_path), shard)


def test_mutated_shards_are_read_or_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any byte: nothing but the project's own errors, which name the file."""
    shard = write(tmp_path, monkeypatch)
    place, chance = tmp_path / shard.path, random.Random(0)
    data = place.read_bytes()
    reads: list[Callable[[], Any]] = [
        lambda: row_groups.read_rows(str(tmp_path), shard, np.arange(ROWS), GROUP),
        lambda: shards.read_shard(str(tmp_path), shard),
        lambda: shards.read_shard(str(tmp_path), shard, ["name"]),
    ]
    for _ in range(300):
        made = bytearray(data)
        reach = chance.choice([200, len(made)])  # from the end: most faults in the footer
        for _ in range(chance.choice([1, 1, 4])):
            made[-chance.randrange(1, reach)] = chance.choice([0, 127, 255, chance.randrange(256)])
        place.write_bytes(made)
        row_groups._footer.cache_clear()
        for read in reads:
            try:
                read()
            except UserError as error:
                text = str(error)
                continue
            text = str(place)
        assert text.startswith(str(place)) and "\n" not in text


def test_a_file_that_ends_while_it_is_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The footer is known from before; then the file was replaced by a shorter one."""
    shard = write(tmp_path, monkeypatch)
    assert_rows(tmp_path, shard, [0], GROUP)
    data = (tmp_path / shard.path).read_bytes()
    (tmp_path / shard.path).write_bytes(data[: shard.bytes // 2])
    assert "not a Parquet file (the file ends early); run rayssl prepare --verify" in refused(tmp_path, shard)


def test_a_flipped_bit_in_the_audio_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages have checksums: no decoder has to notice it."""
    shard = write(tmp_path, monkeypatch)
    assert row_groups.read_rows(str(tmp_path), shard, np.array([0, 9]), GROUP).verified
    data = bytearray((tmp_path / shard.path).read_bytes())
    for at in (len(data) // 20, 3 * GROUP * 12_000):
        changed = bytearray(data)
        changed[at] ^= 1
        (tmp_path / shard.path).write_bytes(changed)
        assert "damaged, or " in refused(tmp_path, shard)


def test_a_shard_from_before_checksums_is_not_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = pq.write_table

    def without(*given: Any, write_page_checksum: bool, **more: Any) -> None:
        plain(*given, **more)

    with monkeypatch.context() as before:
        before.setattr(pq, "write_table", without)
        before.setattr(shards, "CHECKSUMS", b"none")
        shard = write(tmp_path, before)
    assert not row_groups.read_rows(str(tmp_path), shard, np.array([0, 9]), GROUP).verified
