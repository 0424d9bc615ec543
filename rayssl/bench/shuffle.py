"""Counts how well the batches of an epoch mix a corpus: how many different utterances an utterance meets in them.

It computes the batches as a training does, but reads no audio: the corpus exists only as a manifest. A full shuffle,
which draws a permutation of all utterances for each epoch, is counted in the same way.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rayssl.batches.plan import SHUFFLE_SHARDS, UNIT_ROWS, Cursor, plan, unit_steps
from rayssl.data.shards import GROUP_ROWS, VERSION, Manifest, Shard
from rayssl.errors import UserError
from rayssl.views.reading import ReadSettings, rows_of

Figures = dict[str, int | float | str | bool]
_SAMPLE, _SAMPLE_BYTES = 4096, 256 << 20  # the most utterances whose batch-mates are counted, and bytes for them
_SORTED_ROWS = 256
_SAMPLED, _FULL = 1, 2  # purposes of the seeds


@dataclass(frozen=True)
class ShuffleCase:
    """A corpus of ``shards`` times ``shard_utterances`` utterances, and how a training of ``epochs`` epochs mixes it.

    ``group_rows``: the utterances of a row group; 0 if each shard is one group. The others: see
    `rayssl.batches.plan.plan`.
    """

    shards: int = 64
    shard_utterances: int = 512
    batch: int = 256
    epochs: int = 20
    shuffle_shards: int = SHUFFLE_SHARDS
    unit_rows: int = UNIT_ROWS
    group_rows: int = GROUP_ROWS
    seed: int = 0

    @property
    def utterances(self) -> int:
        """The size of the corpus."""
        return self.shards * self.shard_utterances


def measure(job: ShuffleCase) -> Figures:
    """The fields of ``job`` and the figures below. "Mates" of an utterance are those that were in a batch with it.

    - utterances; sampled: of how many of them, drawn at random, the mates are counted. Each count is exact.
    - mates: the mean number of different mates over all epochs. mates_full: that of a full shuffle.
      mates_full_expected: its expected value. mates_pool: the expected value if an utterance met only those of one
      unit, the same in every epoch.
    - share: mates divided by mates_full.
    - shards_per_batch and largest_shard_share: the mean number of shards in a batch, and the mean share of the batch
      that the largest of them has. shards_per_batch_full and largest_shard_share_full: those of a full shuffle.
    - seconds.

    Raises `UserError` for a job that is not possible.
    """
    _check(job)
    began = time.perf_counter()
    count = min(job.utterances, _SAMPLE, max(1, _SAMPLE_BYTES // (4 * job.batch * job.epochs)))
    sample = np.random.default_rng([job.seed, _SAMPLED]).permutation(job.utterances)[:count]
    ours, full = _counted(job, planned(job), sample), _counted(job, _shuffled(job), sample)
    steps = job.utterances // job.batch
    met = steps * job.batch / job.utterances * (job.batch - 1) / max(1, job.utterances - 1)
    pool = min(job.utterances, job.batch * unit_steps(job.batch, job.unit_rows))
    met_in_pool = (job.batch - 1) / max(1, pool - 1)
    return {
        **asdict(job),
        "utterances": job.utterances,
        "sampled": count,
        "mates": ours[0],
        "mates_full": full[0],
        "mates_full_expected": (job.utterances - 1) * (1 - (1 - met) ** job.epochs),
        "mates_pool": (pool - 1) * (1 - (1 - met_in_pool) ** job.epochs),
        "share": ours[0] / full[0],
        "shards_per_batch": ours[1],
        "shards_per_batch_full": full[1],
        "largest_shard_share": ours[2],
        "largest_shard_share_full": full[2],
        "seconds": time.perf_counter() - began,
    }


def planned(job: ShuffleCase) -> Iterator[np.ndarray]:
    """The batches of each epoch, as a training has them: ids ``[steps, batch]``, int64."""
    manifest = _manifest(job)
    settings = ReadSettings("", manifest, job.seed, job.batch, 1)
    how: dict[str, Any] = {
        "seed": job.seed,
        "batch": job.batch,
        "unit_rows": job.unit_rows,
        "shuffle_shards": job.shuffle_shards,
    }
    for epoch in range(job.epochs):
        units = plan(manifest, epochs=epoch + 1, start=Cursor(epoch), **how)
        rows = [rows_of(unit, settings) for unit in units]
        yield np.concatenate([job.shard_utterances * unit.shard + unit.row for unit in rows]).reshape(-1, job.batch)


def table(figures: Figures) -> str:
    """The figures for a person."""

    def line(text: str, *values: str) -> str:
        return f"{text:<38}" + "".join(f"{value:>14}" for value in values)

    def whole(name: str) -> str:
        return f"{figures[name]:,.0f}"

    size = f"{figures['utterances']:,} utterances in {figures['shards']:,} shards, {figures['epochs']} epochs"
    return "\n".join(
        (
            line(f"{size}, batch {figures['batch']:,}"),
            line("", "rayssl", "full shuffle", "expected", "one unit"),
            line(
                "different utterances met, mean",
                *map(whole, ("mates", "mates_full", "mates_full_expected", "mates_pool")),
            ),
            line("share of a full shuffle", f"{figures['share']:.1%}"),
            line("shards in a batch, mean", *(f"{figures['shards_per_batch' + end]:.1f}" for end in ("", "_full"))),
            line(
                "largest shard's share of a batch, mean",
                *(f"{figures['largest_shard_share' + end]:.1%}" for end in ("", "_full")),
            ),
            f"mates of {figures['sampled']:,} utterances were counted in {figures['seconds']:.1f} s",
        )
    )


def _check(job: ShuffleCase) -> None:
    for name in ("shards", "shard_utterances", "epochs", "shuffle_shards", "unit_rows"):
        if getattr(job, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(job, name)}")
    if job.group_rows < 0 or job.seed < 0:
        raise UserError("--group-rows and --seed must not be negative")
    if not 2 <= job.batch <= job.utterances:
        message = f"--batch {job.batch} must lie in 2..{job.utterances}, the utterances of the corpus"
        raise UserError(f"{message} (--shards times --shard-utterances)")


def _manifest(job: ShuffleCase) -> Manifest:
    shards = [
        Shard(path=str(k), rows=job.shard_utterances, first_id=k * job.shard_utterances, seconds=0, bytes=0, sha256="")
        for k in range(job.shards)
    ]
    counts = dict.fromkeys(("speakers", "recordings", "labels", "rejected"), 0)
    return Manifest(
        version=VERSION,
        format="flac",
        rows=job.utterances,
        seconds=0,
        shards=shards,
        settings={},
        fingerprint="",
        group_rows=job.group_rows,
        **counts,
    )


def _shuffled(job: ShuffleCase) -> Iterator[np.ndarray]:
    random = np.random.default_rng([job.seed, _FULL])
    for _ in range(job.epochs):
        ids = random.permutation(job.utterances)
        yield ids[: len(ids) // job.batch * job.batch].reshape(-1, job.batch)


def _counted(job: ShuffleCase, epochs: Iterator[np.ndarray], sample: np.ndarray) -> tuple[float, float, float]:
    """The mean number of mates of ``sample``, of shards in a batch, and the mean share of a batch's largest shard."""
    mates = np.empty((len(sample), job.epochs, job.batch), np.int32)
    present, largest, batches = 0, 0, 0
    for epoch, ids in enumerate(epochs):
        place = np.full(job.utterances, -1)
        place[ids] = np.arange(len(ids))[:, None]
        mine = place[sample]
        mates[:, epoch] = np.where(mine[:, None] >= 0, ids[mine], sample[:, None])  # left out: with itself alone
        cells = np.arange(len(ids))[:, None] * job.shards + ids // job.shard_utterances
        counts = np.bincount(cells.ravel(), minlength=len(ids) * job.shards).reshape(len(ids), job.shards)
        present += int(np.count_nonzero(counts))
        largest += int(counts.max(axis=1).sum())
        batches += len(ids)
    met = 0
    for first in range(0, len(sample), _SORTED_ROWS):
        ordered = np.sort(mates[first : first + _SORTED_ROWS].reshape(-1, job.epochs * job.batch), axis=1)
        met += int(np.count_nonzero(np.diff(ordered, axis=1)))  # as many as different ids, less the utterance itself
    return met / len(sample), present / batches, largest / batches / job.batch
