import numpy as np
import pytest
import torch

from rayssl.evaluation.rank import effective_rank


def reference(z: np.ndarray) -> float:
    """RankMe, equation 1, by the eigenvalues of the Gram matrix and torch's entropy of a distribution."""
    singular = torch.linalg.eigvalsh(torch.from_numpy(z.T @ z).double()).clamp_min(0).sqrt()
    p = singular / singular.sum() + 1e-7
    return float(torch.exp(torch.special.entr(p).sum()))


@pytest.mark.parametrize(("n", "d"), [(300, 20), (20, 64), (50, 50)])
def test_it_is_the_paper_s_equation(n: int, d: int) -> None:
    z = np.random.default_rng(n).normal(size=(n, d)) * np.linspace(0.1, 3, d)
    assert effective_rank(z.astype(np.float32)) == pytest.approx(
        reference(z.astype(np.float32).astype(float)), rel=1e-4
    )


def test_closed_forms() -> None:
    """A flat spectrum of k directions has rank k, one direction has rank 1, and scale and rotation change nothing."""
    for k in (1, 3, 8):
        z = np.zeros((16, 8), np.float32)
        z[np.arange(k), np.arange(k)] = 2.0
        assert effective_rank(z) == pytest.approx(k, rel=1e-4)
    z = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    turned = z @ np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0].astype(np.float32)
    assert effective_rank(5 * turned) == pytest.approx(effective_rank(z), rel=1e-5)
    assert 1 <= effective_rank(z) <= 6.01


@pytest.mark.parametrize("z", [np.zeros((0, 4)), np.zeros((3, 4)), np.full((3, 4), np.nan), np.zeros(4)])
def test_nothing_to_compute_it_from(z: np.ndarray) -> None:
    with pytest.raises(ValueError, match="effective rank"):
        effective_rank(z.astype(np.float32))
