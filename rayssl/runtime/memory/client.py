"""The loop's client of a job's memory of utterances: in one actor, or in several."""

from __future__ import annotations

import os

import ray

from rayssl import collectives
from rayssl.experiment.config import MemoryConfig
from rayssl.memory.utterances.settings import MemorySettings
from rayssl.runtime.memory import relay
from rayssl.runtime.memory.actor import ActorMemory
from rayssl.runtime.memory.rounds import Watch
from rayssl.runtime.memory.sharded import ShardedMemory
from rayssl.training.context import MemoryClient


def connect(settings: MemorySettings, config: MemoryConfig, label: str) -> MemoryClient:
    """Starts the actor or the actors of a job from rank 0, and returns each rank's client. Call it on all ranks.

    ``label`` is part of the actors' names.
    """
    client = ActorMemory(settings, config, label) if config.shards == 1 else ShardedMemory(settings, config, label)
    return _through_nodes(client, label)


def _through_nodes(client: ActorMemory | ShardedMemory, label: str) -> MemoryClient:
    """``client``; its exchanges go through a relay where this rank's node has one."""
    own = ray.get_runtime_context().get_node_id()
    groups = relay.by_node(collectives.gather_objects(own))
    prefix = collectives.broadcast_object(f"memory:{label}:{os.urandom(4).hex()}")
    ranks, name = groups.get(own), f"{prefix}:{own}"
    started = relay.start(name, own, ranks, client.send) if ranks and collectives.rank() == ranks[0] else None
    collectives.barrier()
    if ranks is None:
        return client
    joined = ray.get_actor(name) if started is None else started
    return relay.RelayedMemory(client, joined, Watch([joined, *client.actors], f"{label}: memory"))
