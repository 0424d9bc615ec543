"""Probes against scikit-learn and brute force; shares of labels are stratified and nested."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_info

from rayssl.evaluation import probes
from rayssl.evaluation.probes import knn, label_shares, linear_probe


def clusters(seed: int, count: int = 300, classes: int = 4, dim: int = 8, apart: float = 1.2) -> tuple[np.ndarray, ...]:
    """Training and test rows; dimensions of very different scale and offset, labels 10, 13, 16, ..."""
    draw = np.random.default_rng([seed])
    centres = draw.normal(size=(classes, dim)) * apart
    y = draw.integers(0, classes, 2 * count)
    x = ((centres[y] + draw.normal(size=(2 * count, dim))) * np.logspace(-3, 3, dim) + 5).astype(np.float32)
    return x[:count], 10 + 3 * y[:count], x[count:], 10 + 3 * y[count:]


@pytest.mark.parametrize("seed", range(3))
def test_linear_probe_of_one_strength_is_scikit_learns_regression(seed: int) -> None:
    train_x, train_y, test_x, _ = clusters(seed)
    scaler = StandardScaler().fit(train_x.astype(np.float64))
    reference = LogisticRegression(C=1 / (0.01 * 300), tol=1e-8, max_iter=2000)
    reference.fit(scaler.transform(train_x), train_y)
    found = linear_probe(train_x, train_y, test_x, seed=0, l2=(0.01,))
    assert (found == reference.predict(scaler.transform(test_x))).mean() > 0.99
    assert set(found) <= {10, 13, 16, 19}


def test_linear_probe_ignores_scale_and_offset_of_dimensions() -> None:
    train_x, train_y, test_x, _ = clusters(1)
    scale, offset = np.logspace(3, -3, 8).astype(np.float32), np.arange(8, dtype=np.float32)
    plain = linear_probe(train_x, train_y, test_x, seed=0)
    moved = linear_probe(train_x * scale + offset, train_y, test_x * scale + offset, seed=0)
    assert (plain == moved).mean() > 0.98


@pytest.mark.parametrize("seed", range(3))
def test_linear_probe_chooses_a_strength_that_generalises(seed: int) -> None:
    """Little to learn in many dimensions of noise: with weak regularisation the training rows are learned by heart."""
    draw = np.random.default_rng([seed])
    y = draw.integers(0, 2, 1500)
    x = draw.normal(size=(1500, 150)).astype(np.float32)
    x[:, :30] += 0.2 * (2 * y[:, None] - 1)

    def accuracy(*l2: float) -> float:
        return float((linear_probe(x[:500], y[:500], x[500:], seed=0, l2=l2) == y[500:]).mean())

    strong, weak, chosen = accuracy(1.0), accuracy(0.0001), accuracy(*probes.L2)
    assert strong > weak + 0.04
    assert accuracy(0.0001, 1.0) == strong
    assert chosen > strong - 0.03


def test_linear_probe_repeats_and_works_with_classes_of_one_row() -> None:
    train_x, train_y, test_x, _ = clusters(2, count=40)
    rare = train_y.copy()
    rare[0] = 99
    assert (linear_probe(train_x, rare, test_x, seed=5) == linear_probe(train_x, rare, test_x, seed=5)).all()
    first = np.unique(train_y, return_index=True)[1]
    assert linear_probe(train_x[first], train_y[first], test_x, seed=0).shape == (40,)


def test_linear_probe_says_nothing_about_constant_dimensions_and_bounded_iterations() -> None:
    train_x, train_y, test_x, test_y = clusters(4, apart=3)
    train_x[:, 0] = test_x[:, 0] = 7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (linear_probe(train_x, train_y, test_x, seed=0) == test_y).mean() > 0.9


def test_fifth_is_held_out_by_class_and_single_rows_stay() -> None:
    labels = np.repeat(np.arange(5), [1, 2, 7, 8, 100])
    held = probes.held_out(labels, seed=0)
    assert np.bincount(labels[held], minlength=5).tolist() == [0, 1, 1, 2, 20]
    assert (held != probes.held_out(labels, seed=1)).any()


def test_threads_are_bounded_within_and_as_before_afterwards() -> None:
    before = threadpool_info()
    with probes._few_threads():
        assert all(pool["num_threads"] <= probes._THREADS for pool in threadpool_info())
    assert threadpool_info() == before


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (20, 1.0), (1000, 0.5)])
def test_knn_is_a_brute_force_vote(k: int, temperature: float) -> None:
    train_x, train_y, test_x, _ = clusters(5, count=60, apart=0.4)
    cosines = (test_x / np.linalg.norm(test_x, axis=1)[:, None]) @ (
        train_x / np.linalg.norm(train_x, axis=1)[:, None]
    ).T
    expected = []
    for row in cosines:
        votes = dict.fromkeys(sorted(set(train_y.tolist())), 0.0)
        for neighbour in np.argsort(-row)[:k]:
            votes[int(train_y[neighbour])] += np.exp(float(row[neighbour]) / temperature)
        expected.append(max(votes, key=lambda label: votes[label]))
    assert knn(train_x, train_y, test_x, k=k, temperature=temperature).tolist() == expected


def test_knn_agrees_with_scikit_learn_and_ignores_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng([6])
    train_x, train_y, test_x = draw.normal(size=(200, 6)), draw.integers(0, 5, 200), draw.normal(size=(90, 6))
    reference = KNeighborsClassifier(15, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.1)).fit(train_x, train_y)
    expected = reference.predict(test_x)
    monkeypatch.setattr(probes, "_BLOCK_BYTES", 4 * 200 * 7)  # blocks of 7 rows
    assert (knn(train_x, train_y, test_x, k=15, temperature=0.1) == expected).all()
    longer = draw.uniform(0.1, 10, 90)[:, None]
    assert (knn(3 * train_x, train_y, test_x * longer, k=15, temperature=0.1) == expected).all()


def test_knn_with_a_sharp_temperature_follows_the_nearest_without_overflow() -> None:
    train_x, train_y = np.eye(4, dtype=np.float32), np.array([3, 1, 1, 1])
    test_x = np.array([[1.0, 0.9, 0.9, 0.9]], np.float32)
    assert knn(train_x, train_y, test_x, temperature=1e-4).tolist() == [3]
    assert knn(train_x, train_y, test_x, temperature=1.0).tolist() == [1]


def test_shares_are_stratified_nested_and_leave_no_class_out() -> None:
    y = np.repeat([7, 2, 5, -1], [1000, 100, 3, 50])[np.random.default_rng([0]).permutation(1153)]
    found = label_shares(y, seed=1)
    counts = {share: [int((y[rows] == label).sum()) for label in (7, 2, 5)] for share, rows in found.items()}
    assert counts == {0.01: [10, 1, 1], 0.1: [100, 10, 1], 0.2: [200, 20, 1], 1.0: [1000, 100, 3]}
    assert set(found[0.01]) < set(found[0.1]) < set(found[0.2]) < set(found[1.0])
    assert found[1.0].tolist() == np.flatnonzero(y >= 0).tolist()


def test_shares_repeat_by_seed_and_do_not_depend_on_each_other() -> None:
    y = np.random.default_rng([2]).integers(0, 4, 500)
    found = label_shares(y, seed=3)
    assert (label_shares(y, (0.1,), seed=3)[0.1] == found[0.1]).all()
    assert (label_shares(y, (0.1,), seed=4)[0.1] != found[0.1]).any()


X, Y = np.eye(4, dtype=np.float32), np.array([0, 0, 1, 1])


@pytest.mark.parametrize("probe", [lambda x, y, t: linear_probe(x, y, t, seed=0), knn], ids=["linear", "knn"])
@pytest.mark.parametrize(
    ("x", "y", "test", "message"),
    [
        (X, [3, 3, 3, 3], X, "needs at least two classes, but all training rows are of class 3"),
        (X[:0], [], X, "needs training and test rows, got 0 and 4"),
        (X, Y, X[:0], "needs training and test rows, got 4 and 0"),
        (X, Y[:3], X, "4 training embeddings but 3 labels"),
        (X, [0, 1, -1, 1], X, "1 training rows have no label, first row 2"),
        (X, Y, X[:, :3], r"needs embeddings \[n, D\] and \[m, D\], got \[4, 4\] and \[4, 3\]"),
        (np.where(X == 1, np.nan, X), Y, X, "4 training embeddings are NaN or infinite, first at row 0"),
        (X, Y, np.where(X == 1, np.inf, X), "4 test embeddings are NaN or infinite"),
    ],
)
def test_what_cannot_be_probed_is_refused(probe, x, y, test, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        probe(x, y, test)


def test_settings_and_labels_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="k must be at least 1"):
        knn(X, Y, X, k=0)
    with pytest.raises(ValueError, match="strengths above 0"):
        linear_probe(X, Y, X, seed=0, l2=(0.0,))
    with pytest.raises(ValueError, match="none of 2 rows has a label"):
        label_shares([-1, -1], seed=0)
    with pytest.raises(ValueError, match="none of 0 rows"):
        label_shares([], seed=0)
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\]"):
        label_shares([0, 1], (1.5,), seed=0)
