"""The sequences that ranks get from Ray Data are those of the definition, from a disk and from S3, from any cursor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayssl.batches.plan import Cursor
from rayssl.errors import CorpusError, StorageError
from rayssl.experiment.job import Job
from tests.batches.definition import assert_same, joined
from tests.batches.night_definition import NightCorpus, expected, knobs_of
from tests.batches.test_sequences import NIGHTS, SPLITS, job
from tests.ray.test_ingest import EPOCHS, consume

pytestmark = pytest.mark.ray

#: Two more nights for each of the subjects, so that a pass of a stream has several units.
MORE = NIGHTS | {f"{subject}/m{k}": "WLLLDDRRL_LLRRWWLLDD"[k:] for subject in "abcde" for k in range(2)}
STEPS = 5  # of an epoch, which is a pass of neither stream
STREAMS = {"train": ("unlabelled", 4), "labelled": ("labelled", 2)}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> NightCorpus:
    return NightCorpus.of(MORE, tmp_path_factory.mktemp("nights"), splits=SPLITS)


def trained(corpus: NightCorpus, ranks: int, *more: str) -> Job:
    """Three epochs of five steps, in units of three batches."""
    keys = [f"training={{batch: 4, epochs: {EPOCHS}, epoch_steps: {STEPS}}}", "corpus.unit_rows=48"]
    return job(corpus, *keys, "corpus.shuffle_shards=3", f"ray.workers={ranks}", *more)


def due(corpus: NightCorpus, made: Job, name: str, start: Cursor) -> list[dict[str, Any]]:
    """The global batches from ``start`` on, by the definition."""
    role, batch = STREAMS[name]
    how: dict[str, Any] = {"batch": batch, "unit_rows": 48 // 4, "shuffle_shards": 3, "wrap": name == "labelled"}
    knobs = knobs_of(corpus, 4, "some", role, **how)  # type: ignore[arg-type]
    passes = -(-STEPS * EPOCHS // made.streams[name].pass_steps)
    found = list(expected(corpus, knobs, passes, split="some", role=role))
    if name == "labelled":  # which has one view
        found = [{k: v for k, v in each.items() if k != "strong"} | {"labelled": each["weak"]} for each in found]
        found = [{k: v for k, v in each.items() if k != "weak"} for each in found]
    return found[start.epoch * STEPS + start.step : STEPS * EPOCHS]


def whole(taken: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The batches of all ranks as those of one."""
    return [joined(parts) for parts in zip(*taken, strict=True)]


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize(("start", "ranks", "slow"), [(Cursor(), 2, 1), (Cursor(1, 0), 2, 0), (Cursor(2, 4), 1, 0)])
def test_ranks_get_the_sequences_of_the_definition(
    ray_cluster: Any, corpus: NightCorpus, name: str, start: Cursor, ranks: int, slow: int
) -> None:
    """The second cursor is inside a unit; two streams, and one consumer that is slow."""
    made = trained(corpus, ranks)
    units = list(made.units(name, start, EPOCHS, ranks)())
    assert (units[0].first_step > units[0].begin) == (
        start == Cursor(1, 0) or (start.epoch == 2 and name == "labelled")
    )
    assert made.streams[name].pass_steps not in (1, STEPS)
    assert_same(whole(consume(made, start, slow, readers=3, name=name)), due(corpus, made, name, start))


def test_damage_is_the_users_one_line(ray_cluster: Any, tmp_path: Path) -> None:
    corpus = NightCorpus.of(NIGHTS, tmp_path, splits=SPLITS)
    made = trained(corpus, 2)
    for shard in corpus.manifest.shards:
        (tmp_path / shard.path).unlink()
    with pytest.raises(StorageError, match=rf"^{tmp_path}/shards/0000\d-000\.parquet: no such file$"):
        consume(made, Cursor())


def test_runs_that_changed_after_the_start_are_the_users_one_line(ray_cluster: Any, tmp_path: Path) -> None:
    corpus = NightCorpus.of(NIGHTS, tmp_path, splits=SPLITS)
    made = trained(corpus, 2)
    (tmp_path / "nights.parquet").write_bytes(b"damaged")
    with pytest.raises(CorpusError, match=rf"^{tmp_path}/nights\.parquet: .*rayssl prepare"):
        consume(made, Cursor())


@pytest.mark.s3
def test_sequences_come_from_s3(ray_cluster: Any, s3_server: Any, corpus: NightCorpus) -> None:
    """A corpus that was prepared there is the one of the disk, and so is each batch of both streams, also after a
    resume."""
    remote = NightCorpus.of(MORE, f"{s3_server.bucket('nights')}/corpus", splits=SPLITS)
    assert remote.manifest == corpus.manifest
    made = trained(remote, 2)
    for name in STREAMS:
        wanted = due(corpus, made, name, Cursor())
        assert_same(whole(consume(made, Cursor(), readers=2, name=name)), wanted)
        assert_same(whole(consume(made, Cursor(1, 0), readers=2, name=name)), wanted[STEPS:])
