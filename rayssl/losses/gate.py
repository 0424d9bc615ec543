"""A gate on the loss: which pseudo-labels are reliable, by a mixture of two Gaussians over the losses of an epoch.

Loss-gated learning (Tao et al., ICASSP 2022, arXiv 2110.03869) keeps the rows whose loss is below a threshold. The
dynamic gate (Han et al., Interspeech 2022, arXiv 2208.01928) finds the threshold anew in each epoch.
"""

from __future__ import annotations

import numpy as np

_FEWEST = 10  # losses that two Gaussians are fitted to


def threshold(losses: np.ndarray) -> float:
    """The loss that separates reliable labels from others; infinite if the losses are not of two kinds.

    Two Gaussians are fitted to the logarithms of ``losses [n]``. The threshold lies between their means, where a loss
    is equally likely to come from each of them, weights included. Values that are not positive are left out, such as
    -1 for a loss that was never computed. The losses are of two kinds if there are at least ten of them, and if the
    densities cross between the means.
    """
    from sklearn.mixture import GaussianMixture

    logs = np.log(losses[losses > 0].astype(np.float64))
    if len(logs) < _FEWEST or np.ptp(logs) == 0:
        return float("inf")
    starts = np.quantile(logs, (0.1, 0.9))[:, None]
    mixture = GaussianMixture(2, tol=1e-5, max_iter=1000, means_init=starts, random_state=0).fit(logs[:, None])
    order = np.argsort(mixture.means_[:, 0])
    means, variances, weights = mixture.means_[order, 0], mixture.covariances_[order, 0, 0], mixture.weights_[order]
    # log of weight * density is a parabola in the logarithm of the loss; the two are equal at the roots of a difference
    a, b = -0.5 / variances, means / variances
    c = np.log(weights) - 0.5 * np.log(variances) - 0.5 * means**2 / variances
    roots = np.roots([a[0] - a[1], b[0] - b[1], c[0] - c[1]])
    between = [root.real for root in roots if abs(root.imag) < 1e-9 and means[0] < root.real < means[1]]
    return float(np.exp(between[0])) if len(between) == 1 else float("inf")
