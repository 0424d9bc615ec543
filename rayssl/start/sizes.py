"""Settings for a corpus of a size on a machine: pure arithmetic, from the settings that were measured.

`configs/README.md` has the figures: on two CPU cores about 900 steps of 64 utterances, with an ECAPA of 64 channels,
take five to six minutes. Nothing was measured on a GPU; the settings there are the published ones of encoder and batch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from rayssl.start.machine import Machine

TOO_FEW = 32  # utterances: a batch of them is the whole corpus
LEAST = 4
MANY_FOR_SSPS = 2000  # measured: 640 utterances are too few for clusters, 2,551 are enough
LONG_S = 30.0  # recordings that are longer are divided
SEGMENT_S = 8.0  # about how long a segment of a long recording is
_CPU_STEPS, _GPU_STEPS = 900, 100_000
ONE_RANK_CORES = 2  # measured: two ranks are slower there than one, because readers and Ray need a core
_ALONE_S = 15_000.0  # of segments in all: about a minute for one core (measured: 228 a second)
_LEAST_STEPS, _MOST_PASSES = 200, 40  # a small corpus is not heard for ever
_MOST_MERGED = 20_000  # clusters: comparing all with all takes a core about a minute (measured)
_LEAST_EPOCH, _LONG_EPOCH = 20, 200  # steps of an epoch: each ends with a checkpoint. On CPUs a longer one is cut


class Sizes(NamedTuple):
    """Keys of an experiment: ``workers``, ``batch``, ``epochs`` and ``epoch_steps`` (0: one pass), lengths in seconds,
    ``clusters`` (0: without SSPS), ``merged_from``, ``width`` of the encoder; ``shard_utterances`` of the preparation.

    ``steps`` of the whole training, and ``passes`` over the corpus in them.
    """

    workers: int
    batch: int
    epochs: int
    epoch_steps: int
    steps: int
    passes: float
    segment_s: float
    reference_s: float
    disjoint: bool
    clusters: int
    merged_from: int
    width: int
    shard_utterances: int

    def alone(self, machine: Machine) -> bool:
        """Whether one process without Ray is the quickest: no rank would help it, or its work is short."""
        short = self.steps * self.batch * self.segment_s <= _ALONE_S
        return machine.bare and (short or machine.cores <= ONE_RANK_CORES)


def sizes(
    utterances: int, short_s: float, machine: Machine, *, per_speaker: float = 0.0, ratio: int = 1, sounds: bool = False
) -> Sizes:
    """Settings for ``utterances`` of which three quarters are longer than ``short_s`` seconds.

    Args:
        utterances: for training.
        short_s: seconds.
        machine: what there is.
        per_speaker: the mean number of utterances of a speaker; 0 if speakers are not known.
        ratio: the batch must be divisible by this times the workers (``labels.ratio``).
        sounds: classes of sounds: segments are longer, and there are no clusters.
    """
    workers = ranks(machine)
    most = 128 * workers if machine.gpus else 64
    batch = most
    while batch > 4 and batch * 2 > utterances:  # a pass has at least two steps
        batch //= 2
    workers = min(workers, max(1, batch // (4 * ratio)))
    while batch % (workers * ratio):
        workers -= 1
    a_pass = max(1, utterances // batch)
    most_steps = _GPU_STEPS if machine.gpus else _CPU_STEPS
    wanted = min(most_steps, max(_LEAST_STEPS, _MOST_PASSES * a_pass))
    epoch_steps = _LEAST_EPOCH if a_pass < _LEAST_EPOCH else 0
    if a_pass > _LONG_EPOCH and not machine.gpus:
        epoch_steps = _LONG_EPOCH
    a_epoch = epoch_steps or a_pass
    epochs = max(4, round(wanted / a_epoch))
    longest = 2.0 if machine.gpus or sounds else 1.0
    segment_s = _rounded(min(longest, max(0.3, short_s / 2 if not sounds else short_s)))
    without = sounds or epoch_steps or utterances < MANY_FOR_SSPS
    clusters, merged_from = (0, 0) if without else _clusters(utterances, per_speaker)
    return Sizes(
        workers=workers,
        batch=batch,
        epochs=epochs,
        epoch_steps=epoch_steps,
        steps=epochs * a_epoch,
        passes=epochs * a_epoch * batch / max(1, utterances),
        segment_s=segment_s,
        reference_s=_rounded(min(4.0, max(segment_s, short_s))),
        disjoint=short_s >= 2 * segment_s,
        clusters=clusters,
        merged_from=merged_from,
        width=512 if machine.gpus else 64 if machine.cores < 16 else 128,
        shard_utterances=max(8, min(512, utterances // 8)),
    )


def ranks(machine: Machine) -> int:
    """A rank for each GPU, else a rank for each two cores; a power of two, at most eight on CPUs."""
    if machine.gpus:
        return 1 << int(math.log2(machine.gpus))
    return min(8, 1 << int(math.log2(max(1, machine.cores // 2))))


def _clusters(utterances: int, per_speaker: float) -> tuple[int, int]:
    """K, and how many clusters are merged into K, 0 for none.

    K lies between the sizes of cluster that are known, on the power law through both: 8 of 2,551 utterances where
    clusters are merged and 5.1 where not (measured), 44 of 1,092,009 (published). A cluster must not be larger than a
    speaker, where speakers are known, and smaller where nothing is merged.
    """
    size = 8.0 * (utterances / 2551) ** 0.281
    clusters = _even(utterances / (min(size, max(2.0, per_speaker)) if per_speaker else size))
    if 4 * clusters <= _MOST_MERGED:
        return clusters, min(4 * clusters, int(0.8 * utterances))
    size = 5.1 * (utterances / 2551) ** 0.355
    return _even(utterances / (min(size, max(2.0, 0.65 * per_speaker)) if per_speaker else size)), 0


def _even(number: float) -> int:
    """About ``number``, with two digits that are not zero; at least 2."""
    digits = int(10 ** max(0, int(math.log10(number)) - 1))
    return max(2, int(round(number / digits) * digits))


def _rounded(seconds: float) -> float:
    return max(0.1, math.floor(seconds * 10 + 1e-6) / 10)
