"""What a run trains and on what: parameters, ranks and machines, for its page and for whoever compares two runs."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from rayssl import storage

_CPUS = Path("/proc/cpuinfo")


def describe(method: nn.Module, device: torch.device, ranks: int) -> dict[str, Any]:
    """The numbers of parameters of ``method``, the ``device`` of this rank, and the processor and memory (GB) of its
    machine. ``device_memory_gb`` only for a GPU.
    """
    parameters = list(method.parameters())
    found: dict[str, Any] = {
        "parameters": sum(each.numel() for each in parameters),
        "trainable": sum(each.numel() for each in parameters if each.requires_grad),
        "ranks": ranks,
        "device": "CPU",
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
    }
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
        found["device_memory_gb"] = round(torch.cuda.get_device_properties(device).total_memory / 1e9, 1)
    return found


def note(run: str, found: dict[str, Any]) -> None:
    """Writes what `describe` gave as ``hardware`` into the run's ``origin.json``; nothing if there is no such file."""
    path = storage.join(run, "origin.json")
    if storage.exists(path):
        origin = json.loads(storage.read_text(path))
        storage.write_text(path, json.dumps({**origin, "hardware": found}, indent=1))


def _processor() -> str:
    lines = _CPUS.read_text(errors="replace").splitlines() if _CPUS.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
