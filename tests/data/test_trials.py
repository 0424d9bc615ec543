"""Trials: the VoxCeleb format, their expansion to renderings, and generated ones."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from rayssl.data import trials
from rayssl.data.corpus import PreparedCorpusConfig
from rayssl.data.trials import Trial, TrialsConfig
from rayssl.errors import CorpusError
from tests.data import corpora


def test_a_list_is_read_as_it_was_written(tmp_path: Path) -> None:
    names = (
        "a/b.wav",
        "c",
        "d e",
        " e#c3 ",
        "a?b%20",
        "x\u2028y",
        "x\x85y",
        "//z",
        "a\tb",
        "a\nb",
        "a\r",
        '"q"',
        '"',
        "\\n",
    )
    listed = [Trial(k % 2, first, second) for k, (first, second) in enumerate(itertools.pairwise(names))]
    trials.write(str(tmp_path / "t.txt"), listed)
    assert (tmp_path / "t.txt").read_text().startswith("0\ta/b.wav\tc\n")
    assert trials.read(str(tmp_path / "t.txt")) == listed


@pytest.mark.parametrize("text", ["1 a b\n0 a c\n", "\ufeff1 a b\n0 a c", "1\ta\tb\r\n\r\n0 a  c\r\n"])
def test_lists_of_others_are_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.txt").write_bytes(text.encode())
    assert trials.read(str(tmp_path / "t.txt")) == [Trial(1, "a", "b"), Trial(0, "a", "c")]


@pytest.mark.parametrize("line", ["1 a", "2 a b", "1 a b c", "target a b"])
def test_a_malformed_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "t.txt").write_text(f"1 a b\n\n{line}\n")
    with pytest.raises(CorpusError, match=r"t\.txt: line 3: expected 'label enrol test'"):
        trials.read(str(tmp_path / "t.txt"))


def test_an_empty_list_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("\n")
    with pytest.raises(CorpusError, match="holds no trials"):
        trials.read(str(tmp_path / "t.txt"))


@pytest.mark.parametrize("across", ["condition", "same", "any"])
def test_expansion_keeps_labels_and_respects_conditions(across: str) -> None:
    rng = np.random.default_rng(0)
    renderings = {f"u{k}": sorted(int(c) for c in rng.choice(8, 3, replace=False)) for k in range(40)}
    base = [Trial(k % 2, f"u{rng.integers(40)}", f"u{rng.integers(40)}") for k in range(500)]
    expanded = trials.expand(base, renderings, across, seed=0)
    assert expanded == trials.expand(base, renderings, across, seed=0)
    assert expanded != trials.expand(base, renderings, across, seed=1)
    kept = iter(base)
    conditions = set()
    for trial in expanded:
        (enrol, _, first), (test, _, second) = trial.enrol.partition("#c"), trial.test.partition("#c")
        assert Trial(trial.label, enrol, test) in kept  # in order
        assert int(first) in renderings[enrol]
        assert int(second) in renderings[test]
        conditions.add(first == second)
        if across != "any":
            assert (first == second) == (across == "same")
    if across != "same":
        assert len(expanded) == len(base)
    if across == "any":
        assert conditions == {True, False}


def test_a_trial_without_a_fitting_pair_is_left_out() -> None:
    base = [Trial(1, "a", "b"), Trial(1, "a", "c")]
    assert trials.expand(base, {"a": [1], "b": [1], "c": [2]}, "condition", 0) == [Trial(1, "a#c1", "c#c2")]


def test_generated_trials_cross_recordings_without_repetition() -> None:
    speakers = np.repeat(np.arange(6), 8)
    recordings = np.repeat(np.arange(24), 2)
    names = [f"u{k}" for k in range(48)]
    made = trials.generate(names, speakers, recordings, 100, 0, "corpus")
    assert len(made) == len(set(made)) == 200
    assert sum(trial.label for trial in made) == 100
    place = {name: k for k, name in enumerate(names)}
    for trial in made:
        enrol, test = place[trial.enrol], place[trial.test]
        assert (speakers[enrol] == speakers[test]) == bool(trial.label)
        assert recordings[enrol] != recordings[test]


def test_generated_trials_of_renderings_are_of_two_clips_and_two_conditions() -> None:
    """Two renderings of one clip would be an easy target trial, and a condition in common an easy hint."""
    names = [f"s{s}/clip{c}.wav#c{k}" for s in range(4) for c in range(3) for k in range(3)]
    speakers = np.repeat(np.arange(4), 9)
    recordings = np.array([3 * s + k for s in range(4) for _ in range(3) for k in range(3)])
    conditions = trials._conditions(names)
    assert conditions.tolist() == [0, 1, 2] * 12
    assert (trials._conditions(["a#c3", "b#c3"]) == -1).all() and (trials._conditions(["a", "b#cx"]) == -1).all()
    made = trials.generate(names, speakers, recordings, 60, 0, "corpus", conditions=conditions)
    assert len(made) == 120 and sum(trial.label for trial in made) == 60
    for trial in made:
        (one, first), (other, second) = (name.rsplit("#", 1) for name in (trial.enrol, trial.test))
        assert first != second and one != other


def test_generated_trials_without_known_recordings(tmp_path: Path) -> None:
    """With ``across: any`` two utterances of a speaker are a pair, but not two renderings of one clip."""
    uri, out = corpora.write_folder(tmp_path / "in", corpora.clips()), str(tmp_path / "t.txt")
    for name, conditions in (("plain", None), ("rendered", {"count": 2, "per_utterance": 2})):
        source = {"name": "folder", "uri": uri, "layout": ["speaker"]}
        settings = {"source": source, "out": f"{tmp_path}/{name}", "conditions": conditions}
        corpora.prepare(PreparedCorpusConfig.model_validate(settings))
        if conditions is None:
            with pytest.raises(CorpusError, match="or across: any"):
                trials.make(TrialsConfig(out=out), f"{tmp_path}/{name}")
        trials.make(TrialsConfig(out=out, across="any", pairs=30), f"{tmp_path}/{name}")
        listed = trials.read(out)
        assert {trial.label for trial in listed} == {0, 1}
        for trial in listed:
            one, other = (each.partition("#c")[0] for each in (trial.enrol, trial.test))
            assert one != other and (one.split("/")[0] == other.split("/")[0]) == bool(trial.label)


def test_generation_needs_speakers_with_several_recordings() -> None:
    with pytest.raises(CorpusError, match="corpus: trials need two speakers"):
        trials.generate(["a", "b"], np.array([0, 1]), np.array([0, 1]), 5, 0, "corpus")


def test_a_list_for_a_prepared_corpus(tmp_path: Path) -> None:
    files = corpora.clips() | {"spk0/rec0/broken.flac": b"text"}
    changes = {"conditions": {"count": 4, "per_utterance": 2}, "max_reject_share": 0.5}
    corpora.prepare(corpora.folder_config(tmp_path / "in", tmp_path / "out", files, **changes))
    source = tmp_path / "source.txt"
    good, broken = "1 spk0/rec0/00.flac spk0/rec1/03.flac\n", "1 spk0/rec0/00.flac spk0/rec0/broken.flac\n"
    source.write_text(good + broken)
    config = TrialsConfig(out=str(tmp_path / "t.txt"), source=str(source))
    assert trials.make(config, str(tmp_path / "out")) == (1, 1, 1)  # the rejected utterance's trial is left out
    source.write_text(good + "0 spk0/rec0/00.flac spk9/nobody.flac\n")
    with pytest.raises(CorpusError, match=r"source\.txt: trial 2: 'spk9/nobody\.flac' is not an utterance"):
        trials.make(config, str(tmp_path / "out"))
