"""What `plan` and `read` give is what the definition says, for every kind of stream, on any ranks, from any step on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rayssl.batches import plan
from rayssl.batches.plan import Cursor, cycle_position, plan_steps, steps_per_epoch
from rayssl.batches.selection import selection
from rayssl.views.recipes import Segment
from tests.batches import definition
from tests.batches.definition import Corpus, Knobs, assert_same

UNEQUAL, EVEN = (13, 1, 30, 22, 1, 17), (16,) * 5
SPLITS: dict[str, Any] = {"few": {"labelled": {"share": 0.4}, "open_set": ["owl"]}}
CUT = (
    Segment(name="a", seconds=0.02, recipe="distort", disjoint=True),
    Segment(name="b", seconds=0.02, recipe="distort", disjoint=True),
    Segment(name="reference", seconds=0.03),
)
PARTS = {1: 256, 2: 6, 4: 3}  # how many parts a batch of 12 has with which plan._PART_ROWS
CORPORA = {"unequal": (UNEQUAL, 4), "groups that divide": (EVEN, 8), "old": (UNEQUAL, 0), "one group": (EVEN, 100)}
STREAMS: dict[str, dict[str, Any]] = {
    "all": {},
    "one window": {"shuffle_shards": 16},
    "small units": {"unit_rows": 1, "shuffle_shards": 1},
    "an epoch in a unit": {"unit_rows": 1000, "shuffle_shards": 2},
    "wrap": {"wrap": True},
    "more than the corpus": {"batch": 120, "unit_rows": 240, "wrap": True},
    "labelled": {"roles": "labelled", "wrap": True},
    "unlabelled": {"roles": "unlabelled"},
    "split": {"roles": "all", "shuffle_shards": 2},
    "class-aware": {"roles": "labelled", "class_aware": True},
    "class-aware, wrap": {"roles": "labelled", "class_aware": True, "wrap": True, "power": 0.5},
}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Corpus]:
    made = {}
    for name, (sizes, group_rows) in CORPORA.items():
        made[name] = definition.write(str(tmp_path_factory.mktemp("corpus")), sizes, group_rows, **SPLITS)
    return made


def knobs_of(corpus: Corpus, *, roles: Any = None, class_aware: bool = False, power: float = 1.0, **more: Any) -> Knobs:
    if roles is None:
        return Knobs(**more)
    chosen = selection(corpus.manifest, corpus.uri, "few", roles, class_aware=class_aware, power=power)
    return Knobs(selection=chosen, **more)


def expected(corpus: Corpus, knobs: Knobs, epochs: int, fills: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """The definition's batches with everything that is compared."""
    found = []
    for fill, epoch, step, rows in definition.stream(corpus.manifest, knobs, epochs, fills):
        facts = {"epoch": epoch, "step": step, "fill": fill}
        columns = {"id": np.array([name for name, _ in rows]), "turn": np.array([turn for _, turn in rows])}
        found.append(facts | columns | definition.segments_of(corpus, knobs, epoch, rows, CUT))
    return found


def compared(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the labels, which `test_selection` checks."""
    return [{k: v for k, v in b.items() if k not in ("speaker", "recording", "label", "truth")} for b in found]


@pytest.mark.parametrize("name", STREAMS)
def test_the_stream_is_what_its_definition_says(
    corpora: dict[str, Corpus], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """With one, two and four parts, and a pass that fills a memory; with groups that do not divide the shards."""
    corpus = corpora["unequal"]
    knobs = knobs_of(corpus, **STREAMS[name])
    for parts, rows in PARTS.items():
        monkeypatch.setattr(plan, "_PART_ROWS", rows)
        assert knobs.batch != 12 or plan.parts_of(12) == parts
        wanted = expected(corpus, knobs, 2, fills=(1,))
        assert_same(compared(definition.read(corpus, knobs, CUT, Cursor(), 2, fills=(1,))), wanted)


@pytest.mark.parametrize("name", ["groups that divide", "old", "one group"])
def test_the_stream_of_other_corpora_too(corpora: dict[str, Corpus], name: str) -> None:
    corpus = corpora[name]
    for kind in ("all", "class-aware"):
        knobs = knobs_of(corpus, **STREAMS[kind])
        assert_same(compared(definition.read(corpus, knobs, CUT, Cursor(), 2)), expected(corpus, knobs, 2))


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("name", ["all", "class-aware, wrap"])
def test_ranks_share_the_batches_of_one(
    corpora: dict[str, Corpus], monkeypatch: pytest.MonkeyPatch, name: str, parts: int
) -> None:
    """Also where several tasks serve the ranks of a step; ranks need not be a power of two."""
    monkeypatch.setattr(plan, "_PART_ROWS", PARTS[parts])
    corpus = corpora["unequal"]
    knobs = knobs_of(corpus, **STREAMS[name])
    whole = definition.read(corpus, knobs, CUT, Cursor(), 1, fills=(0,))
    for ranks in (2, 3, 4, 6, 12):
        units = list(plan.plan(corpus.manifest, start=Cursor(), epochs=1, ranks=ranks, **knobs.planned(), fills=(0,)))
        assert {unit.lanes for unit in units} == {np.gcd(parts, ranks)}
        assert [unit.lane for unit in units] == [k % units[0].lanes for k in range(len(units))]
        assert_same(definition.merged(corpus, knobs, CUT, units, ranks), whole)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", ["all", "labelled"])
def test_what_is_resumed_is_the_rest(
    corpora: dict[str, Corpus], monkeypatch: pytest.MonkeyPatch, name: str, ranks: int
) -> None:
    """From every step of two epochs, also inside a unit and its lanes. The pass that fills comes with its epoch."""
    monkeypatch.setattr(plan, "_PART_ROWS", 6)
    corpus = corpora["unequal"]
    knobs = knobs_of(corpus, **{**STREAMS[name], "unit_rows": 18})  # three steps in a unit
    short = CUT[:1]
    whole = definition.read(corpus, knobs, short, Cursor(), 2, ranks, fills=(1,))
    each = steps_per_epoch(corpus.manifest.rows, 12, knobs.selection, wrap=knobs.wrap)
    fill = sum(batch["fill"] for batch in whole)
    assert each % 3 and plan.unit_steps(12, 18) == 3 and fill >= each
    for at in range(2 * each):
        rest = whole[at + fill * (at > each) :]
        assert_same(definition.read(corpus, knobs, short, Cursor(*divmod(at, each)), 2, ranks, fills=(1,)), rest)


@pytest.mark.parametrize("name", ["class-aware", "labelled", "unlabelled"])
def test_a_stream_that_cycles_is_the_same_passes_again(corpora: dict[str, Corpus], name: str) -> None:
    """From any step on and for any number of steps; it may end inside a unit."""
    corpus = corpora["unequal"]
    knobs = knobs_of(corpus, **STREAMS[name])
    each = steps_per_epoch(0, 12, knobs.selection, wrap=knobs.wrap)
    count = 2 * each + 1
    whole = compared(_steps(corpus, knobs, 0, count))
    assert [Cursor(batch["epoch"], batch["step"]) for batch in whole] == [cycle_position(k, each) for k in range(count)]
    assert_same(whole, expected(corpus, knobs, 3)[:count])
    for start in range(count):
        stop = min(count, start + 2)
        assert_same(compared(_steps(corpus, knobs, start, stop - start)), whole[start:stop])


def _steps(corpus: Corpus, knobs: Knobs, start: int, steps: int) -> list[dict[str, Any]]:
    units = list(plan_steps(corpus.manifest, start_step=start, steps=steps, **knobs.planned()))
    return definition.merged(corpus, knobs, CUT, units, 1)


@pytest.mark.parametrize("change", [{"seed": 4}, {"unit_rows": 60}, {"shuffle_shards": 2}, {"batch": 6}])
def test_another_knob_is_another_stream(corpora: dict[str, Corpus], change: dict[str, Any]) -> None:
    """The comparisons above would see it if one of them had no effect."""
    corpus = corpora["unequal"]
    found = [definition.read(corpus, knobs, CUT[:1], Cursor(), 1) for knobs in (Knobs(), Knobs(**change))]
    one, other = (np.concatenate([batch["id"] for batch in batches]) for batches in found)
    assert not np.array_equal(one, other)
