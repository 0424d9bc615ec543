"""Rows of a memory on a GPU: the nearest to queries, and what a whitening is fitted to."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rayssl.clustering.gpu.products import float32_products, norms_of, on_device

_MOMENT_ROWS = 65536


class DeviceRows:
    """A copy of ``rows [n, D]`` (float16 or float32) on ``device``, kept up by `write`.

    Products are exact for float16 rows, and float32 otherwise: nothing is rounded to TF32. Sums are float32.
    """

    def __init__(self, rows: np.ndarray, device: str) -> None:
        self._rows = on_device(rows, torch.device(device))

    def write(self, places: np.ndarray, rows: np.ndarray) -> None:
        """Replaces the rows at ``places [B]``; of equal places the last row stays."""
        last = len(places) - 1 - np.unique(places[::-1], return_index=True)[1]
        self._rows[_to(places[last], self._rows)] = _to(rows[last], self._rows).to(self._rows.dtype)

    def nearest(
        self, queries: np.ndarray, present: np.ndarray, pieces: list[slice], count: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each of ``pieces`` the ``count`` rows most similar to each of ``queries [B, D]``, or all there are.

        ``present [n]`` says which rows may be found. For each piece with any: places int64 ``[B, m]``, those of the
        most similar first, and their similarity float32 ``[B, m]``.
        """
        allowed, asked = _to(present, self._rows), _to(queries.astype(np.float32), self._rows)
        if self._rows.dtype == torch.float16 and self._rows.is_cuda:
            asked = asked.half()  # rows as they are kept, so that nothing is lost
        found = []
        with float32_products():
            for piece in pieces:
                most = min(count, int(np.count_nonzero(present[piece])))
                if most:
                    similarity = _products(asked, self._rows[piece])
                    similarity.masked_fill_(~allowed[piece], -torch.inf)
                    best = similarity.topk(most, dim=1)
                    found.append((best.indices + piece.start, best.values))
        return [(places.cpu().numpy(), similarity.cpu().numpy()) for places, similarity in found]


def moments(rows: np.ndarray, device: str) -> tuple[np.ndarray, np.ndarray]:
    """The sums of x ``[D]`` and of x x^T ``[D, D]`` over ``rows [n, D]``, added up on ``device`` in float64."""
    dim = rows.shape[1]
    total = torch.zeros(dim, dtype=torch.float64, device=device)
    products = torch.zeros((dim, dim), dtype=torch.float64, device=device)
    for start in range(0, len(rows), _MOMENT_ROWS):
        block = on_device(rows[start : start + _MOMENT_ROWS], torch.device(device)).double()
        total += block.sum(dim=0)
        products.addmm_(block.T, block)
    return total.cpu().numpy(), products.cpu().numpy()


def whitened(rows: Tensor, mean: Tensor, mapped: Tensor) -> Tensor:
    """``(rows [n, D] - mean [D]) @ mapped [D, D]``, float32 of norm 1."""
    with float32_products():
        found = (rows.float() - mean) @ mapped
    return found / norms_of(found)[:, None]


def whiten_into(out: np.ndarray, rows: np.ndarray, mean: np.ndarray, mapped: np.ndarray, device: str) -> None:
    """`whitened` for arrays, in the precision of ``out [n, D]``."""
    where = torch.device(device)
    there = [torch.from_numpy(np.array(each)).to(where) for each in (mean, mapped)]
    for start in range(0, len(rows), _MOMENT_ROWS):
        found = whitened(on_device(rows[start : start + _MOMENT_ROWS], where), *there)
        out[start : start + _MOMENT_ROWS] = found.cpu().numpy()


def _to(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.array(values)).to(like.device)


def _products(a: Tensor, b: Tensor) -> Tensor:
    if a.dtype == torch.float16:
        return torch.mm(a, b.T, out_dtype=torch.float32)
    return a @ b.float().T
