"""Measures how long k-means takes on this machine, how good its result is, and how much memory it needs."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from rayssl.clustering.kmeans import cluster
from rayssl.clustering.points import assign, unit_rows
from rayssl.clustering.result import KMeans, Mode
from rayssl.clustering.similarity import normalized_mutual_information
from rayssl.errors import UserError

_TIMED = 32768  # the time of a whole assignment is extrapolated from this many points
_LEAST = 512  # the least clusters of a comparison: with fewer, the fast mode is the exact one


@dataclass(frozen=True)
class KMeansCase:
    """One clustering of synthetic points: ``rows`` N, ``dim`` D, ``clusters`` K; the other fields go to `cluster`.

    ``data``: with "planted", K directions are drawn evenly from the sphere, and each point is one of them plus noise of
    a norm of about ``spread``. With "noise", each point is a direction drawn evenly. ``compare``: how many rows to
    compare with the exact mode; 0 for none.
    """

    rows: int
    dim: int
    clusters: int
    merged_from: int = 0
    mode: Mode = "exact"
    device: str = "cpu"
    seed: int = 0
    iterations: int = 10
    data: Literal["planted", "noise"] = "planted"
    spread: float = 1.0
    compare: int = 0


def measure(job: KMeansCase) -> dict[str, int | float | str]:
    """The fields of ``job`` and the figures below.

    - seconds.
    - objective: the mean cosine of points to their own centroid.
    - empty: the number of clusters without points. repaired.
    - peak_bytes: the most resident bytes of this process so far, with the points. peak_device_bytes, on a GPU.
    - nmi, with planted clusters.

    With ``compare`` also, for all points of so many clusters that they have about that many rows:

    - compared_rows, compared_clusters: the size of this comparison.
    - objective_compared by the job's mode, objective_exact by the exact mode.
    - seconds_exact, in fast mode on the CPU: the time of the exact mode for the whole job, extrapolated from the
      assignment of some points to all centroids.

    Raises `UserError` for a job that is not possible.
    """
    _check(job)
    x, labels = points(job)
    figures: dict[str, int | float | str] = asdict(job)
    started = time.perf_counter()
    found = _run(job, x, job.clusters, job.mode)
    figures["seconds"] = time.perf_counter() - started
    figures |= {"objective": found.objective, "repaired": found.repaired}
    figures["empty"] = int(np.count_nonzero(np.bincount(found.assignment, minlength=job.clusters) == 0))
    if job.data == "planted":
        figures["nmi"] = normalized_mutual_information(found.assignment, labels)
    figures["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
    if job.device != "cpu":
        import torch

        figures["peak_device_bytes"] = torch.cuda.max_memory_allocated(job.device)
    if job.compare:
        figures |= _compared(job, x, labels, found)
    return figures


def points(job: KMeansCase) -> tuple[np.ndarray, np.ndarray]:
    """The job's points, float16 ``[N, D]`` of norm 1, and the planted cluster of each, int32 ``[N]``."""
    random = np.random.default_rng(job.seed)
    centres = unit_rows(random.standard_normal((job.clusters, job.dim), dtype=np.float32))
    labels = random.integers(0, job.clusters, job.rows, dtype=np.int32)
    x = np.empty((job.rows, job.dim), dtype=np.float16)
    for start in range(0, job.rows, 65536):
        part = labels[start : start + 65536]
        noise = random.standard_normal((len(part), job.dim), dtype=np.float32)
        if job.data == "planted":
            noise *= job.spread / np.sqrt(job.dim)
            noise += centres[part]
        x[start : start + 65536] = unit_rows(noise)
    return x, labels


def table(figures: dict[str, int | float | str]) -> str:
    """The figures for a person: one line for each, with its name and its value."""
    return "\n".join(f"{name:<20}  {_readable(name, value)}" for name, value in figures.items())


def _readable(name: str, value: int | float | str) -> str:
    if name.endswith("_bytes"):
        return f"{float(value) / 2**30:.2f} GiB"
    if name.startswith("seconds"):
        return f"{value:.1f}"
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value


def _check(job: KMeansCase) -> None:
    if not 1 <= job.clusters <= job.rows:
        raise UserError(f"--clusters {job.clusters} must lie in 1..{job.rows}, the number of --rows")
    if job.merged_from and not job.clusters <= job.merged_from <= job.rows:
        raise UserError(f"--merged-from {job.merged_from} must be 0, or lie in {job.clusters}..{job.rows}")
    if job.dim < 1 or job.iterations < 1 or job.compare < 0 or job.spread < 0:
        raise UserError("--dim and --iterations must be at least 1, --compare and --spread not negative")
    if job.device != "cpu":
        import torch

        if not torch.cuda.is_available():
            raise UserError(f"--device {job.device}: torch finds no GPU here; use --device cpu")
        torch.cuda.reset_peak_memory_stats(job.device)


def _run(job: KMeansCase, x: np.ndarray, clusters: int, mode: Mode) -> KMeans:
    merged_from = job.merged_from * clusters // job.clusters
    return cluster(
        x, clusters, merged_from=merged_from, mode=mode, device=job.device, iterations=job.iterations, seed=job.seed
    )


def _compared(job: KMeansCase, x: np.ndarray, labels: np.ndarray, found: KMeans) -> dict[str, int | float | str]:
    """The comparison with the exact mode. It takes all points of some clusters: clusters are as large as in the job."""
    share = min(1.0, job.compare / job.rows)
    clusters = min(job.clusters, max(round(job.clusters * share), _LEAST))
    part = x if clusters == job.clusters else x[labels < clusters]
    mine = found if clusters == job.clusters else _run(job, part, clusters, job.mode)
    exact = mine if job.mode == "exact" else _run(job, part, clusters, "exact")
    figures: dict[str, int | float | str] = {"compared_rows": len(part), "compared_clusters": clusters}
    figures |= {"objective_compared": mine.objective, "objective_exact": exact.objective}
    if job.mode == "fast" and job.device == "cpu":
        assign(x[:_TIMED], found.centroids)  # warm-up, not timed: threads start and caches fill
        started = time.perf_counter()
        assign(x[:_TIMED], found.centroids)
        each = (time.perf_counter() - started) / min(_TIMED, len(x))
        figures["seconds_exact"] = each * len(x) * (job.iterations + 1)
    return figures
