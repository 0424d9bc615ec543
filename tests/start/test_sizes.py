"""Settings from sizes: what was measured comes out again, and everything fits together on any machine."""

from __future__ import annotations

import itertools

import pytest

from rayssl.start.machine import Machine
from rayssl.start.sizes import LEAST, sizes

TWO = Machine(2)


def test_the_measured_corpus_gets_the_measured_settings() -> None:
    """configs/gsc_ssps_simclr.yaml: 2,551 utterances of 4 s, 320 speakers."""
    found = sizes(2551, 4.0, TWO, per_speaker=2551 / 320)
    assert (found.batch, found.workers, found.segment_s, found.reference_s, found.disjoint) == (64, 1, 1.0, 4.0, True)
    assert found.clusters == pytest.approx(320, rel=0.02) and found.width == 64
    assert found.merged_from == pytest.approx(1260, rel=0.02)
    assert 22 <= found.epochs <= 24 and found.epoch_steps == 0 and found.steps == pytest.approx(900, rel=0.05)


def test_the_published_corpus_gets_the_published_clusters() -> None:
    found = sizes(1_092_009, 4.0, Machine(64, 8, 80.0), per_speaker=1_092_009 / 5994)
    assert found.clusters == pytest.approx(25_000, rel=0.02) and found.merged_from == 0
    assert (found.workers, found.batch, found.width, found.segment_s, found.epoch_steps) == (8, 1024, 512, 2.0, 0)


@pytest.mark.parametrize("machine", [Machine(1), TWO, Machine(6), Machine(64), Machine(8, 1, 16), Machine(96, 3, 80)])
def test_everything_fits_together(machine: Machine) -> None:
    for utterances, short_s, ratio, sounds in itertools.product(
        (LEAST, 12, 33, 640, 2000, 50_000, 3_000_000), (0.2, 1.0, 9.0), (1, 2), (False, True)
    ):
        found = sizes(utterances, short_s, machine, ratio=ratio, sounds=sounds)
        assert found.batch <= utterances and found.batch % (found.workers * ratio) == 0
        assert 1 <= found.workers <= max(machine.cores, machine.gpus)
        assert found.epochs >= 4 and found.steps == found.epochs * (found.epoch_steps or utterances // found.batch)
        assert 0.1 <= found.segment_s <= 2.0 and found.reference_s >= found.segment_s
        assert not found.disjoint or 2 * found.segment_s <= short_s
        assert 8 <= found.shard_utterances <= 512
        assert found.clusters == 0 or (2 < found.clusters < utterances and not sounds and found.epoch_steps == 0)
        assert utterances >= 2000 or found.clusters == 0
        assert found.merged_from == 0 or found.clusters < found.merged_from <= min(20_000, utterances)


def test_clusters_are_not_larger_than_speakers() -> None:
    """And smaller where there are so many that they are not merged."""
    few = sizes(4000, 4.0, TWO, per_speaker=4.0)
    many = sizes(4000, 4.0, TWO, per_speaker=400.0)
    assert 4000 / few.clusters == 4 < 4000 / many.clusters
    huge = sizes(3_000_000, 4.0, Machine(64, 8, 80.0), per_speaker=20.0)
    assert huge.merged_from == 0 and 3_000_000 / huge.clusters < 20


@pytest.mark.parametrize(
    ("machine", "small", "large"),
    [
        (Machine(1), True, True),
        (TWO, True, True),
        (Machine(16), True, False),
        (Machine(16, 1, 80.0), False, False),
        (Machine(2, cluster=True), False, False),
    ],
)
def test_where_one_process_is_the_quickest(machine: Machine, small: bool, large: bool) -> None:
    """On two cores for all that they are asked to do; on many for what is done before Ray has started."""
    assert sizes(40, 4.0, machine).alone(machine) is small
    assert sizes(50_000, 4.0, machine).alone(machine) is large


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (2, 1), (3, 1), (4, 2), (7, 2), (8, 4), (64, 8)])
def test_a_rank_for_each_two_cores(cores: int, workers: int) -> None:
    assert sizes(50_000, 4.0, Machine(cores)).workers == workers
