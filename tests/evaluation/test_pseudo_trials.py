import numpy as np
import pytest
from sklearn.metrics import roc_curve

from rayssl.evaluation import pseudo_trials


def waves(*lengths: int) -> list[np.ndarray]:
    return [np.random.default_rng(k).integers(-3000, 3000, length).astype(np.int16) for k, length in enumerate(lengths)]


def test_segments_are_the_two_ends_without_a_common_sample() -> None:
    heard = waves(5000, 3200, 1999, 700, 40)
    used, first, second = pseudo_trials.segments(heard, longest=1600, least=300)
    assert used == [0, 1, 2, 3]
    assert [len(wave) for wave in first] == [len(wave) for wave in second] == [1600, 1600, 800, 350]
    for place, a, b in zip(used, first, second, strict=True):
        whole = heard[place]
        assert (a == whole[: len(a)]).all() and (b == whole[-len(b) :]).all() and len(a) + len(b) <= len(whole)


def test_distortion_depends_on_the_utterance_and_the_side_alone() -> None:
    heard, ids = waves(1600, 800, 1600), np.array([5, 9, 70])
    distort = pseudo_trials.distortion(16000)
    made = pseudo_trials.distorted(heard, ids, 0, distort)
    alone = [pseudo_trials.distorted([wave], ids[k : k + 1], 0, distort)[0] for k, wave in enumerate(heard)]
    assert [len(wave) for wave in made] == [1600, 800, 1600]
    for one, other, before in zip(made, alone, heard, strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1  # a Fourier transform of one row or two
        assert np.abs(one.astype(int) - before).max() > 100
    assert (pseudo_trials.distorted(heard, ids, 1, distort)[0] != made[0]).any()


def test_the_error_rate_is_that_of_all_pairs() -> None:
    draw = np.random.default_rng(3)
    centres = draw.normal(size=(30, 4))
    first, second = ((centres + 0.8 * draw.normal(size=centres.shape)).astype(np.float32) for _ in range(2))
    scores, labels = [], []
    for k, a in enumerate(first.astype(float)):
        for m, b in enumerate(second.astype(float)):
            scores.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            labels.append(int(k == m))
    false_alarm, hit, _ = roc_curve(labels, scores, drop_intermediate=False)
    staircase = np.maximum(false_alarm, 1 - hit).min()  # at most one step above the hull
    found = pseudo_trials.pseudo_eer(first, second)
    assert staircase - 1 / 30 - 0.02 <= found <= staircase + 1e-9 and 0.02 < found < 0.5


def test_limits() -> None:
    rows = np.eye(4, dtype=np.float32)
    assert pseudo_trials.pseudo_eer(rows, rows) == 0.0
    assert pseudo_trials.pseudo_eer(rows, np.roll(rows, 1, axis=0)) > 0.2
    with pytest.raises(ValueError, match="two utterances"):
        pseudo_trials.pseudo_eer(rows[:1], rows[:1])
