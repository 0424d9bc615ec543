"""What `rayssl bench ingest` is made of: its corpus, the DataLoader that it compares with, and its arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayssl import storage
from rayssl.batches.plan import Cursor
from rayssl.bench import corpus
from rayssl.bench.dataloader import LoaderSupply, UnitBatches
from rayssl.bench.ingest import IngestCase, job_for, measure, table
from rayssl.bench.shuffle import ShuffleCase
from rayssl.cli import main
from rayssl.data import decode, integrity, shards
from rayssl.errors import UserError
from rayssl.experiment.job import Job
from rayssl.runtime.bench import processes
from rayssl.runtime.bench.consumer import take
from rayssl.views import reading

CASE = IngestCase(batch=8, segments=(0.2, 0.1), unit_rows=16, readers=2)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Over 40 utterances."""
    uri = str(tmp_path_factory.mktemp("bench") / "corpus")
    return job_for(CASE, uri, corpus.write(uri, 40, 0.3, "flac", seed=0))


def planned(job: Job) -> Iterator[list[dict[str, Any]]]:
    """The batches of each unit."""
    for unit in job.units("train", Cursor(), 1, 1)():
        found = reading.read(unit, job.read_settings("train", 1), job.segments_of("train", 0))
        yield [batch for packed in found for batch in packed.batches()]


def same(tensors: dict[str, Any], arrays: dict[str, Any]) -> bool:
    assert tensors.keys() == arrays.keys()
    return all(np.array_equal(np.asarray(tensors[key]), arrays[key]) for key in arrays)


@pytest.mark.parametrize("format", ["flac", "pcm16"])
def test_the_corpus_is_whole_and_taken_away(tmp_path: Path, format: decode.Format) -> None:
    kept = tmp_path / "mine"
    kept.mkdir()
    with corpus.synthetic(str(kept), utterances=300, seconds=0.1, format=format, seed=1) as (uri, manifest):
        assert Path(uri).parent == kept
        assert shards.read_manifest(uri) == manifest
        assert (manifest.rows, len(manifest.shards)) == (300, 2)
        assert manifest.seconds == pytest.approx(30)
        assert integrity.verify(uri) == []
        table = shards.read_shard(uri, manifest.shards[0])
        assert len(set(table["audio"].to_pylist())) == 32
    assert list(kept.iterdir()) == []


@pytest.mark.s3
def test_the_corpus_is_taken_away_from_a_bucket(s3_server: Any) -> None:
    bucket = s3_server.bucket("benchcorpus")
    with corpus.synthetic(f"{bucket}/below", utterances=40, seconds=0.1, format="pcm16", seed=1) as (uri, manifest):
        assert uri.startswith(f"{bucket}/below/rayssl-bench-")
        supply = LoaderSupply(job_for(CASE, uri, manifest), 1)
        assert supply.started == "spawn", "an object store's threads do not survive a fork"
        assert len(storage.list_files(uri)) == 3
    assert storage.list_files(bucket) == []


def test_the_job_has_the_segments_that_were_asked_for(job: Job) -> None:
    assert [(each.name, each.seconds) for each in job.segments_of("train", 0)] == [("a", 0.2), ("b", 0.1)]
    assert job.own.cycles, "it reads as long as it is measured"


def test_a_dataset_without_workers_has_the_batches_of_the_plan(job: Job) -> None:
    expected = [batch for unit in islice(planned(job), 5) for batch in unit]
    for mine, theirs in zip(UnitBatches(job), expected, strict=False):
        assert same(mine, theirs)
        assert mine["a"].dtype == torch.int16


@pytest.mark.long
def test_workers_take_units_in_turn(job: Job) -> None:
    supply = LoaderSupply(job, 2)
    try:
        before = supply.cpu()
        assert supply.burst == 4
        assert supply.open() > 0  # the first batch is taken
        found = [next(supply._batches) for _ in range(7)]
        spent = processes.spent(before, supply.cpu(), supply.kind)
        assert spent.keys() == {"consumer", "tasks"}
        assert len(supply.cpu()) >= 3, "this process and two workers"
    finally:
        supply.close()
    units = list(islice(planned(job), 6))  # of 2, 2 and 1 batches; then the next pass
    one = [batch for unit in units[0::2] for batch in unit]
    two = [batch for unit in units[1::2] for batch in unit]
    expected = [batch for pair in zip(one, two, strict=False) for batch in pair]
    assert all(same(mine, theirs) for mine, theirs in zip(found, expected[1:], strict=False))


def test_waiting_is_counted_apart_from_the_pause() -> None:
    taken = take(iter(range(1, 4)), 3, pause_s=0.01)
    assert taken.seconds >= 0.03
    assert taken.waited < taken.seconds - 0.03 + 1e-3
    with pytest.raises(UserError, match="the batches ended early"):
        take(iter([1]), 2)


def test_seconds_are_those_in_between() -> None:
    before = {("", 1, 0.0): ("a", 5.0), ("", 2, 0.0): ("b", 1.0), ("", 4, 0.0): ("gone", 9.0)}
    after = {("", 1, 0.0): ("a", 7.5), ("", 2, 0.0): ("b", 1.5), ("", 3, 0.0): ("b new", 2.0), ("", 2, 9.0): ("b", 1.0)}
    spent = processes.spent(before, after, lambda key, title: title[0])
    assert spent == {"a": 2.5, "b": 3.5}


def test_this_process_is_counted() -> None:
    found = processes.seconds(processes.own())
    assert any("python" in title or "pytest" in title for title, _ in found.values())


def test_the_table_shows_both() -> None:
    figures: dict[str, Any] = {
        **dict.fromkeys(("utterances_per_s", "cpu_seconds_per_1000", "first_batch_s"), 1234.5),
        **dict.fromkeys((f"cpu_{kind}_per_1000" for kind in ("tasks", "splitter", "consumer", "rest")), 0.25),
        **dict.fromkeys(("bytes_encoded_per_utterance", "bytes_shipped_per_utterance", "cores_needed"), 7),
        "waiting": 0.125,
        "step_ms": 40.0,
        "target": 6400.0,
        "segments": (2.0, 2.0),
        "format": "flac",
        "batch": 256,
        "ranks": 1,
        "device": "cpu",
        "readers": 2,
        "steps": 9,
    }
    alone = table(figures)
    assert "12.5" in alone and "6,400" in alone and "DataLoader" not in alone
    names = ("utterances_per_s", "cpu_seconds_per_1000", "first_batch_s")
    both = table(figures | {f"dataloader_{name}": 77.0 for name in names} | {"ratio": 1.5})
    assert both.endswith("rayssl / DataLoader: 1.50")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"batch": 9, "ranks": 2}, "--batch 9 must be at least 2, and a multiple of --ranks 2"),
        ({"segments": ()}, "--segments takes 1 to 26 lengths above 0"),
        ({"segments": (2.0, 0.0)}, "--segments takes 1 to 26 lengths above 0"),
        ({"step_ms": 0.0}, "--step-ms must be above 0, got 0"),
        ({"readers": -1}, "must not be negative"),
        ({"corpus": "c", "into": "d"}, "--into is the place of a synthetic corpus"),
        ({"against": "dataloader", "ranks": 2, "batch": 8}, "--against dataloader compares one rank"),
        ({"unit_rows": 0}, "--unit-rows must be at least 1, got 0"),
    ],
)
def test_jobs_that_cannot_be(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        measure(replace(CASE, **changes))


def test_a_batch_above_the_corpus_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ["--utterances", "20", "--seconds", "0.1", "--batch", "32", "--into", str(tmp_path)]
    assert main(["bench", "ingest", *options]) == 2
    line = "rayssl bench: --batch 32 is more than the corpus has: 20 utterances"
    assert capsys.readouterr().err.splitlines()[-1] == line
    assert list(tmp_path.iterdir()) == []


def test_the_defaults_of_the_command_line_are_those_of_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line cannot import them: its help starts without NumPy."""
    cases: list[Any] = []

    def seen(case: Any, *_: Any) -> dict[str, Any]:
        cases.append(case)
        raise UserError("enough")

    monkeypatch.setattr("rayssl.bench.ingest.measure", seen)
    monkeypatch.setattr("rayssl.bench.shuffle.measure", seen)
    assert main(["bench", "ingest"]) == main(["bench", "shuffle"]) == 2
    assert cases == [IngestCase(), ShuffleCase()]


def test_lengths_that_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "ingest", "--segments", "2;2"])
    assert "must be seconds with commas between them, got '2;2'" in capsys.readouterr().err
