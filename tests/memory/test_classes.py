"""The memory of classes: by definitions in loops, parts, windows, resume to the bit, empty classes, what it refuses."""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from rayssl.losses.pseudolabel import blend, blend_weights, semantic_logits
from rayssl.memory.classes.memory import ClassMemory, ClassRecallArrays, ClassRememberArrays
from rayssl.memory.classes.settings import ClassSettings
from rayssl.memory.pieces import Kind, Piece, limits
from rayssl.training import pieces

C, D, L, WINDOW, A = 9, 4, 6, 5, 4
NONE = np.zeros(0, dtype=np.int64)


def step(number: int, rows: int = 10, classes: int = 7) -> ClassRememberArrays:
    """Long-tailed labels of the first 7 of the 9 classes, one feature in thirty not finite, and counts of 16 rows."""
    random = np.random.default_rng([7, number])
    labels = np.minimum(random.geometric(0.4, rows) - 1, classes - 1)
    features = (random.standard_normal((rows, D)) + 3 * labels[:, None]).astype(np.float32)
    features[random.random(rows) < 1 / 30, 1] = random.choice([np.nan, np.inf])
    return ClassRememberArrays(number, features, labels, np.bincount(random.integers(0, classes, 16), minlength=C))


def memory(*, first: int = 0, last: int | None = None, **changes: int) -> ClassMemory:
    settings = ClassSettings(**{"classes": C, "dim": D, "length": L, "window": WINDOW, "anchors": A, **changes})
    return ClassMemory(settings, first=first, last=last)


def parts_of(count: int) -> list[ClassMemory]:
    bounds = limits(C, count).tolist()
    return [memory(first=first, last=last) for first, last in pairwise(bounds)]


def seen(recall: ClassRecallArrays) -> list[Any]:
    return [array.tolist() for array in vars(recall).values()]


def life(one: ClassMemory, first: int, end: int) -> list[Any]:
    found = []
    for number in range(first, end):
        found.append(seen(one.recall(number)))
        one.remember(step(number))
        found.append(one.metrics(reset=number % 4 == 3))
    return found


def same_state(one: ClassMemory, other: ClassMemory) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name, array in mine.items():
        assert array.dtype == theirs[name].dtype
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def split(what: ClassRememberArrays, *places: int) -> list[ClassRememberArrays]:
    """A batch in parts, with all the counts in the last."""
    assert what.features is not None
    bounds, parts = [0, *places, len(what.labels)], []
    for begin, end in pairwise(bounds):
        counts = what.counts if end == len(what.labels) else None
        parts.append(ClassRememberArrays(what.step, what.features[begin:end], what.labels[begin:end], counts))
    return parts


def test_dasos_steps_transcribed() -> None:
    """Steps 1 to 4 of the method, with queues of tensors and lists of labels, for three windows and a bit."""
    kept, queues = memory(), [deque(maxlen=L) for _ in range(C)]
    labels_of_window: list[int] = []
    closed: list[int] = []
    generator = torch.Generator().manual_seed(0)
    for number in range(3 * WINDOW + 2):
        what = step(number)
        assert what.features is not None
        weak, p = torch.randn(16, D, generator=generator), torch.randn(16, C, generator=generator).softmax(dim=1)
        # 1: push the labelled batch, then the means
        kept.remember(ClassRememberArrays(number, what.features, what.labels))
        for row, label in zip(torch.from_numpy(what.features), what.labels.tolist(), strict=True):
            if torch.isfinite(row).all():
                queues[label].append(row.double())
        # 4 of the steps before
        if number and number % WINDOW == 0:
            closed, labels_of_window = labels_of_window, []
        recall = kept.recall(number)
        prototypes, present = torch.from_numpy(recall.prototypes), torch.from_numpy(recall.present)
        q = semantic_logits(weak, prototypes, present, temperature=0.05).softmax(dim=1)
        weights = blend_weights(torch.from_numpy(recall.histogram), temperature=0.7)
        label = blend(p, q, weights).argmax(dim=1)
        kept.remember(ClassRememberArrays(number, None, NONE, torch.bincount(label, minlength=C).numpy()))

        means = {c: torch.stack(list(queue)).mean(dim=0) for c, queue in enumerate(queues) if queue}
        assert present.tolist() == [c in means for c in range(C)]
        m = [closed.count(c) for c in range(C)]
        assert recall.histogram.tolist() == m
        for i in range(16):
            # 2: both classifiers; an empty class is not in the softmax
            similar = {c: float(torch.exp(cosine_similarity(weak[i], mean, dim=0) / 0.05)) for c, mean in means.items()}
            share = [similar.get(c, 0) / sum(similar.values()) for c in range(C)]
            assert q[i].tolist() == pytest.approx(share, rel=1e-4, abs=1e-7)
            # 3: the blend
            k = int(p[i].argmax())
            v = (m[k] / max(m)) ** (1 / 0.7) if closed else 0.0
            blended = [(1 - v) * float(p[i, c]) + v * share[c] for c in range(C)]
            assert int(label[i]) == max(range(C), key=blended.__getitem__)
            labels_of_window.append(int(label[i]))  # 4: not filtered by confidence
    assert len(closed) == 16 * WINDOW and len(means) == 7


def test_prototypes_are_the_means_of_the_last_rows_of_each_class() -> None:
    kept, rows = memory(), [[] for _ in range(C)]  # type: ignore[var-annotated]
    for number in range(12):
        what = step(number)
        kept.remember(what)
        assert what.features is not None
        for row, label in zip(what.features, what.labels, strict=True):
            if np.isfinite(row).all():
                rows[label].append(row.astype(np.float64))
    recall = kept.recall(12)
    for c in range(C):
        expected = np.mean(rows[c][-L:], axis=0) if rows[c] else np.zeros(D)
        np.testing.assert_allclose(recall.prototypes[c], expected, rtol=1e-6, atol=1e-6)
    assert recall.prototypes.dtype == np.float32 and recall.histogram.dtype == np.int64
    assert recall.present.tolist() == [c < 7 for c in range(C)]
    assert len(rows[0]) > 3 * L > L > len(rows[6]) > 0  # a queue that went round, and one that never was full


def test_one_call_with_more_rows_of_a_class_than_it_keeps() -> None:
    kept = memory()
    features = np.arange(20, dtype=np.float32)[:, None] * np.ones((1, D), np.float32)
    kept.remember(ClassRememberArrays(0, features, np.array([3] * 19 + [1])))
    recall = kept.recall(0)
    assert recall.prototypes[3, 0] == np.mean(np.arange(19 - L, 19)) and recall.prototypes[1, 0] == 19
    assert recall.rows[3, :, 0].tolist() == [18, 17, 16, 15] and recall.rows[1, :, 0].tolist() == [19, 0, 0, 0]


@pytest.mark.parametrize("anchors", [0, 1, A, L])
def test_anchors_are_the_newest_rows_of_each_class(anchors: int) -> None:
    """Against queues of Python, at every step: while they fill, when they are full and after they went round."""
    kept, sizes = memory(anchors=anchors), set()
    queues: list[deque[np.ndarray]] = [deque(maxlen=L) for _ in range(C)]
    for number in range(14):
        what = step(number, rows=7)
        assert what.features is not None
        kept.remember(what)
        for row, label in zip(what.features, what.labels.tolist(), strict=True):
            if np.isfinite(row).all():
                queues[label].appendleft(row)
        recall = kept.recall(number)
        assert recall.rows.dtype == np.float32 and recall.rows.shape == (C, anchors, D)
        assert recall.filled.dtype == np.int64 and recall.rows.flags.c_contiguous
        for c, queue in enumerate(queues):
            newest = list(queue)[:anchors]
            assert recall.filled[c] == len(newest)
            np.testing.assert_array_equal(recall.rows[c, : len(newest)], np.reshape(newest, (len(newest), D)))
            assert not recall.rows[c, len(newest) :].any()
            sizes.add(len(newest))
    assert kept.pushed[0] > 3 * L and sizes == set(range(anchors + 1))


def test_anchors_change_neither_prototypes_nor_checkpoints() -> None:
    """A memory without anchors is what it was before there were any, and resumes with some."""
    without, some, resumed = memory(anchors=0), memory(anchors=A), memory(anchors=L)
    for kept in (without, some):
        life(kept, 0, 13)
    same_state(without, some)
    arrays = {"classes.rows", "classes.pushed", "classes.rejected"}
    windows = {f"windows.{name}" for name in ("counts", "open", "length", "dropped")}
    assert without.state_dict().keys() == arrays | windows
    for mine, theirs in zip(saved([without]), saved([some]), strict=True):
        assert mine.arrays.keys() == theirs.arrays.keys()
    restore(resumed, saved([without]))
    recall, more = some.recall(13), resumed.recall(13)
    np.testing.assert_array_equal(more.rows[:, :A], recall.rows)
    np.testing.assert_array_equal(np.minimum(more.filled, A), recall.filled)
    assert seen(without.recall(13))[:3] == seen(recall)[:3] == seen(more)[:3] and len(seen(recall)) == 5


def test_rows_without_a_direction_are_handed_out() -> None:
    """A class of two opposite rows has no prototype, but its rows have directions."""
    kept = memory()
    kept.remember(ClassRememberArrays(0, np.array([[1, 2, 3, 4], [-1, -2, -3, -4]], np.float32), np.array([5, 5])))
    recall = kept.recall(0)
    assert not recall.present[5] and recall.filled[5] == 2
    assert recall.rows[5].tolist() == [[-1, -2, -3, -4], [1, 2, 3, 4], [0] * D, [0] * D]


@pytest.mark.parametrize("places", [(1,), (5,), (2, 3, 9), tuple(range(1, 10))])
def test_ranks_in_order_equal_one_call_for_the_whole_batch(places: tuple[int, ...]) -> None:
    whole, ranks = memory(), memory()
    for number in range(8):
        whole.remember(step(number))
        for part in split(step(number), *places):
            ranks.remember(part)
    same_state(whole, ranks)
    assert seen(whole.recall(8)) == seen(ranks.recall(8))


def test_the_order_of_ranks_matters() -> None:
    """Strict mode applies them in rank order for this: who comes last stays in the queue."""
    one, other = memory(length=2, anchors=2), memory(length=2, anchors=2)
    for kept, order in ((one, 1), (other, -1)):
        for part in split(step(0), 5)[::order]:
            kept.remember(part)
    assert seen(one.recall(0)) != seen(other.recall(0))


@pytest.mark.parametrize("count", [2, 3, 7])
def test_parts_together_are_the_whole(count: int) -> None:
    whole, parts = memory(), parts_of(count)
    for number in range(2 * WINDOW + 2):
        whole.remember(step(number))
        for part in parts:
            part.remember(step(number))
        recall, recalls = whole.recall(number), [part.recall(number) for part in parts]
        for name in ("prototypes", "present", "rows", "filled"):
            joined = np.concatenate([getattr(r, name) for r in recalls])
            np.testing.assert_array_equal(joined, getattr(recall, name), err_msg=name)
        assert all(np.array_equal(r.histogram, recall.histogram) for r in recalls)
    rejected = whole.metrics()["rejected"]
    assert rejected > 0 and sum(part.metrics()["rejected"] for part in parts) == rejected


def test_a_mean_of_a_full_queue_does_not_drift() -> None:
    """Rows of a million, then ordinary ones: a running sum in float32 would still remember the first."""
    kept = memory()
    for number in range(200):
        size = 1e6 if number < 100 else 1.0
        kept.remember(ClassRememberArrays(number, np.full((1, D), size / 3, np.float32), np.array([2])))
        kept.recall(number)
    assert (kept.recall(200).prototypes[2] == np.float32(1 / 3)).all()


def test_six_steps_are_three_and_three_after_a_resume_across_a_window() -> None:
    for start in (WINDOW - 3, 4 * WINDOW - 3):  # the window closes at the first step after the resume
        whole, before, after = memory(), memory(), memory()
        for kept in (whole, before):
            for number in range(start):
                kept.remember(step(number))
        life(after, 0, 9)  # must vanish
        expected = life(whole, start, start + 6)
        found = life(before, start, start + 3)
        after.load_state_dict(before.state_dict())
        assert found + life(after, start + 3, start + 6) == expected
        same_state(whole, after)


def test_what_is_given_out_is_nobody_elses() -> None:
    kept = memory()
    kept.remember(step(0))
    recall, state = kept.recall(5), kept.state_dict()
    expected = seen(kept.recall(5))
    for array in vars(recall).values():
        array[...] = 9
    for array in state.values():
        array[...] = 9
    assert seen(kept.recall(5)) == expected


def saved(parts: list[ClassMemory]) -> list[Piece]:
    """As on a disk."""
    return [
        Piece(piece.kind, piece.number, piece.first, piece.end, {k: v.copy() for k, v in piece.arrays.items()})
        for part in parts
        for piece in part.snapshot()
    ]


def restore(part: ClassMemory, written: list[Piece]) -> None:
    def read(kind: Kind, first: int, end: int) -> list[Piece]:
        return [piece for piece in written if piece.kind == kind and piece.first < end and first < piece.end]

    part.restore(next(piece for piece in written if piece.kind == "index").arrays, read)


UNEVEN = ((0, 1), (1, 6), (6, C))  # not at the ends of pieces


@pytest.mark.parametrize("writers", [1, 2, 4, 7, UNEVEN])
def test_any_parts_read_what_any_others_wrote(tmp_path: Path, writers: Any) -> None:
    """Through the files of a checkpoint."""
    whole = memory()
    others = parts_of(writers) if isinstance(writers, int) else [memory(first=f, last=e) for f, e in writers]
    for kept in (whole, *others):
        life(kept, 0, 13)
    written = [piece for part in others for piece in part.snapshot()]
    records = pieces.write(str(tmp_path), written)
    assert len(records) == len(written) == len({(piece.kind, piece.number) for piece in written})
    index, read = pieces.read_index(str(tmp_path), records), pieces.reader(str(tmp_path), records)
    expected = whole.state_dict()
    for first, last in ((0, C), (0, 4), (4, C), (2, 7), (3, 3)):
        part = memory(first=first, last=last)
        part.restore(index, read)
        for name, array in part.state_dict().items():
            own = expected[name][first:last] if name.startswith("classes.") else expected[name]
            np.testing.assert_array_equal(array, own, err_msg=name)
        for name in ("prototypes", "rows", "filled"):
            mine, theirs = getattr(part.recall(13), name), getattr(whole.recall(13), name)
            np.testing.assert_array_equal(mine, theirs[first:last], err_msg=name)


def test_nothing_of_what_was_is_left_after_a_restore() -> None:
    kept = memory()
    life(kept, 0, 7)
    kept.load_state_dict(memory().state_dict())
    assert seen(kept.recall(0)) == seen(memory().recall(0))
    assert kept.metrics() == memory().metrics()


@pytest.mark.parametrize("count", [2, 3, 7])
def test_pieces_do_not_depend_on_the_parts(count: int) -> None:
    one, other = [memory()], parts_of(count)
    for kept in (*one, *other):
        life(kept, 0, 7)
    for mine, theirs in zip(saved(one), saved(other), strict=True):
        assert (mine.kind, mine.number, mine.first, mine.end) == (theirs.kind, theirs.number, theirs.first, theirs.end)
        for name, array in mine.arrays.items():
            np.testing.assert_array_equal(array, theirs.arrays[name], err_msg=name)


def test_metrics_by_hand() -> None:
    kept = memory()
    features = np.ones((5, D), dtype=np.float32)
    features[4, 0] = np.nan
    kept.remember(ClassRememberArrays(0, features, np.array([0, 0, 3, 0, 8])))
    expected = {"prototypes_filled": 2 / C, "queue_fill": 4 / (C * L), "rejected": 1.0, "dropped": 0.0}
    assert kept.metrics(reset=False) == kept.metrics() == expected
    assert kept.metrics() == {**expected, "rejected": 0.0}
    kept.remember(ClassRememberArrays(3 * WINDOW, None, NONE))
    kept.remember(ClassRememberArrays(0, None, NONE, np.full(C, 2)))  # three windows late
    assert [kept.metrics()["dropped"], kept.metrics()["dropped"]] == [2 * C, 0]
    assert memory(first=2, last=2).metrics() == dict.fromkeys(expected, 0.0)


def test_classes_without_a_direction_are_in_no_softmax() -> None:
    """Nothing pushed, only rows that are not finite, and rows of zeros: silence through an encoder without bias."""
    kept = memory()
    rows = np.array([[1, 2, 3, 4], [0, 0, 0, 0], [np.inf, 0, 0, 0], [-1, 1, 0, 0]], dtype=np.float32)
    kept.remember(ClassRememberArrays(0, rows, np.array([0, 1, 2, 3])))
    recall = kept.recall(0)
    assert np.flatnonzero(recall.present).tolist() == [0, 3] and not recall.prototypes[[1, 2, 4, 5, 6, 7, 8]].any()
    prototypes, present = torch.from_numpy(recall.prototypes), torch.from_numpy(recall.present)
    q = semantic_logits(-torch.ones(1, D), prototypes, present, temperature=0.05).softmax(dim=1)[0]
    assert torch.isfinite(q).all() and q.sum().item() == pytest.approx(1)
    assert q.nonzero().ravel().tolist() == [0, 3]
    nothing = memory().recall(0)
    q = semantic_logits(
        torch.ones(1, D), torch.from_numpy(nothing.prototypes), torch.from_numpy(nothing.present), temperature=0.05
    ).softmax(dim=1)
    assert not nothing.present.any() and torch.equal(q, torch.full((1, C), 1 / C))


BAD: dict[str, tuple[ClassRememberArrays, str]] = {
    "unlabelled": (ClassRememberArrays(0, np.ones((2, D)), np.array([3, -1])), r"0\.\.8, got -1"),
    "unknown": (ClassRememberArrays(0, np.ones((2, D)), np.array([9, 3])), r"0\.\.8, got 9"),
    "of others": (ClassRememberArrays(0, None, np.array([12])), r"0\.\.8, got 12"),
    "halves": (ClassRememberArrays(0, np.ones((1, D)), np.array([0.5])), "labels must be integers"),
    "width": (
        ClassRememberArrays(0, np.ones((2, 3)), np.array([1, 1])),
        r"features have shape \(2, 3\), expected \(2, 4\)",
    ),
    "rows": (
        ClassRememberArrays(0, np.ones((3, D)), np.array([1, 1])),
        r"features have shape \(3, 4\), expected \(2, 4\)",
    ),
    "counts": (
        ClassRememberArrays(0, None, NONE, np.ones(4, np.int64)),
        r"counts must be integers \(9,\), got int64 \(4,\)",
    ),
    "shares": (ClassRememberArrays(0, None, NONE, np.ones(C)), "counts must be integers .* got float64"),
    "negative": (ClassRememberArrays(0, None, NONE, np.arange(C) - 2), "counts must not be negative, got -2"),
    "step": (ClassRememberArrays(-1, np.ones((1, D)), np.array([1])), "step must be at least 0, got -1"),
}


@pytest.mark.parametrize("what", list(BAD))
def test_what_cannot_be_remembered_changes_nothing(what: str) -> None:
    kept, like = memory(last=5), memory(last=5)
    for one in (kept, like):
        one.remember(step(0))
    with pytest.raises(ValueError, match=BAD[what][1]):
        kept.remember(BAD[what][0])
    same_state(kept, like)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "classes": ({"classes": C + 1}, r"'windows.counts' is int64 \(3, 10\), expected int64 \(3, 9\)"),
    "dim": ({"dim": D + 1}, r"'classes.rows' is float32 .*, expected float32"),
    "length": ({"length": L + 1}, r"'classes.rows' is float32 .*, expected float32"),
    "window": ({"window": WINDOW + 1}, "windows of 6 steps, expected 5"),
}


@pytest.mark.parametrize("wrong", list(WRONG))
def test_a_state_of_other_sizes_changes_nothing(wrong: str) -> None:
    other, kept, like = memory(**WRONG[wrong][0]), memory(), memory()
    for one in (kept, like):
        life(one, 0, 7)
    for call in (lambda: kept.load_state_dict(other.state_dict()), lambda: restore(kept, saved([other]))):
        with pytest.raises(ValueError, match=WRONG[wrong][1]):
            call()
    same_state(kept, like)


def test_a_state_with_parts_missing_or_unknown_changes_nothing() -> None:
    kept, like = memory(), memory()
    for one in (kept, like):
        life(one, 0, 7)
    state, written = memory().state_dict(), saved(parts_of(2))
    bad = [({k: v for k, v in state.items() if k != gone}, gone.split(".")[-1]) for gone in state]
    bad += [({**state, "windows.more": NONE}, "windows.more"), ({**state, "classes.more": NONE}, "more")]
    bad += [({**state, "classes.pushed": state["classes.pushed"] - 1}, "classes.pushed.*negative")]
    bad += [({**state, "windows.open": np.array(-1)}, "windows.open.*negative")]
    for wrong, named in bad:
        with pytest.raises(ValueError, match=f"memory state: .*{named}"):
            kept.load_state_dict(wrong)
    with pytest.raises(ValueError, match="memory state: nothing of class 2"):
        restore(kept, [piece for piece in written if piece.number != 2])
    same_state(kept, like)


@pytest.mark.parametrize("name", ["classes", "dim", "length", "window"])
def test_impossible_sizes(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        memory(**{name: 0})
    for anchors in (-1, L + 1):
        with pytest.raises(ValueError, match=rf"anchors must lie in 0\.\.6, the length of a queue, got {anchors}"):
            memory(anchors=anchors)
    for first, last in ((-1, 3), (3, 2), (0, C + 1)):
        with pytest.raises(ValueError, match=r"are no part of 0\.\.9"):
            memory(first=first, last=last)
