"""Where two streams are follows from the number of steps; what is read there is what the plans say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rayssl.batches.plan import Cursor
from rayssl.batches.streams import joined
from rayssl.errors import ConfigError, CorpusError
from rayssl.experiment.job import resolve
from tests.runs import DASO_METHOD, FEW, SPLITS, batches, build, experiment, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, (9, 10, 6), splits=SPLITS)
    return folder


def test_two_streams_of_their_own_lengths(corpus: Path, tmp_path: Path) -> None:
    """17 unlabelled clips in batches of 8 and 8 labelled ones in batches of 4; an epoch is 3 steps of neither."""
    settings = experiment(tmp_path / "run", corpus, *FEW, method=DASO_METHOD)
    job = resolve(settings)
    own, labelled = job.own, job.labelled
    assert labelled is not None
    assert (own.batch, own.pass_steps, own.epoch_steps, own.cycles) == (8, 2, 3, True)
    assert (labelled.batch, labelled.pass_steps, labelled.epoch_steps) == (4, 2, 3)
    rows = list(batches(settings, build(settings)))
    assert [(raw["epoch"], raw["step"]) for raw in rows] == [divmod(step, 2) for step in range(9)]
    assert [(raw["labelled"]["epoch"], raw["labelled"]["step"]) for raw in rows] == [divmod(s, 2) for s in range(9)]
    few = np.concatenate([raw["labelled"]["id"] for raw in rows[:2]])
    many = np.concatenate([raw["id"] for raw in rows[:2]])
    assert len(set(few)) == 8 and len(set(many)) == 16 and not set(few) & set(many)
    for raw in rows:
        assert (raw["label"] == -1).all() and (raw["truth"] == raw["id"] % 4).all()
        assert (raw["labelled"]["label"] == raw["labelled"]["id"] % 4).all()


def test_from_any_cursor_on_they_are_the_same(corpus: Path, tmp_path: Path) -> None:
    settings = experiment(tmp_path / "run", corpus, *FEW, method=DASO_METHOD)
    loop = build(settings)
    whole = list(batches(settings, loop))
    for done in (1, 4, 8):
        loop.cursor = Cursor(*divmod(done, 3))
        for raw, expected in zip(batches(settings, loop), whole[done:], strict=True):
            for mine, theirs in ((raw, expected), (raw["labelled"], expected["labelled"])):
                np.testing.assert_array_equal(mine["id"], theirs["id"])
            np.testing.assert_array_equal(raw["weak"], expected["weak"])


def test_the_labelled_alone_and_whole_epochs(corpus: Path, tmp_path: Path) -> None:
    changes = ("labels={split: few, class_aware: true}", "training.batch=6")
    settings = experiment(tmp_path / "run", corpus, *changes, method={"name": "classifier"})
    job = resolve(settings)
    own, labelled = job.own, job.labelled
    assert labelled is None and own.pass_steps == own.epoch_steps == 2 and not own.cycles  # the second one filled up
    rows = list(batches(settings, build(settings)))
    assert [raw["epoch"] for raw in rows] == [0, 0, 1, 1, 2, 2]
    assert all((raw["label"] >= 0).all() for raw in rows)


def test_batches_that_fill_a_memory_have_no_labelled_ones() -> None:
    rows = [{"fill": True, "n": 0}, {"fill": False, "n": 1}, {"fill": False, "n": 2}]
    found = list(joined(iter(rows), iter([{"few": 1}, {"few": 2}])))
    assert [raw.get("labelled") for raw in found] == [None, {"few": 1}, {"few": 2}]


def test_mistakes_are_one_line(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"method\.name=daso: learns from labels; name a split in labels\.split"):
        experiment(tmp_path, corpus, method=DASO_METHOD)
    with pytest.raises(ConfigError, match=r"training\.batch=8 .* labels\.ratio=3"):
        experiment(tmp_path, corpus, "labels={split: few, ratio: 3}", method=DASO_METHOD)
    with pytest.raises(ConfigError, match=r"training\.epoch_steps: SSPS clusters between passes"):
        experiment(tmp_path, corpus, "training.epoch_steps=3")
    with pytest.raises(ConfigError, match=r"labels: SSPS remembers the whole corpus"):
        experiment(tmp_path, corpus, "labels={split: few}")
    settings = experiment(tmp_path, corpus, "labels={split: many}", method=DASO_METHOD)
    with pytest.raises(CorpusError, match=r"has no split 'many' \(splits: few\)"):
        resolve(settings)
    settings = experiment(tmp_path, corpus, *FEW, "training.batch=24", method=DASO_METHOD)
    with pytest.raises(CorpusError, match=r"split 'few' has 17 unlabelled .* an epoch would be empty"):
        resolve(settings)
