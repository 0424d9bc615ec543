"""Centroids in short codes, among which the nearest to a point are found approximately."""

from __future__ import annotations

import numpy as np

from rayssl.clustering.points import load_faiss

_SHORTLIST = 8  # centroids that a search compares exactly
_CODED = 256  # dimensions that the codes represent
_ALIKE = 16  # rows; fewer are multiplied by other routines of BLAS, whose last bits would change a shortlist


class CodedCentroids:
    """``centroids [K, D]`` for approximate searches; made by `train`, or elsewhere from what `arrays` returned."""

    def __init__(self, centroids: np.ndarray, projection: np.ndarray, codes: np.ndarray) -> None:
        self._centroids = centroids
        self._projection = projection
        self._codes = load_faiss().deserialize_index(codes)

    @classmethod
    def train(cls, centroids: np.ndarray, random: np.random.Generator) -> CodedCentroids:
        """4-bit product codes of the main 256 dimensions of ``centroids``; K at least 256, D at least 16."""
        dims = min(_CODED, centroids.shape[1]) // 8 * 8
        main = np.linalg.eigh(np.asarray(centroids.T @ centroids, dtype=np.float64))[1][:, -dims:]
        # a random rotation, so that all codes carry about as much
        turned = main @ np.linalg.qr(random.standard_normal((dims, dims)))[0]
        projection = np.ascontiguousarray(turned, dtype=np.float32)
        faiss = load_faiss()
        codes = faiss.IndexPQFastScan(dims, dims // 4, 4, faiss.METRIC_INNER_PRODUCT)
        codes.pq.cp.min_points_per_centroid = 1
        codes.train(centroids[:16384] @ projection)
        coded = cls(centroids, projection, faiss.serialize_index(codes))
        coded.encode(centroids)
        return coded

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """What the constructor takes besides the centroids: the projection ``[D, dims]`` and the codes, uint8."""
        return self._projection, load_faiss().serialize_index(self._codes)

    def encode(self, centroids: np.ndarray) -> None:
        """Replaces the centroids by other ``centroids [K, D]``, in the same code."""
        self._centroids = centroids
        self._codes.reset()
        self._codes.add(centroids @ self._projection)

    def shortlist(self, rows: np.ndarray, count: int) -> np.ndarray:
        """The ``count`` centroids that seem nearest to each of ``rows [n, D]``, nearest first: int64 ``[n, count]``."""
        more = np.zeros((max(0, _ALIKE - len(rows)), rows.shape[1]), dtype=np.float32)
        projected = (np.concatenate([rows, more]) if len(more) else rows) @ self._projection
        found: np.ndarray = self._codes.search(projected[: len(rows)], count)[1]
        found[found < 0] = 0  # where the codes' approximate scores leave a place
        return found

    def nearest(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Among the shortlist of each of ``rows [n, D]`` the nearest: labels ``[n]`` and cosines ``[n]``."""
        faiss = load_faiss()
        candidates = self.shortlist(rows, _SHORTLIST)
        cosines = np.empty(candidates.shape, dtype=np.float32)
        pointers = [faiss.swig_ptr(array) for array in (cosines, rows, self._centroids, candidates)]
        faiss.fvec_inner_products_by_idx(*pointers, rows.shape[1], *candidates.shape)
        best = cosines.argmax(axis=1)[:, None]
        return np.take_along_axis(candidates, best, 1)[:, 0], np.take_along_axis(cosines, best, 1)[:, 0]
