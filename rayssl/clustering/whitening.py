"""Whitening: a linear map after which no direction of the references counts more than another.

A young encoder's embeddings vary most along a few directions that all speakers share (what was said, the channel), and
a cosine between them depends on little else. After each principal direction is divided by its standard deviation, the
many small ones, which tell speakers apart, count as much. Not part of the SSPS paper.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from rayssl.clustering.points import unit_rows

_BLOCK = 1 << 13  # rows held at once in double precision
_FLOOR = 1e-3  # of the mean variance: a direction with less is noise, and is not blown up further


@dataclass(frozen=True)
class Moments:
    """Of n rows: ``count`` n, ``total [D]`` and ``products [D, D]``, the sums of x and of x x^T, in float64."""

    count: int
    total: np.ndarray
    products: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, device: str = "cpu") -> Moments:
        """The moments of ``rows [n, D]``, a block at a time, added up on ``device``."""
        if device != "cpu":
            from rayssl.clustering.gpu.rows import moments  # here alone: this package starts without torch

            return cls(len(rows), *moments(rows, device))
        total, products = np.zeros(rows.shape[1]), np.zeros((rows.shape[1], rows.shape[1]))
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK].astype(np.float64)
            total += block.sum(axis=0)
            products += block.T @ block
        return cls(len(rows), total, products)


@dataclass(frozen=True)
class Whitening:
    """``x`` to ``(x - mean) @ map``, then to unit length; ``mean [D]``, ``map [D, D]`` float32."""

    mean: np.ndarray
    map: np.ndarray

    @classmethod
    def identity(cls, dim: int) -> Whitening:
        """Leaves rows of ``dim`` values as they are, but for their length."""
        return cls(np.zeros(dim, np.float32), np.eye(dim, dtype=np.float32))

    @classmethod
    def fit(cls, rows: np.ndarray) -> Whitening:
        """Fits it to the covariance of ``rows [n, D]``. Along directions without variance next to nothing is left.

        Raises ValueError for n < 2.
        """
        return cls.of_parts([Moments.of(rows)])

    @classmethod
    def of_parts(cls, parts: Iterable[Moments]) -> Whitening:
        """Fits it to all the rows whose moments ``parts`` are: the same parts give the same bits, wherever they are.

        Raises ValueError for fewer than 2 rows.
        """
        parts = list(parts)
        count = sum(part.count for part in parts)
        if count < 2:
            raise ValueError(f"a covariance needs at least 2 references, got {count}")
        mean = sum((part.total for part in parts[1:]), parts[0].total) / count
        covariance = sum((part.products for part in parts[1:]), parts[0].products) / count - np.outer(mean, mean)
        variances, directions = np.linalg.eigh(covariance)
        scale = 1.0 / np.sqrt(np.maximum(variances, 0) + _FLOOR * max(float(variances.mean()), 1e-12))
        return cls(mean.astype(np.float32), (directions * scale).astype(np.float32))

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """``[n, D]`` float32 of unit length."""
        return unit_rows((rows.astype(np.float32) - self.mean) @ self.map)

    def into(self, out: np.ndarray, rows: np.ndarray, device: str = "cpu") -> None:
        """``rows [n, D]`` whitened on ``device`` into ``out [n, D]``, in its precision, a block at a time."""
        if device != "cpu":
            from rayssl.clustering.gpu.rows import whiten_into  # here alone: this package starts without torch

            whiten_into(out, rows, self.mean, self.map, device)
            return
        for start in range(0, len(rows), _BLOCK):
            out[start : start + _BLOCK] = self(rows[start : start + _BLOCK])
