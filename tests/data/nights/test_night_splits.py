"""Splits of nights: whole subjects, from a seed and their names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayssl.data import corpus, integrity, labels, shards, splits
from rayssl.data.labels import SplitConfig
from rayssl.data.nights import roles
from rayssl.data.nights.roles import NightSplitConfig
from rayssl.errors import CorpusError
from tests.data.corpora import write_labelled
from tests.data.nights.fake_nights import make, rows, settings

#: Ten subjects with two nights in the hospital and one at home, and ten with one night at home.
NAMES = [f"hospital/s{k}/n{n}" for k in range(10) for n in range(2)]
NAMES += [f"home/s{k}/n2" for k in range(20)]
SUBJECTS = [name.split("/")[1] for name in NAMES]


def chosen(seed: int = 0, both: bool = False, order: Any = None, **config: Any) -> tuple[dict[str, int], list[str]]:
    """The role of each night, and the notes."""
    at = np.arange(len(NAMES)) if order is None else order
    names, subjects = [NAMES[k] for k in at], [SUBJECTS[k] for k in at]
    given = NightSplitConfig.model_validate(config)
    found, notes = roles.choose(given, names, subjects, seed=seed, both=both, where="c: splits.s")
    assert found.dtype == np.int8
    return dict(zip(names, found.tolist(), strict=True)), notes


def subjects_of(found: Mapping[str, int], *wanted: int) -> set[str]:
    return {name.split("/")[1] for name, role in found.items() if role in wanted}


def test_by_default_every_night_is_labelled() -> None:
    assert chosen() == (dict.fromkeys(NAMES, 1), ["no night is unlabelled"])
    assert chosen(both=True) == (dict.fromkeys(NAMES, 3), [])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("both", [False, True])
def test_no_subject_is_on_both_sides(seed: int, both: bool) -> None:
    for config in (
        {"subjects": 6, "held_out": 0.2},
        {"labelled": ["hospital/*"], "unlabelled": ["home/*"], "subjects": 4, "held_out": 0.25},
        {"labelled": ["*/n0"], "unlabelled": ["*/n1", "home/*"]},
    ):
        found, _ = chosen(seed, both, **config)
        held = subjects_of(found, 0) if config.get("held_out") else set()
        if not both:
            assert not subjects_of(found, 1, 3) & subjects_of(found, 2, 3)
        held_count = round(float(config.get("held_out", 0)) * 20)  # type: ignore[arg-type]
        whole = {s for s in held if all(found[name] == 0 for name in NAMES if f"/{s}/" in name)}
        assert len(whole) >= held_count
        for name, role in found.items():
            assert not role & 1 or any(fnmatch(name, each) for each in config.get("labelled", ["*"]))  # type: ignore
            assert role != 2 or any(fnmatch(name, each) for each in config.get("unlabelled", ["*"]))  # type: ignore


def test_subjects_and_held_out_count_subjects() -> None:
    found, notes = chosen(subjects=6, held_out=0.2)
    held = {s for s in set(SUBJECTS) if all(found[name] == 0 for name in NAMES if f"/{s}/" in name)}
    assert notes == [] and len(held) == 4 and len(subjects_of(found, 1)) == 6 and len(subjects_of(found, 2)) == 10
    assert subjects_of(found, 0) == held  # every other night is used
    few, notes = chosen(labelled=["hospital/*"], subjects=12)
    left_out = "10 unlabelled nights of labelled subjects are left out; keep_labelled_in_unlabelled takes them"
    assert notes == ["10 labelled subjects, 12 were asked for", left_out]
    assert len(subjects_of(few, 1)) == 10


def test_fewer_labelled_subjects_are_a_part_of_more() -> None:
    """So rows of a table with more labels differ by labels only; the held out ones are the same."""
    before, held = set[str](), None
    for count in (1, 3, 6, 15):
        found, _ = chosen(5, subjects=count, held_out=0.2)
        now = subjects_of(found, 1)
        assert len(now) == count and before < now
        before = now
        assert held in (None, subjects_of(found, 0))
        held = subjects_of(found, 0)


def test_other_nights_of_labelled_subjects_are_told_and_can_be_kept() -> None:
    config = {"labelled": ["hospital/*"], "unlabelled": ["home/*"], "subjects": 3}
    apart, notes = chosen(**config)
    assert notes == ["3 unlabelled nights of labelled subjects are left out; keep_labelled_in_unlabelled takes them"]
    assert sum(role == 2 for role in apart.values()) == 17
    together, notes = chosen(both=True, **config)
    assert notes == [] and sum(role == 2 for role in together.values()) == 20
    assert [name for name, role in together.items() if role == 3] == [n for n, role in apart.items() if role == 1]


def test_the_choice_depends_on_seed_and_names_only() -> None:
    config: dict[str, Any] = {"subjects": 5, "held_out": 0.3}
    first, _ = chosen(1, **config)
    assert chosen(1, order=np.random.default_rng(0).permutation(len(NAMES)), **config)[0] == first
    assert chosen(2, **config)[0] != first
    # another subject moves at most one of the others over each border
    given = NightSplitConfig.model_validate({"held_out": 0.3})
    alone, _ = roles.choose(given, NAMES, SUBJECTS, seed=1, both=False, where="")
    more, _ = roles.choose(given, ["a/s/n", *NAMES], ["a", *SUBJECTS], seed=1, both=False, where="")
    assert np.count_nonzero(alone != more[1:]) <= 3


def test_what_is_empty_is_told() -> None:
    with pytest.raises(
        CorpusError, match=r"c: splits\.s\.nights\.labelled: no night matches clinic/\*, x \(a night is"
    ):
        chosen(labelled=["clinic/*", "x"])
    with pytest.raises(CorpusError, match=r"c: splits\.s\.nights\.unlabelled: no night matches x"):
        chosen(unlabelled=["x"])
    assert chosen(labelled=[])[0] == dict.fromkeys(NAMES, 2)
    found, notes = chosen(held_out=0.99)
    assert set(found.values()) == {0} and notes == ["no night is labelled", "no night is unlabelled"]


NIGHTS = {f"s{k}/n{n}": "WLD_RRL"[: 4 + k % 4] + "?" * n for k in range(8) for n in range(2)}


def test_a_split_of_a_corpus_is_of_whole_nights(tmp_path: Path) -> None:
    """Its rows have the role of their night, the classes are the stages, and epochs are counted."""
    wanted: dict[str, Any] = {"half": {"nights": {"subjects": 3, "held_out": 0.25}, "seed": 2}}
    manifest = make(NIGHTS, tmp_path, splits=wanted, limits={"shard_epochs": 4})
    split = manifest.splits["half"]
    role, classes = splits.columns(str(tmp_path / split.path), split.sha256)
    found = rows(tmp_path)
    np.testing.assert_array_equal(classes, [row["label"] for row in found])
    by_subject: dict[str, set[int]] = {}
    for row, each in zip(found, role.tolist(), strict=True):
        by_subject.setdefault(row["name"].split("/")[0], set()).add(each)
    assert all(len(each) == 1 for each in by_subject.values())
    assert sorted(next(iter(each)) for each in by_subject.values()) == [0, 0, 1, 1, 1, 2, 2, 2]
    assert [known.name for known in split.classes] == ["Wake", "Light", "Deep", "REM"] and split.open_set == []
    for bit, counted in ((1, "labelled"), (2, "unlabelled")):
        assert getattr(split, counted) == np.count_nonzero(role & bit)
        per_class = [getattr(known, counted) for known in split.classes]
        assert per_class == [np.count_nonzero((role & bit > 0) & (classes == k)) for k in range(4)]
    assert split.unknown == np.count_nonzero((role == 2) & (classes == -1)) > 0
    assert integrity.verify(str(tmp_path)) == []
    # the names decide, not the numbers that the corpus gives to subjects or shards
    names = sorted(NIGHTS)
    direct, _ = roles.choose(
        NightSplitConfig(subjects=3, held_out=0.25), names, [n[:2] for n in names], seed=2, both=False, where=""
    )
    assert {n[:2]: {int(r)} for n, r in zip(names, direct, strict=True)} == by_subject


def test_splits_are_renewed_without_the_nights(tmp_path: Path) -> None:
    whole = make(NIGHTS, tmp_path, splits={"all": {"nights": {}}})
    config = settings(NIGHTS, tmp_path, splits={"all": {"nights": {}}, "few": {"nights": {"subjects": 1}}})
    before = (tmp_path / whole.splits["all"].path).stat().st_mtime_ns
    again = corpus.renew_splits(config, corpus.prepared(config, corpus.plan(config, 0)) or whole)
    assert [*again.splits] == ["all", "few"] and again.shards == whole.shards
    assert (tmp_path / again.splits["all"].path).stat().st_mtime_ns == before
    assert again == shards.read_manifest(str(tmp_path)) and integrity.verify(str(tmp_path)) == []


def test_the_keys_of_utterances_do_not_go_with_nights() -> None:
    for key, value in (("unlabelled", {"most": 3}), ("order", ["Wake"]), ("open_set", ["REM"]), ("unknown", True)):
        with pytest.raises(ValueError, match=rf"{key} does not go with nights; leave it out"):
            SplitConfig.model_validate({"nights": {}, key: value})
    for given in ({}, {"nights": {}, "labelled": {"share": 0.5}}):
        with pytest.raises(ValueError, match="give one of labelled and nights"):
            SplitConfig.model_validate(given)


def test_splits_of_utterances_keep_their_settings(tmp_path: Path) -> None:
    """As a manifest from before there were nights has them: such a split is not made again."""
    wanted = {"few": {"labelled": {"per_class": 1}}}
    manifest = write_labelled(str(tmp_path), [0, 0, 1, 1], ["bed", "cat"], wanted)
    keys = ["seed", "labelled", "unlabelled", "order", "open_set", "left_out", "unknown", "keep_labelled_in_unlabelled"]
    assert list(json.loads((tmp_path / shards.MANIFEST).read_text())["splits"]["few"]["settings"]) == keys
    config = SplitConfig.model_validate(wanted["few"])
    assert labels.current(str(tmp_path), {"few": config}, manifest.splits) == manifest.splits
