"""With ranks on several nodes, a data task runs on the node of the ranks that it serves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small_experiment import write_corpus

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # a cluster of its own

ROOT = Path(__file__).parents[2]
SCRIPT = """
import os, sys, threading
from pathlib import Path
os.environ["RAY_AUTH_MODE"] = "disabled"
from ray.cluster_utils import Cluster
small = {"num_cpus": 2, "object_store_memory": 200 << 20}
nodes = Cluster(initialize_head=True, head_node_args=small | {"num_cpus": 1, "include_dashboard": False})
for _ in range(2):
    nodes.add_node(**small)
os.environ["RAY_ADDRESS"] = nodes.address
from rayssl.runtime import cluster, ingest
cluster.connect(2)
import pyarrow as pa
import ray
from rayssl.batches import plan
from rayssl.data import shards
from rayssl.experiment.job import job_of
from tests.runs import experiment

lanes = int(sys.argv[2])
ranked = [node["NodeID"] for node in ray.nodes() if node["Resources"].get("CPU") == 2]
honest = ingest._Reader.__call__
class Reader(ingest._Reader):
    def __call__(self, items):
        for table in honest(self, items):
            yield table.append_column("node", pa.array([ray.get_runtime_context().get_node_id()]))
Reader.__module__ = "__main__"
ingest._Reader = Reader
folder = Path(sys.argv[1])
changes = [f"training={{batch: {512 if lanes == 2 else 16}, epochs: 2}}", "ray.workers=2"]
job = job_of(experiment(folder / "run", folder, *changes, method={"name": "simclr"}), shards.read_manifest(str(folder)))
found = ingest.dataset(
    job, "train", start=plan.Cursor(), epoch_count=2, readers=3, placement=ingest.Placement(ranked, lanes)
)
found.context.execution_options.preserve_order = True
iterators, seen = found.streaming_split(2, equal=True), [[], []]
def take(rank):
    for table in iterators[rank].iter_batches(batch_size=None, batch_format="pyarrow"):
        seen[rank].append(ranked.index(table.column("node")[0].as_py()))
threads = [threading.Thread(target=take, args=(rank,)) for rank in range(2)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
print(*["".join(map(str, part)) for part in seen], flush=True)
ray.shutdown(), nodes.shutdown()
os._exit(0)  # what Ray still does at exit has another status
"""


@pytest.mark.parametrize("lanes", [1, 2])
def test_tasks_run_beside_their_ranks(tmp_path: Path, lanes: int) -> None:
    write_corpus(str(tmp_path), 1100 if lanes == 2 else 96)
    hidden = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
    environment = {key: value for key, value in os.environ.items() if key not in hidden} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(lanes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()[-1].split()
    if lanes == 2:
        assert set(first) == {"0"} and set(second) == {"1"} and len(first) == 4
    else:  # each task serves both ranks: the nodes take turns
        assert first == second and set(first) == {"0", "1"}
