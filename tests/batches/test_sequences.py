"""Streams of sequences: what `plan` and `read` give is what the definition says; the properties of a pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayssl.batches import cache, plan
from rayssl.batches.plan import Cursor, cycle_position, plan_steps, steps_per_epoch
from rayssl.batches.sequences import Sequences, sequence_counts, sequences
from rayssl.batches.streams import Stream, labelled_stream, own_stream
from rayssl.data import shards
from rayssl.data.shards import Manifest
from rayssl.errors import ConfigError, CorpusError
from rayssl.experiment.job import Job, job_of
from rayssl.views import reading
from rayssl.views.reading import ReadSettings
from tests.batches import definition, night_definition
from tests.batches.definition import Corpus, Knobs, assert_same
from tests.batches.night_definition import CUT, NightCorpus, expected, knobs_of
from tests.runs import experiment, write_corpus

#: Runs of 12 (three times), 6, 10, 5, 7, 1, 3, 4, 2, 12 and 1 epochs in shards of at most 12.
NIGHTS = {
    "a/n0": "WWLLLLDDDDRR" + "LLLLRR",
    "a/n1": "WLLLLLLLLLLL" + "LLLLLLLLLLDD" + "L",
    "b/n0": "WLLLL_LLDDRRL",
    "c/n0": "W_LLL_LLLL_LL"[:10],
    "d/n0": "WLDRWLDRWLDR" + "W",
    "e/n0": "LLRR?",
}
SPLITS: dict[str, Any] = {"some": {"nights": {"subjects": 2, "held_out": 0.2}, "seed": 1}}
PARTS = {1: 256, 2: 6, 4: 3}  # how many parts a batch of 12 has with which plan._PART_ROWS
STREAMS: dict[str, dict[str, Any]] = {
    "all": {"length": 4},
    "short": {"length": 20, "batch": 4},
    "single epochs": {"length": 1},
    "odd": {"length": 5, "batch": 4, "unit_rows": 8},
    "one window": {"length": 3, "shuffle_shards": 16},
    "small units": {"length": 4, "unit_rows": 1, "shuffle_shards": 1},
    "wrap": {"length": 4, "wrap": True},
    "more than the corpus": {"length": 6, "batch": 60, "unit_rows": 120, "wrap": True},
    "labelled": {"length": 4, "batch": 4, "role": "labelled", "wrap": True},
    "unlabelled": {"length": 3, "batch": 4, "role": "unlabelled"},
    "split": {"length": 4, "batch": 6, "role": "all", "split": "some"},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> NightCorpus:
    return NightCorpus.of(NIGHTS, tmp_path_factory.mktemp("nights"), splits=SPLITS)


def made(corpus: NightCorpus, name: str, **changes: Any) -> tuple[Knobs, dict[str, Any]]:
    """The settings of a stream, and what `expected` has to know of it."""
    keys = {"length": 4, "role": "all", "split": None, **STREAMS[name], **changes}
    if keys["role"] != "all":
        keys["split"] = "some"
    of = {"split": keys["split"], "role": keys["role"]}
    return knobs_of(corpus, **keys), of


def read(corpus: NightCorpus, knobs: Knobs, start: Cursor, epochs: int, ranks: int = 1) -> list[dict[str, Any]]:
    return definition.read(Corpus(corpus.uri, corpus.manifest, []), knobs, CUT, start, epochs, ranks)


def test_the_runs_are_those_that_the_tests_need(corpus: NightCorpus) -> None:
    lengths = [len(run) for shard in range(len(corpus.manifest.shards)) for run in corpus.runs(shard, None, "all")]
    assert sorted(lengths) == [1, 1, 1, 3, 4, 5, 5, 6, 7, 12, 12, 12, 12]


@pytest.mark.parametrize("name", STREAMS)
def test_the_stream_is_what_its_definition_says(
    corpus: NightCorpus, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Also with two and four parts. The values are the bits of the pictures in the shards."""
    knobs, of = made(corpus, name)
    for rows in PARTS.values():
        monkeypatch.setattr(plan, "_PART_ROWS", rows)
        found = read(corpus, knobs, Cursor(), 2)
        assert_same(found, list(expected(corpus, knobs, 2, **of)))
        assert len(found) == 2 * steps_per_epoch(0, knobs.batch, knobs.selection, wrap=knobs.wrap)
        for batch in found:
            assert batch["weak"].shape == (knobs.batch * knobs.selection.length, 4 * 31)  # type: ignore[union-attr]


@pytest.mark.long
@pytest.mark.parametrize("format", ["flac", "pcm16"])
def test_samples_are_those_of_the_shards(tmp_path: Path, format: str) -> None:
    sound = NightCorpus.of({"a/n0": "WLLLD_RR", "b/n0": "LLL"}, tmp_path, format=format, limits={"shard_epochs": 4})
    knobs = knobs_of(sound, 3, batch=2, unit_rows=4, wrap=True)
    found = read(sound, knobs, Cursor(), 2)
    assert_same(found, list(expected(sound, knobs, 2)))
    assert found[0]["strong"].shape == (6, 480000) and found[0]["strong"].dtype == np.int16


@pytest.mark.parametrize("name", ["all", "labelled"])
def test_ranks_share_the_batches_of_one(corpus: NightCorpus, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A sequence is never divided, and several tasks may serve the ranks of a step."""
    knobs, _ = made(corpus, name, batch=12)
    for parts, rows in PARTS.items():
        monkeypatch.setattr(plan, "_PART_ROWS", rows)
        whole = read(corpus, knobs, Cursor(), 2)
        for ranks in (2, 4, 6):
            assert_same(read(corpus, knobs, Cursor(), 2, ranks), whole)
            units = plan.plan(corpus.manifest, start=Cursor(), epochs=1, ranks=ranks, **knobs.planned())
            assert {unit.lanes for unit in units} == {np.gcd(parts, ranks)}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", ["all", "labelled", "odd"])
def test_what_is_resumed_is_the_rest(
    corpus: NightCorpus, monkeypatch: pytest.MonkeyPatch, name: str, ranks: int
) -> None:
    """From every step of two passes, also inside a unit."""
    monkeypatch.setattr(plan, "_PART_ROWS", 2)
    knobs, _ = made(corpus, name, batch=4, unit_rows=6)  # with two parts three steps in a unit
    whole = read(corpus, knobs, Cursor(), 2, ranks)
    each = steps_per_epoch(0, 4, knobs.selection, wrap=knobs.wrap)
    assert len(whole) == 2 * each and plan.unit_steps(4, 6) == 3
    for at in range(2 * each):
        assert_same(read(corpus, knobs, Cursor(*divmod(at, each)), 2, ranks), whole[at:])


def test_a_stream_that_cycles_is_the_same_passes_again(corpus: NightCorpus) -> None:
    knobs, of = made(corpus, "labelled")
    each = steps_per_epoch(0, 4, knobs.selection, wrap=True)
    count = 2 * each + 1
    whole = list(expected(corpus, knobs, 3, **of))[:count]

    def steps(start: int, number: int) -> list[dict[str, Any]]:
        units = list(plan_steps(corpus.manifest, start_step=start, steps=number, **knobs.planned()))
        return definition.merged(Corpus(corpus.uri, corpus.manifest, []), knobs, CUT, units, 1)

    assert [cycle_position(k, each) for k in range(count)] == [Cursor(b["epoch"], b["step"]) for b in whole]
    for start in range(count):
        assert_same(steps(start, min(3, count - start)), whole[start : start + 3])


def drawn(selection: Sequences, epoch: int, seed: int = 0) -> list[np.ndarray]:
    """The ids of all sequences of a pass."""
    found = []
    for shard in range(len(selection.counts)):
        rows, turns, times = selection.entries(shard, seed, epoch)
        assert (turns == 0).all() and (times == 1).all() and (np.diff(rows) > 0).all()
        found += [*(selection.bounds[shard] + selection.expanded(np.full(len(rows), shard), rows))]
    return found


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 40])
def test_a_pass_has_every_epoch_and_no_sequence_twice(corpus: NightCorpus, length: int) -> None:
    selection = sequences(corpus.manifest, corpus.uri, None, "all", length)
    runs = [run for shard in range(len(corpus.manifest.shards)) for run in corpus.runs(shard, None, "all")]
    run_of = {number: run for run in runs for number in run}
    for epoch in range(40):
        found = drawn(selection, epoch)
        assert len({tuple(ids) for ids in found}) == len(found) == selection.rows_total
        assert {int(number) for ids in found for number in ids} == set(range(len(corpus.rows)))
        for ids in found:
            run = run_of[int(ids[0])]
            at = run.index(int(ids[0]))
            inside = run[at : at + length]
            assert ids.tolist() == inside + [run[-1]] * (length - len(inside))
            assert len(inside) == length or (at == 0 and len(run) < length)  # only short runs are filled up
        of_run = [len([ids for ids in found if ids[0] in run]) for run in runs]
        most = [1 if len(run) <= length else len(run) // length + 1 for run in runs]
        assert of_run == ([len(run) for run in runs] if length == 1 else most)
        assert of_run == sequence_counts(np.array([len(run) for run in runs]), length).tolist()


@pytest.mark.parametrize(("length", "moves"), [(4, 3), (5, 4), (3, 2), (12, 1), (11, 1), (10, 1), (7, 1)])
def test_where_sequences_begin_varies_from_pass_to_pass(corpus: NightCorpus, length: int, moves: int) -> None:
    """Of a run of 12: all shifts that are possible come, about equally often. Another seed has others.

    Its first and last sequence stay, else its ends would be missing: two sequences never move.
    """
    selection = sequences(corpus.manifest, corpus.uri, None, "all", length)
    shard = next(k for k in range(len(corpus.manifest.shards)) if len(corpus.runs(k, None, "all")[0]) == 12)
    passes = [tuple(selection.entries(shard, 0, epoch)[0].tolist()) for epoch in range(300)]
    assert len(set(passes)) == moves
    least = min(passes.count(each) for each in set(passes))
    assert least > 0.6 * 300 / moves
    others = [tuple(selection.entries(shard, 1, epoch)[0].tolist()) for epoch in range(300)]
    assert (others != passes) == (moves > 1)
    if moves > 1:  # runs move on their own, and streams too
        runs = [k for k in range(len(corpus.manifest.shards)) if len(corpus.runs(k, None, "all")[0]) == 12]
        both = [[selection.entries(k, 0, e)[0].tolist() for e in range(300)] for k in runs[:2]]
        assert both[0] != both[1]
        role = "labelled" if corpus.role("some", corpus.manifest.shards[shard].first_id) & 1 else "unlabelled"
        own = sequences(corpus.manifest, corpus.uri, "some", role, length)  # type: ignore[arg-type]
        if own.counts[shard]:
            assert [tuple(own.entries(shard, 0, e)[0].tolist()) for e in range(300)] != passes


@pytest.mark.parametrize("role", ["labelled", "unlabelled", "all"])
def test_sequences_of_a_role_are_all_of_its_nights(corpus: NightCorpus, role: Any) -> None:
    selection = sequences(corpus.manifest, corpus.uri, "some", role, 4)
    found = {int(number) for ids in drawn(selection, 3) for number in ids}
    bit = night_definition.BITS[role]
    assert found == {k for k in range(len(corpus.rows)) if corpus.role("some", k) & bit}
    every = [shards_rows for shard in range(len(corpus.manifest.shards)) for shards_rows in
             (selection.bounds[shard] + selection.rows_of(shard)).tolist()]  # fmt: skip
    assert set(every) == found and len(every) == len(found)


METHOD = {"name": "sleep", "sequential": {"weight": 1.0}}
MEL = {"n_mels": 4, "hop_ms": 1000, "f_max": 4000}
ENCODER = {
    "frontend": {"name": "nightmel", "mel": MEL},
    "backbone": {"name": "soundsleepnet", "sequence": 4, "embedding_dim": 8},
}


def job(corpus: NightCorpus, *changes: str, method: dict[str, Any] | None = None, encoder: Any = ENCODER) -> Job:
    """A training of `sleep` on both streams."""
    tree = [
        f"corpus.uri={corpus.uri}",
        "labels={split: some, ratio: 2}",
        "training={batch: 4, epochs: 2, epoch_steps: 3}",
        "corpus.unit_rows=24",
    ]
    keys = [f"encoder={encoder!r}".replace("'", '"'), *tree, *changes]
    return job_of(experiment(Path("run"), Path("corpus"), *keys, method=method or METHOD), corpus.manifest)


def test_two_streams_of_a_job(corpus: NightCorpus) -> None:
    """The unlabelled and the labelled one: each is what its definition says, and they share no subject."""
    found = job(corpus)
    assert found.labelled is not None and (found.own.batch, found.labelled.batch) == (4, 2)
    assert (found.own.length, found.labelled.length, found.facts.sequence) == (4, 4, 4)
    assert found.own.cycles and found.labelled.cycles
    subjects = []
    for name, role, batch in (("train", "unlabelled", 4), ("labelled", "labelled", 2)):
        stream = found.streams[name]
        knobs = knobs_of(corpus, 4, "some", role, batch=batch, unit_rows=24 // 4, wrap=name == "labelled",  # type: ignore
                         shuffle_shards=found.experiment.corpus.shuffle_shards)  # fmt: skip
        rows = []
        for unit in found.units(name, Cursor(), 2, 1)():
            for packed in reading.read(unit, found.read_settings(name, 1), CUT):
                rows += packed.batches()
        passes = -(-6 // stream.pass_steps)
        wanted = list(expected(corpus, knobs, passes, split="some", role=role))[:6]
        assert_same([{k: v for k, v in row.items() if k != "rank"} for row in rows], wanted)
        subjects.append({int(each) for row in rows for each in row["speaker"]})
        later = []
        for unit in found.units(name, Cursor(1, 1), 2, 1)():
            for packed in reading.read(unit, found.read_settings(name, 1), CUT):
                later += packed.batches()
        assert_same(later, rows[4:])
        labels = np.concatenate([row["label"] for row in rows])
        assert (labels == -1).all() if role == "unlabelled" else (labels >= 0).any()
    assert not subjects[0] & subjects[1]


def test_supervised_has_one_stream(corpus: NightCorpus) -> None:
    found = job(corpus, "training.epoch_steps=0", method={"name": "sleep"})
    assert found.labelled is None and not found.own.cycles and found.own.wrap
    assert found.own.selection is not None and found.own.selection.roles == "labelled"
    assert found.own.pass_steps == -(-found.own.selection.rows_total // 4)


def test_mistakes_are_one_line(corpus: NightCorpus, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"labels\.class_aware: sequences have several stages; use method\.stage_pow"):
        job(corpus, "labels.class_aware=true")
    with pytest.raises(CorpusError, match=r"has no split 'others' \(splits: some\)"):
        job(corpus, "labels.split=others")
    with pytest.raises(
        ConfigError, match=r"encoder\.frontend\.mel\.n_mels: is 5, but the pictures of .* with 4; use the"
    ):
        job(corpus, "encoder.frontend.mel.n_mels=5")
    with pytest.raises(
        CorpusError, match=r"split 'some' has \d+ unlabelled sequences of 4 epochs of sleep and a batch"
    ):
        job(corpus, "training.batch=80", "labels.ratio=40")
    with pytest.raises(
        CorpusError, match=r"^the corpus has 13 sequences of 40 epochs of sleep and training\.batch is 16"
    ):
        _own(corpus, "all", batch=16, split=None, length=40)
    plain = write_corpus(tmp_path / "plain", (9, 8), splits={"some": {"labelled": {"per_class": 2}}})
    with pytest.raises(CorpusError, match=r"plain: has no nights; prepare it from a source of nights"):
        sequences(plain, str(tmp_path / "plain"), None, "all", 4)
    with pytest.raises(
        ConfigError, match=r"plain: method\.name=sleep needs a corpus of nights; prepare it from a source"
    ):
        job(NightCorpus(str(tmp_path / "plain"), plain, [], []))
    with pytest.raises(ConfigError, match=r"holds pictures of epochs of sleep, which method\.name=simclr cannot use"):
        job_of(experiment(tmp_path / "r", Path(corpus.uri), method={"name": "simclr"}), corpus.manifest)


def test_another_file_of_runs_or_roles_is_refused(corpus: NightCorpus, tmp_path: Path) -> None:
    NightCorpus.of({"a/n0": "WWW", "b/n0": "LL"}, tmp_path, splits=SPLITS)
    with pytest.raises(CorpusError, match=r"nights\.parquet: not the file that the manifest lists \(sha256 differs\)"):
        sequences(corpus.manifest, str(tmp_path), None, "all", 4)
    whole = (Path(corpus.uri) / "nights.parquet").read_bytes()
    (tmp_path / "nights.parquet").write_bytes(whole)
    with pytest.raises(CorpusError, match=r"some\.parquet: not the file that the manifest lists"):
        sequences(corpus.manifest, str(tmp_path), "some", "labelled", 4)


def test_damage_names_the_epoch_and_its_shard(tmp_path: Path) -> None:
    found = NightCorpus.of({"a/n0": "WLLLDR"}, tmp_path)
    shard = found.manifest.shards[0]
    columns = shards.read_shard(found.uri, shard).to_pydict()
    columns["audio"][3] = columns["audio"][3][:-4]
    new = shards.write_shard(found.uri, (0, 0), columns, group_rows=8, seconds=shard.seconds)
    manifest = found.manifest.model_copy(update={"shards": [new]})
    damaged = replace(found, manifest=manifest)
    with pytest.raises(CorpusError) as caught:
        read(damaged, knobs_of(damaged, 3, batch=1), Cursor(), 1)
    line = (
        f"{tmp_path}/shards/00000-000.parquet: utterance 'a/n0/0003': damaged audio in a shard: not as long as its row"
    )
    assert str(caught.value) == f"{line} says; run rayssl prepare --verify"


def _own(corpus: NightCorpus, role: Any, **how: Any) -> Stream:
    return own_stream(corpus.manifest, corpus.uri, role, epoch_steps=0, class_aware=False, **how)


def units_of(corpus: NightCorpus, stream: Stream, unit_rows: int) -> list[tuple[Any, ReadSettings]]:
    manifest: Manifest = corpus.manifest
    settings = ReadSettings(corpus.uri, manifest, 0, stream.batch, 1, stream.selection)
    how: dict[str, Any] = {"seed": 0, "start": Cursor(), "epoch_count": 2, "shuffle_shards": 3, "ranks": 1}
    return [(unit, settings) for unit in stream.units(manifest, unit_rows=unit_rows, **how)]


@pytest.mark.parametrize("unit_rows", [1, 16, 40, 1000])
@pytest.mark.parametrize("role", ["labelled", "unlabelled"])
def test_a_unit_holds_no_more_than_its_epochs(corpus: NightCorpus, role: Any, unit_rows: int) -> None:
    """At most ``unit_rows`` epochs, or one batch. Of encoded rows it holds those it uses; the others of labelled
    nights are not kept either, because a night has hundreds of epochs."""
    before = cache.LABELLED._left
    how: dict[str, Any] = {"batch": 2, "split": "some", "length": 4}
    if role == "labelled":
        stream = labelled_stream(corpus.manifest, corpus.uri, epoch_steps=5, class_aware=False, **how)
    else:
        stream = _own(corpus, role, **how)
    assert stream.unit_steps(unit_rows) == max(1, unit_rows // 4 // 2)
    for unit, settings in units_of(corpus, stream, unit_rows):
        rows = reading.rows_of(unit, settings)
        assert len(rows.row) == unit.steps * 2 * 4 <= max(unit_rows, 8)
        held = reading._fetched(unit, settings, rows)
        for number, found in held.items():
            assert found.rows.tolist() == np.unique(rows.row[rows.shard == number]).tolist()
    assert cache.LABELLED._left == before


def test_what_a_rank_is_sent_at_once_is_bounded(corpus: NightCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """By bytes of epochs: a sequence counts all of its own."""
    knobs, of = made(corpus, "all")
    whole = list(expected(corpus, knobs, 1, **of))
    step = 12 * 4 * 2 * 4 * 31
    settings = ReadSettings(corpus.uri, corpus.manifest, knobs.seed, 12, 1, knobs.selection)
    assert reading.utterance_bytes(corpus.manifest, CUT) == 2 * 4 * 31
    for most, steps in ((1, 1), (2 * step - 1, 1), (2 * step, 2), (1 << 26, 2)):
        monkeypatch.setattr(reading, "_BLOCK_BYTES", most)
        units = list(plan.plan(corpus.manifest, start=Cursor(), epochs=1, **knobs.planned()))
        packed = [each for unit in units for each in reading.read(unit, settings, CUT)]
        assert max(each.steps for each in packed) == steps == reading.block_steps(units[0], settings, CUT)
        assert all(each.pcm.nbytes == each.steps * step for each in packed)  # each epoch travels once for both views
        assert_same([{k: v for k, v in b.items() if k != "rank"} for each in packed for b in each.batches()], whole)
