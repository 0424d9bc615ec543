"""What the machine offers to a training."""

from __future__ import annotations

import os
from typing import NamedTuple

from rayssl.doctor.machine import cpu_quota, usable_cores


class Machine(NamedTuple):
    """``cores``: that this process may use. ``gpus``: that torch can use, each with ``gpu_gib`` GiB of memory.

    ``cluster``: whether RAY_ADDRESS names a Ray cluster, which has other machines.
    """

    cores: int
    gpus: int = 0
    gpu_gib: float = 0.0
    cluster: bool = False

    @property
    def bare(self) -> bool:
        """Whether there are only these cores: no GPU, no cluster."""
        return not (self.gpus or self.cluster)

    @property
    def text(self) -> str:
        """The machine in a few words."""
        cores = f"{self.cores} CPU core{'s' * (self.cores > 1)}"
        if not self.gpus:
            return f"{cores}, no GPU"
        return f"{cores}, {self.gpus} GPU{'s' * (self.gpus > 1)} of {self.gpu_gib:.0f} GiB"


def here() -> Machine:
    """This machine."""
    import torch

    cores = max(1, int(min(usable_cores(), cpu_quota() or usable_cores())))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    sizes = [torch.cuda.get_device_properties(index).total_memory for index in range(gpus)]
    return Machine(cores, gpus, min(sizes, default=0) / 2**30, bool(os.environ.get("RAY_ADDRESS")))
