"""The loop's client of a job's memory of utterances: in one actor, or in several."""

from __future__ import annotations

from rayssl.experiment.config import MemoryConfig
from rayssl.memory.utterances.settings import MemorySettings
from rayssl.runtime.memory.actor import ActorMemory
from rayssl.runtime.memory.sharded import ShardedMemory
from rayssl.training.context import MemoryClient


def connect(settings: MemorySettings, config: MemoryConfig, label: str) -> MemoryClient:
    """Starts the actor or the actors of a job from rank 0, and returns each rank's client. Call it on all ranks.

    ``label`` is part of the actors' names.
    """
    kind = ActorMemory if config.shards == 1 else ShardedMemory
    return kind(settings, config, label)
