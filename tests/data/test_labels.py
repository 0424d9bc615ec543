"""Splits: how many utterances of each class become what, whatever the sharding; what is said where there are few."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayssl.data import labels, shards, splits
from rayssl.data.labels import LabelledConfig, SplitConfig, UnlabelledConfig, choose, tail
from rayssl.data.shards import Manifest
from rayssl.errors import ConfigError, CorpusError
from rayssl.schema import parse
from tests.data.corpora import write_labelled

NAMES = ["bed", "cat", "dog", "owl"]
SIZES = [40, 100, 70, 100]  # rank order: cat, owl (as large, by name), dog, bed


def rows(sizes: list[int] = SIZES, unknown: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Keys and labels of a shuffled corpus."""
    found = np.repeat([*range(len(sizes)), -1], [*sizes, unknown]).astype(np.int32)
    rng = np.random.default_rng(5)
    return rng.integers(0, 1 << 62, len(found)), rng.permutation(found)


def split(
    config: dict[str, Any], sizes: list[int] = SIZES, unknown: int = 0
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Labelled and unlabelled counts of each label ``[2, 4]``, the roles, and the notes."""
    keys, found = rows(sizes, unknown)
    roles, _, notes = choose(SplitConfig.model_validate(config), keys, found, NAMES)
    counts = [np.bincount(found[(roles & bit > 0) & (found >= 0)], minlength=4) for bit in (1, 2)]
    return np.array(counts), roles, notes


def test_the_tail_is_the_one_of_the_published_experiments() -> None:
    """CIFAR10-LT with N1 = 1500 and 5000 at gamma 100, as DASO and its baselines have it."""
    assert tail(1500, 100, 10).tolist() == [1500, 899, 539, 323, 193, 116, 69, 41, 25, 15]
    assert tail(5000, 100, 10).tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert tail(1500, 100, 3).tolist() == [1500, 150, 15]
    assert (
        tail(4, 100, 4).tolist() == [4, 1, 1, 1]
        and tail(7, 50, 1).tolist() == [7]
        and tail(9, 1, 3).tolist() == [9] * 3
    )


@pytest.mark.parametrize(
    ("share", "expected"), [(0.1, [4, 10, 7, 10]), (0.29, [12, 29, 20, 29]), (0.001, [1] * 4), (1.0, SIZES)]
)
def test_a_share_is_taken_of_each_class(share: float, expected: list[int]) -> None:
    counts, roles, notes = split({"labelled": {"share": share}})
    assert counts[0].tolist() == expected
    assert (counts.sum(axis=0) == SIZES).all() and set(roles.tolist()) <= {1, 2}  # the rest, and disjoint
    assert notes == (["no utterance is unlabelled"] if share == 1 else [])


def test_every_class_has_the_same_count_or_what_there_is_and_that_is_said() -> None:
    counts, _, notes = split({"labelled": {"per_class": 60}})
    assert counts.tolist() == [[40, 60, 60, 60], [0, 40, 10, 40]]
    assert notes == ["20 fewer labelled than asked for, too few utterances in 1 classes: bed 40 of 60"]


@pytest.mark.parametrize(
    ("unlabelled", "expected"),
    [
        ({"most": 36, "gamma": 9}, [4, 36, 8, 17]),
        ({"most": 36, "gamma": 9, "order": "reversed"}, [36, 4, 17, 8]),
        ({"most": 30, "order": "uniform"}, [30, 30, 30, 30]),
        ({"most": 30}, [30, 30, 30, 30]),
        ("rest", [39, 73, 67, 91]),
    ],
)
def test_labelled_and_unlabelled_have_tails_of_their_own(unlabelled: Any, expected: list[int]) -> None:
    counts, roles, notes = split({"labelled": {"most": 27, "gamma": 27}, "unlabelled": unlabelled})
    assert counts.tolist() == [[1, 27, 3, 9], expected]  # cat, owl, dog, bed from head to tail
    assert notes == [] and 3 not in roles
    assert (roles == 0).sum() == sum(SIZES) - counts.sum()


def test_the_head_can_be_given() -> None:
    config = {"labelled": {"most": 27, "gamma": 27}, "order": ["bed", "dog", "cat", "owl"]}
    assert split(config)[0][0].tolist() == [27, 3, 9, 1]


def test_what_is_missing_in_a_tail_is_said_for_each_role() -> None:
    config = {"labelled": {"most": 90}, "unlabelled": {"most": 30, "gamma": 1}}
    counts, _, notes = split(config)
    assert counts.tolist() == [[40, 90, 70, 90], [0, 10, 0, 10]]
    assert notes == [
        "70 fewer labelled than asked for, too few utterances in 2 classes: bed 40 of 90, dog 70 of 90",
        "100 fewer unlabelled than asked for, too few utterances in 4 classes: bed 0 of 30, cat 10 of 30, "
        "dog 0 of 30, owl 10 of 30",
    ]
    empty = split({"labelled": {"share": 0.5}}, sizes=[0, 4, 4, 4])[2]
    assert empty == ["1 fewer labelled than asked for, too few utterances in 1 classes: bed 0 of 1"]


def test_open_set_classes_and_unknown_utterances_are_only_unlabelled() -> None:
    config: dict[str, Any] = {"labelled": {"most": 16, "gamma": 4}, "open_set": ["cat"]}
    counts, _, _ = split(config, unknown=9)
    assert counts[0].tolist() == [4, 0, 8, 16]  # the rank of the others has no gap
    assert counts[1].tolist() == [36, 100, 62, 84]
    keys, found = rows(unknown=9)
    for unknown in (False, True):
        roles, known, _ = choose(SplitConfig.model_validate({**config, "unknown": unknown}), keys, found, NAMES)
        assert known == [0, 2, 3]
        assert (roles[found == -1] == (2 if unknown else 0)).all()
    bounded = {"most": 20, "gamma": 2, "open_set_most": 30}
    counts, _, notes = split({**config, "unlabelled": bounded})
    assert counts[1].tolist() == [10, 30, 14, 20] and notes == []


def test_the_labelled_may_be_unlabelled_too_besides_the_number_asked_for() -> None:
    config = {"labelled": {"per_class": 8}, "unlabelled": {"most": 20}, "keep_labelled_in_unlabelled": True}
    counts, roles, _ = split(config)
    assert counts.tolist() == [[8] * 4, [28] * 4]
    assert np.bincount(roles).tolist() == [sum(SIZES) - 112, 0, 80, 32]


def test_more_labels_with_the_same_seed_contain_the_fewer_ones() -> None:
    def chosen(share: float, seed: int) -> np.ndarray:
        return split({"labelled": {"share": share}, "seed": seed})[1] == 1

    few, many, other = chosen(0.1, 3), chosen(0.2, 3), chosen(0.2, 4)
    assert (few <= many).all() and not (few <= other).all()
    assert abs((many & other).sum() / many.sum() - 0.2) < 0.15  # two seeds agree as often as chance


def test_the_choice_is_uniform() -> None:
    """Over seeds every utterance is labelled equally often: chi-square of 100 cells within five deviations."""
    keys, found = rows([100, 0, 0, 0])
    hits = np.zeros(100)
    for seed in range(400):
        config = SplitConfig(seed=seed, labelled=LabelledConfig(share=0.2))
        hits += choose(config, keys, found, NAMES)[0] == 1
    chi = ((hits - 80) ** 2 / (80 * 0.8)).sum()
    assert abs(chi - 100) < 5 * np.sqrt(200)


def read(uri: str, manifest: Manifest, name: str) -> dict[str, tuple[int, int]]:
    """Role and class by the utterance's name."""
    made = manifest.splits[name]
    roles, classes = splits.columns(f"{uri}/{made.path}", made.sha256)
    names = [row for shard in manifest.shards for row in shards.read_shard(uri, shard, ["name"])["name"].to_pylist()]
    return dict(zip(names, zip(roles.tolist(), classes.tolist(), strict=True), strict=True))


def test_other_shards_and_another_order_are_split_alike(tmp_path: Path) -> None:
    found = [k % 5 - 1 for k in range(60)]
    wanted = {"a": {"labelled": {"most": 6, "gamma": 3}, "open_set": ["cat"], "unknown": True, "seed": 2}}
    one = write_labelled(str(tmp_path / "1"), found, NAMES, wanted)
    order = np.random.default_rng(1).permutation(60).tolist()
    two = write_labelled(str(tmp_path / "2"), found, NAMES, wanted, [7, 30, 1, 22], order)
    first = read(str(tmp_path / "1"), one, "a")
    assert first == read(str(tmp_path / "2"), two, "a")
    assert one.splits["a"].model_dump(exclude={"sha256"}) == two.splits["a"].model_dump(exclude={"sha256"})
    class_of = {0: 0, 1: -1, 2: 1, 3: 2, -1: -1}
    assert all(first[f"u{k:04d}"][1] == class_of[found[k]] for k in range(60))
    made = one.splits["a"]
    assert [(c.name, c.label, c.labelled, c.unlabelled) for c in made.classes] == [
        ("bed", 0, 6, 6), ("dog", 2, 3, 9), ("owl", 3, 2, 10)
    ]  # fmt: skip
    assert [(c.name, c.label, c.labelled, c.unlabelled) for c in made.open_set] == [("cat", 1, 0, 12)]
    assert (made.labelled, made.unlabelled, made.unknown) == (11, 49, 12)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"labelled": {"share": 0.1, "per_class": 3}},
            r"'labelled': give one of share, per_class and most, not share and",
        ),
        ({"labelled": {}}, r"'labelled': give one of share, per_class and most, not none"),
        ({"labelled": {"share": 1.5}}, r"'labelled\.share': .* less than or equal to 1, got 1\.5"),
        ({"labelled": {"share": 0}}, r"'labelled\.share': .* greater than 0, got 0"),
        ({"labelled": {"share": 0.1, "gamma": 2}}, r"'labelled': gamma belongs to most, not to share"),
        ({"labelled": {"most": 9, "gamma": 0.5}}, r"'labelled\.gamma': .*greater than or equal to 1"),
        ({"labelled": {"most": 9}, "unlabelled": {"most": 3, "gamma": 2, "order": "uniform"}}, r"uniform has no tail"),
        ({"labelled": {"most": 9}, "unlabelled": {"most": 3, "order": "up"}}, r"'unlabelled\.order': .*'reversed'"),
        ({"labelled": {"most": 9}, "unlabelled": {"gamma": 3}}, r"'unlabelled': gamma and order belong to most"),
        ({"labelled": {"most": 9}, "unlabelled": {"mots": 3}}, r"unknown key 'unlabelled\.mots'; did you mean 'most'"),
        ({"labelled": {"most": 9}, "unlabelled": "all"}, r"'unlabelled': expected keys below it"),
    ],
)
def test_settings_that_contradict_each_other_are_told(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(SplitConfig, config, "s.yaml")


@pytest.mark.parametrize(
    ("config", "names", "message"),
    [
        ({}, [], r"c: splits\.s: the corpus has no labels; name the source's label"),
        ({"open_set": ["cart"]}, NAMES, r"c: splits\.s\.open_set: 'cart' is no label .*; did you mean 'cat'\?"),
        ({"open_set": ["zzz"]}, NAMES, r"'zzz' is no label .*; labels are bed, cat, dog, owl"),
        ({"open_set": NAMES}, NAMES, r"open_set and left_out: name every label"),
        ({"order": ["bed", "cat", "dog"]}, NAMES, r"order: must name every class once.* check owl"),
        ({"order": NAMES, "open_set": ["owl"]}, NAMES, r"order: must name every class once.* check owl"),
        ({"order": ["bed", "bed", "cat", "dog", "owl"]}, NAMES, r"order: names a class twice"),
        ({}, [f"c{k}" for k in range(40000)], r"40000 classes are more than 32768"),
    ],
)
def test_a_split_that_does_not_fit_the_corpus_is_told(config: dict[str, Any], names: list[str], message: str) -> None:
    wanted = {"s": SplitConfig.model_validate({"labelled": {"share": 0.5}, **config})}
    with pytest.raises(CorpusError, match=message):
        labels.check(wanted, names, "c")


def test_the_rest_is_the_default() -> None:
    default = SplitConfig(labelled=LabelledConfig(share=0.5))
    assert default == SplitConfig.model_validate({"labelled": {"share": 0.5}, "unlabelled": "rest"})
    assert default.unlabelled == UnlabelledConfig() and SplitConfig.model_validate(default.model_dump()) == default
