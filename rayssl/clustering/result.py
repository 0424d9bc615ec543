"""What a k-means returns, and its two modes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Mode = Literal["exact", "fast"]


@dataclass(frozen=True)
class Clusters:
    """K clusters: ``centroids [K, D]`` float32 of norm 1; the rest as in `KMeans`.

    ``suggested``: `rayssl.clustering.ward.suggested_clusters`, where clusters were merged; else 0.
    """

    centroids: np.ndarray
    objective: float
    repaired: int
    suggested: int = 0


@dataclass(frozen=True)
class KMeans:
    """A clustering of n points.

    ``centroids [K, D]`` float32 of norm 1; ``assignment [n]`` int32 in 0..K-1, the nearest centroid by cosine except
    for points that the repair relocated (and, from the fast mode, for the few whose nearest was not looked at);
    ``objective`` the mean cosine to the own centroid, -1..1; ``repaired`` how many clusters had been empty at the end.
    """

    centroids: np.ndarray
    assignment: np.ndarray
    objective: float
    repaired: int
