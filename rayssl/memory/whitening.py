"""Whitening: a linear map after which no direction of the references counts more than another.

A young encoder's embeddings vary most along a few directions that all speakers share (what was said, the channel), and
a cosine between them looks at little else. Dividing each principal direction by its standard deviation lets the many
small ones, which tell speakers apart, have their say. Not part of the SSPS paper.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayssl.memory.bank import unit_rows

_BLOCK = 1 << 16  # rows held at once in double precision
_FLOOR = 1e-3  # of the mean variance: a direction with less is noise, and is not blown up further


@dataclass(frozen=True)
class Whitening:
    """``x`` to ``(x - mean) @ map``, then to unit length; ``mean [D]``, ``map [D, D]`` float32."""

    mean: np.ndarray
    map: np.ndarray

    @classmethod
    def fit(cls, rows: np.ndarray) -> Whitening:
        """To the covariance of ``rows [n, D]``, n >= 2; along directions without variance next to nothing is left."""
        if len(rows) < 2:
            raise ValueError(f"a covariance needs at least 2 references, got {len(rows)}")
        mean = rows.mean(axis=0, dtype=np.float64)
        covariance = np.zeros((rows.shape[1], rows.shape[1]))
        for start in range(0, len(rows), _BLOCK):
            centred = rows[start : start + _BLOCK] - mean
            covariance += centred.T @ centred
        variances, directions = np.linalg.eigh(covariance / len(rows))
        scale = 1.0 / np.sqrt(np.maximum(variances, 0) + _FLOOR * max(float(variances.mean()), 1e-12))
        return cls(mean.astype(np.float32), (directions * scale).astype(np.float32))

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """``[n, D]`` float32 of unit length."""
        return unit_rows((rows.astype(np.float32) - self.mean) @ self.map)
