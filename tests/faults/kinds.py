"""The kinds of faults: where each runs, what runs there, in which phases, and what goes wrong."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from tests.faults import disks, jobs, losses, stores, victims
from tests.faults.elastic import ElasticSpeech, ElasticTraining, QuickNodes, shrink_and_grow
from tests.faults.nodes import CPUS_PER_WORKER, Nodes, NodesWithRedis
from tests.faults.places import Place, SharedHead
from tests.faults.storm import storm
from tests.faults.work import Embedding, Preparing, Sweeping, Training, Work

TRAINING_PHASES = ("training", "filling", "clustering", "saving")
_HOSTS = ("ip", "unshare", "mount")
VERBS = ("prepare", "embed", "sweep")
# a pass that fills the memory takes seconds, and a clustering takes half a second
_PAUSES = (
    "method.references=fill",
    "method.clusters=700",
    "method.iterations=2000",
    "encoder.backbone.embedding_dim=64",
)


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    ``cause`` does it at the moment of the phase; it may last, and returns only when the fault is over. ``work``
    replaces the training of the kind. ``anytime``: the cause finds its own moment. ``root``: it mounts or makes
    network namespaces.
    """

    cause: victims.Cause
    place: type[Place] = SharedHead
    phases: tuple[str, ...] = TRAINING_PHASES
    work: Work | None = None
    of_verbs: victims.Cause | None = None
    anytime: bool = False
    root: bool = False
    packages: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()

    def work_in(self, during: str) -> Work:
        """What runs for a fault in this phase."""
        if during in VERBS:
            return {"prepare": Preparing("prepare"), "embed": Embedding("embed"), "sweep": Sweeping("sweep")}[during]
        if self.work is not None:
            return self.work
        name = "-".join(["training", *(each.partition("=")[0].rpartition(".")[2] for each in self.overrides)])
        if during in ("training", "saving"):
            return Training(name, overrides=self.overrides)
        overrides = (*self.overrides, *_PAUSES)
        return Training(f"{name}-pauses", 3, every_steps=0, overrides=overrides, rows=24 * 64, batch=64)

    def cause_in(self, during: str) -> victims.Cause:
        """What goes wrong in this phase."""
        return self.of_verbs if during in VERBS and self.of_verbs is not None else self.cause


def _processes() -> dict[str, Kind]:
    titles = victims.TITLES
    any_process = victims.kill(victims.OF_VERBS)
    everywhere = (*TRAINING_PHASES, *VERBS)
    return {
        "worker": Kind(victims.kill(titles["worker"]), phases=everywhere, of_verbs=any_process),
        "memory-actor": Kind(victims.kill(titles["memory-actor"])),
        "shard": Kind(victims.kill(titles["shard"]), overrides=("memory.shards=3",)),
        "controller": Kind(victims.kill(titles["controller"])),
        "driver": Kind(victims.kill_driver, Place, everywhere),
        "data-task": Kind(
            victims.kill_early(titles["data-task"]), phases=("training", *VERBS), of_verbs=any_process, anytime=True
        ),
        "raylet": Kind(victims.kill(titles["raylet"]), Place, everywhere),
        "stopped": Kind(victims.stop(titles["worker"])),
    }


def _nodes() -> dict[str, Kind]:
    one_a_node = (f"ray.cpus_per_worker={CPUS_PER_WORKER}",)
    # else the statistics of batch normalisation would be those of half a batch with two workers
    elastic = (*one_a_node, "ray.workers=[1, 2]", "training.sync_batchnorm=true")
    grown = ElasticTraining("elastic", epochs=16, overrides=elastic, share=0.4)
    speech = ElasticSpeech("elastic-speech", 22, 10, overrides=elastic, rows=640, batch=64, share=0.3)
    away = partial(Kind, root=True, packages=_HOSTS, overrides=one_a_node)
    # no checkpoint for 120 steps; most of the training is left when a node has drained for 30 s
    ends = partial(Training, epochs=3, every_steps=0, rows=120 * 16)
    drained = ends("training-ends-cpus", overrides=one_a_node, share=0.3)
    return {
        "node": away(losses.lose_node, Nodes, (*TRAINING_PHASES, *VERBS)),
        "sigterm-node": away(losses.term_node, Nodes, work=drained),
        "elastic": Kind(shrink_and_grow, QuickNodes, ("training",), grown, root=True, packages=_HOSTS),
        "elastic-speech": Kind(shrink_and_grow, QuickNodes, ("training",), speech, root=True, packages=_HOSTS),
        "gcs": away(losses.lose_head, NodesWithRedis, packages=("ip", "unshare", "nsenter", "mount", "redis-server")),
        "job-stop": Kind(jobs.stop_job, jobs.Jobs, ("training",), ends("training-ends")),
    }


def _stores() -> dict[str, Kind]:
    packages, phases = ("radosgw", "ceph-mon", "ceph-osd"), (*TRAINING_PHASES, *VERBS)
    of = {name: stores.place_for(name) for name in sorted(stores.MAKERS)}
    return {name: Kind(stores.harm, place, phases, packages=packages) for name, place in of.items()}


def _disks() -> dict[str, Kind]:
    mounts = partial(Kind, root=True, packages=("mount", "umount", "unshare"))
    everywhere = (*TRAINING_PHASES, *VERBS)
    return {
        "disk-full": mounts(disks.fill_disk, disks.SmallDisk, everywhere),
        "read-only": mounts(disks.read_only, disks.SmallDisk, everywhere),
        "shm-full": mounts(disks.fill_shm, disks.OwnShm, ("training",), anytime=True),
        "flipped-bit": Kind(disks.flip_bit, phases=("training",)),
    }


def every(kills: int = 30) -> dict[str, Kind]:
    """All kinds, by their names. ``kills`` of a storm: its training is so long that there is room for all of them."""
    storms = {"storm": Kind(storm, Place, ("training",), Training(f"storm-{kills}", epochs=kills + 3), anytime=True)}
    return {**_processes(), **_nodes(), **_stores(), **_disks(), **storms}
