"""The process group of the ranks, for Ray Train: its controller starts without torch.

Ray's own ``TorchConfig`` imports torch in the controller, which never uses it: two seconds before each start of the
workers, and 450 MB of RAM for as long as they train. This module and what the controller calls in it import torch in
the workers only.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig

_LEAVE_S = 30.0  # a rank that hangs in a communication cannot leave the group; its process ends all the same


@dataclass
class GroupConfig(BackendConfig):  # type: ignore[misc]
    """What connects the ranks: the ``backend`` of torch, and the ``timeout_s`` seconds of the longest communication."""

    backend: str
    timeout_s: float

    @property
    def backend_cls(self) -> type[ProcessGroup]:
        """Ray Train asks for it in the controller."""
        return ProcessGroup

    @property
    def framework(self) -> Any:
        """For Ray's dashboard."""
        from ray.train.v2._internal.util import TrainingFramework

        return TrainingFramework.TORCH

    def to_dict(self) -> dict[str, Any]:
        """For Ray's dashboard."""
        return asdict(self)


class ProcessGroup(Backend):  # type: ignore[misc]
    """Brings the workers of a group together before the training, and apart after it."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: GroupConfig) -> None:
        """Every worker joins; rank 0's node gives the address."""
        address, port = worker_group.execute_single(0, get_address_and_port)
        world = len(worker_group)
        known = {"address": address, "port": port, "world": world, **asdict(backend_config)}
        ray.get([worker_group.execute_single_async(rank, _join, rank, **known) for rank in range(world)])

    def on_shutdown(self, worker_group: Any, backend_config: GroupConfig) -> None:
        """Every worker leaves; one that does not within half a minute is left behind."""
        try:
            ray.get(worker_group.execute_async(_leave), timeout=_LEAVE_S)
        except GetTimeoutError:
            return


def _join(rank: int, world: int, address: str, port: int, backend: str, timeout_s: float) -> None:
    from ray.train import get_context
    from ray.train.torch import get_device

    from rayssl import collectives

    context = get_context()
    # for what a user's own method brings along: libraries look for these, see torch.distributed.run
    os.environ.update(
        MASTER_ADDR=address,
        MASTER_PORT=str(port),
        RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_RANK=str(context.get_local_rank()),
        LOCAL_WORLD_SIZE=str(context.get_local_world_size()),
        NODE_RANK=str(context.get_node_rank()),
    )
    collectives.join(backend, rank, world, timeout_s, get_device())


def _leave() -> None:
    from rayssl import collectives

    collectives.leave()
