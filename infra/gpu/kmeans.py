#!/usr/bin/env python3
"""k-means on a GPU: seconds and objective, where the seconds go, and every tile that a kernel may have, in turn.

    python infra/gpu/kmeans.py [--rows 1090000] [--dim 512] [--clusters 25000] [--iterations 10] [--device cuda]

The last line is JSON. The package measured is the `rayssl` of PYTHONPATH.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from typing import Any

import torch

from rayssl.bench.kmeans import KMeansCase, points
from rayssl.clustering.kmeans import cluster
from rayssl.clustering.similarity import normalized_mutual_information


def tiles(x: Any, clusters: int, device: str) -> dict[str, float]:
    """TFLOP/s of one pass with each tile; the fastest belongs first in `rayssl.clustering.gpu.kernels.HOPPER`."""
    from rayssl.clustering.gpu import kernels

    there = torch.from_numpy(x).to(device)
    centroids = torch.nn.functional.normalize(there[:clusters].float(), dim=1).half()
    labels = torch.empty(len(there), dtype=torch.int32, device=device)
    wanted = [
        kernels.Tile(rows, columns, dims, warps, stages, flat)
        for rows, columns, warps in ((128, 256, 8), (128, 128, 8), (128, 128, 4), (64, 256, 4), (256, 128, 8))
        for dims, stages in ((64, 3), (64, 4), (32, 4))
        for flat in (True, False)
    ]
    found = {}
    for tile in wanted:
        try:
            kernels.nearest(there[:65536], centroids, labels[:65536], tile)
            torch.cuda.synchronize()
            began = time.perf_counter()
            kernels.nearest(there, centroids, labels, tile)
            torch.cuda.synchronize()
            found[str(tuple(tile))] = 2 * there.numel() * clusters / (time.perf_counter() - began) / 1e12
        except Exception as error:  # a tile that does not fit
            print(tuple(tile), repr(error)[:120])
            continue
        print(tuple(tile), f"{found[str(tuple(tile))]:.0f} TFLOP/s", flush=True)
    return found


def main() -> None:
    """Measures one clustering twice, and then the tiles."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rows", 1_090_000), ("dim", 512), ("clusters", 25_000), ("iterations", 10)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiles", action="store_true")
    arguments = parser.parse_args()
    x, labels = points(KMeansCase(arguments.rows, arguments.dim, arguments.clusters))
    figures: dict[str, Any] = {}
    for turn in ("first", "again"):  # the first compiles
        began = time.perf_counter()
        found = cluster(
            x,
            arguments.clusters,
            mode="fast",
            device=arguments.device,
            iterations=arguments.iterations,
            seed=0,
        )
        figures[f"seconds_{turn}"] = time.perf_counter() - began
        print(json.dumps({"kmeans": figures}), flush=True)
    figures |= {"objective": found.objective, "repaired": found.repaired}
    figures["nmi"] = normalized_mutual_information(found.assignment, labels)
    if arguments.device == "cuda":
        figures["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        with torch.profiler.profile() as profile:
            cluster(x, arguments.clusters, device="cuda", iterations=arguments.iterations, seed=0)
            torch.cuda.synchronize()
        print(profile.key_averages().table(sort_by="self_device_time_total", row_limit=12, max_name_column_width=60))
    new = importlib.util.find_spec("rayssl.clustering.gpu.kernels") is not None
    if new:
        from rayssl.clustering.gpu import products

        figures["given_up"] = sorted(products._given_up)
    if importlib.util.find_spec("rayssl.clustering.ward") is not None:
        few, many = arguments.clusters // 4, arguments.clusters
        began = time.perf_counter()
        cluster(
            x, few, merged_from=many, device=arguments.device, iterations=arguments.iterations, seed=0
        )  # beside seconds_again: what merging adds
        figures["seconds_merged"] = time.perf_counter() - began
    print(json.dumps({"kmeans": figures}), flush=True)
    if arguments.tiles and new:
        figures["tiles"] = tiles(x, arguments.clusters, arguments.device)
    print(json.dumps({"kmeans": figures}))


if __name__ == "__main__":
    main()
