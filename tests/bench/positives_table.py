"""Which positives SSPS would find among the references of an encoder, plain and whitened: a table of configs/README.md.

    rayssl embed RUN runs/gsc/train embeddings --local
    python -m tests.bench.positives_table embeddings [--neighbours M ...] [--clusters K ...] [--merged-from 1260]

Prints how much of the variance lies between speakers and between recording conditions (the part behind ``#`` of a
recording's name), and how often the speaker of a positive is the anchor's: a positive is one of the M nearest
references, or another utterance of the same of K clusters, made by k-means alone or merged from smaller ones.
"""

from __future__ import annotations

import argparse

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayssl.clustering.kmeans import cluster, cluster_parts
from rayssl.clustering.partition import Partition
from rayssl.clustering.partitions import LocalPartitions
from rayssl.clustering.whitening import Whitening

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def unit(rows: Floats) -> Floats:
    """``rows [n, D]`` at unit length."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def whitened(rows: Floats) -> Floats:
    """``rows [n, D]`` as the memory compares them with ``method.whiten``."""
    fitted = Whitening.fit(rows)
    return unit((rows - fitted.mean) @ fitted.map)


def between(rows: Floats, groups: Ints) -> float:
    """The share of the variance of ``rows [n, D]`` that lies between the means of ``groups [n]``."""
    centred = rows - rows.mean(axis=0)
    means = [centred[groups == group] for group in np.unique(groups)]
    return float(sum(len(each) * (each.mean(axis=0) ** 2).sum() for each in means) / (centred**2).sum())


def of_components(rows: Floats, groups: Ints, count: int) -> list[float]:
    """`between` of each of the first ``count`` principal components of ``rows [n, D]``."""
    centred = rows - rows.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2]
    return [between(centred @ axes[k][:, None], groups) for k in range(count)]


def of_nearest(rows: Floats, speakers: Ints, count: int) -> float:
    """How many of the ``count`` nearest rows of each row are of its speaker."""
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -2)
    nearest = np.argpartition(-cosines, count, axis=1)[:, :count]
    return float((speakers[nearest] == speakers[:, None]).mean())


def of_clusters(rows: Floats, speakers: Ints, clusters: int, merged_from: int = 0) -> tuple[float, float]:
    """How many rows have company in their cluster, and how much of that company is of their speaker, in the mean."""
    found = cluster(rows, clusters, merged_from=merged_from, mode="fast", seed=0).assignment
    others = np.bincount(found)[found] - 1
    same = np.array([(speakers[found == found[i]] == speakers[i]).sum() - 1 for i in range(len(found))])
    some = others > 0
    return float(some.mean()), float((same[some] / others[some]).mean())


def suggested(rows: Floats, merged_from: int) -> int:
    """How many clusters the tree of those merged suggests."""
    parts = LocalPartitions([Partition(rows)])
    return cluster_parts(parts, merged_from // 4, merged_from=merged_from, mode="fast", seed=0).suggested


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embeddings")
    parser.add_argument("--neighbours", type=int, nargs="+", default=[1, 3, 5, 7])
    parser.add_argument("--clusters", type=int, nargs="+", default=[320, 500, 800])
    parser.add_argument("--merged-from", type=int, default=1260)
    arguments = parser.parse_args()
    table = pq.read_table(arguments.embeddings)
    plain = unit(np.stack(table["embedding"].to_numpy(zero_copy_only=False)))
    speakers = np.unique(table["speaker_name"].to_pylist(), return_inverse=True)[1]
    named = [name.split("#")[-1] for name in table["recording_name"].to_pylist()]
    conditions = np.unique(named, return_inverse=True)[1]
    print("| | plain | whitened |\n|---|---|---|")
    both = (plain, whitened(plain))
    for title, groups in (("speakers", speakers), ("conditions", conditions)):
        cells = [f"{100 * between(rows, groups):.1f}" for rows in both]
        print(f"| variance between {title} % | {' | '.join(cells)} |")
    parts = ", ".join(f"{100 * share:.0f}" for share in of_components(plain, conditions, 4))
    print(f"| between conditions, of components 1, 2, 3, 4 % | {parts} | - |")
    for count in arguments.neighbours:
        cells = [f"{100 * of_nearest(rows, speakers, count):.0f}" for rows in both]
        print(f"| right speaker among the {count} nearest % | {' | '.join(cells)} |")
    numbers = " | ".join(str(suggested(rows, arguments.merged_from)) for rows in both)
    print(f"| clusters suggested, of {arguments.merged_from} merged | {numbers} |", flush=True)
    for title, merged_from in (("clusters", 0), ("merged clusters", arguments.merged_from)):
        for clusters in arguments.clusters:
            found = [of_clusters(rows, speakers, clusters, merged_from) for rows in both]
            cells = " | ".join(f"{100 * right:.0f} ({100 * some:.0f})" for some, right in found)
            print(f"| right speaker in {clusters} {title} (coverage) % | {cells} |", flush=True)


if __name__ == "__main__":
    main()
