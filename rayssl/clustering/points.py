"""What k-means does with rows of points: exact sums, nearest centroids, and the threads for both."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

# Unit rows are rounded to multiples of this before they are added up. Then 2^25 of them fit into the 53 bits of a
# float64: no sum is rounded. So every order and grouping of the points gives the same bits, and with it every division
# among partitions and threads. The rounding changes a value by at most 2^-29, less than float32's own step for values
# above 1/16, which it does not change.
GRID = 2.0**-28
_EPS = 1e-12
_EXACT_ROWS = 16384  # of one block: at D = 512 it takes 32 MB as float32

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


def load_faiss() -> Any:
    """Imports faiss, which takes a second, and switches off its log lines about CPU variants."""
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
    import faiss

    return faiss


@contextmanager
def faiss_threads(count: int) -> Iterator[None]:
    """faiss with ``count`` threads."""
    before = load_faiss().omp_get_max_threads()
    load_faiss().omp_set_num_threads(count)
    try:
        yield
    finally:
        load_faiss().omp_set_num_threads(before)


class Workers:
    """Threads for pieces of work whose results come in the order of the pieces."""

    def __init__(self, pool: ThreadPoolExecutor, count: int) -> None:
        self._pool = pool
        self._ahead = 2 * count

    def map(self, function: Callable[[_Task], _Result], tasks: Iterable[_Task]) -> Iterator[_Result]:
        """Yields ``function`` of each task, in order; works only a few tasks ahead of the caller."""
        waiting: deque[Future[_Result]] = deque()
        for task in tasks:
            waiting.append(self._pool.submit(function, task))
            if len(waiting) > self._ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def all_threads() -> int:
    """As many as faiss has. Do not call it inside `working`, where one library of BLAS sets OpenMP to one thread."""
    return load_faiss().omp_get_max_threads() or os.cpu_count() or 1


@contextmanager
def working(threads: int) -> Iterator[Workers]:
    """Workers, one task a thread. Shared thread pools would make results depend on the number of threads."""
    with faiss_threads(threads), _thread_pools().limit(limits=1, user_api="blas"):
        yield Workers(_pool(threads, os.getpid()), threads)


@cache
def _pool(count: int, process: int) -> ThreadPoolExecutor:
    """Lives as long as the process, because every new thread may claim tens of MB. A forked ``process`` has its own."""
    return ThreadPoolExecutor(count, "kmeans", initializer=load_faiss().omp_set_num_threads, initargs=(1,))


@cache
def _thread_pools() -> ThreadpoolController:
    return ThreadpoolController()  # it looks through all loaded libraries, which takes milliseconds


def blocks(count: int, rows: int) -> Iterator[slice]:
    """Slices of ``rows`` that together cover 0..``count`` - 1."""
    return (slice(start, min(start + rows, count)) for start in range(0, count, rows))


def unit_rows(x: np.ndarray) -> np.ndarray:
    """A float32 copy of ``x [n, D]`` with rows of L2 norm 1; zero rows stay zero."""
    rows = np.array(x, dtype=np.float32)
    rows /= np.maximum(np.sqrt(np.einsum("nd,nd->n", rows, rows)), _EPS)[:, None]
    return rows


def steps(x: np.ndarray) -> np.ndarray:
    """The rows of ``x [n, D]`` scaled to norm 1, in steps of `GRID`: integers, as float32."""
    rows = np.array(x, dtype=np.float32)
    norms = np.maximum(np.sqrt(np.einsum("nd,nd->n", rows, rows)), 1e-12)
    rows /= (norms * np.float32(GRID))[:, None]
    return np.rint(rows, out=rows)


def partial_sums(
    rows: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The distinct ``labels [n]``, ascending, and the exact sum of the rows of each: float64 ``[distinct, D]``.

    ``rows [n, D]`` as `steps` gives them; ``weights [n]``: an integer for each row, 1 if not given.
    """
    from scipy.sparse import csr_matrix  # NumPy's own reductions over runs of rows take twenty times as long

    present, place = np.unique(labels, return_inverse=True)
    scale = np.full(len(labels), GRID) if weights is None else weights * GRID
    members = csr_matrix((scale, (place, np.arange(len(labels)))), shape=(len(present), len(labels)))
    return present, members @ rows


def exact_total(cosines: np.ndarray) -> float:
    """The sum of ``cosines [n]`` rounded to the `GRID`, the same for any order and grouping of them."""
    total = 0.0
    for part in blocks(len(cosines), 2**16):
        total += float(np.rint(cosines[part] * np.float32(1 / GRID)).sum(dtype=np.float64))
    return total * GRID


def directions(sums: np.ndarray, before: np.ndarray) -> np.ndarray:
    """``sums [K, D]`` scaled to norm 1, float32; where a sum is zero, the row of ``before`` stays."""
    found = unit_rows(sums)
    nothing = ~found.any(axis=1)
    found[nothing] = before[nothing]
    return found


def assign(x: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The nearest of ``centroids [K, D]`` (of norm 1) for each row of ``x [n, D]``: int32 ``[n]``."""
    faiss = load_faiss()
    nearest = np.empty(len(x), dtype=np.int32)
    for part in blocks(len(x), _EXACT_ROWS):
        nearest[part] = faiss.knn(unit_rows(x[part]), centroids, 1, metric=faiss.METRIC_INNER_PRODUCT)[1][:, 0]
    return nearest
