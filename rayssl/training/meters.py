"""The sums of the terms and counts of steps, between two log lines or over an epoch; and what is printed of them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rayssl import collectives
from rayssl.errors import ConfigError
from rayssl.methods.base import Step

# What the epoch lines have of a memory. Some come late (with the first clustering), or only with labels.
UTTERANCE_FIGURES = (
    "cluster_largest", "cluster_median", "cluster_smallest", "clusters_suggested", "clusters_used",
    "coverage", "empty_clusters",
    "nmi_recording", "nmi_speaker", "objective", "pool_size", "queue_fill", "recording_accuracy",
    "reference_fill", "rejected", "repaired", "seconds", "speaker_accuracy", "stability", "staleness_steps",
    "useful_rate", "version",
)  # fmt: skip
CLASS_FIGURES = ("dropped", "prototypes_filled", "queue_fill", "rejected", "staleness_steps")


@dataclass
class MetricAccumulator:
    """Sums over steps: of one log line, or of an epoch. Tensors stay on the device until `sums` fetches them."""

    terms: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0
    restored: int = 0  # how many of these steps an earlier process did, and timed
    waited: float = 0.0
    asked: float | None = None  # seconds that steps waited for the memory; None without one
    since: float = field(default_factory=time.perf_counter)
    durations: list[float] = field(default_factory=list)  # seconds of each step, from the end of the one before
    _mark: float = field(default_factory=time.perf_counter)

    def add(self, step: Step, waited: float | None = None) -> None:
        """Adds a step, which ``waited`` so many seconds for the memory; None without one."""
        if waited is not None:
            self.asked = (self.asked or 0.0) + waited
        for name, value in {"loss": step.loss.detach(), **step.terms}.items():
            self.terms[name] = self.terms[name] + value if name in self.terms else value.clone()
        for name, value in (step.counts or {}).items():
            self.counts[name] = self.counts[name] + value if name in self.counts else value.clone()
        self.steps += 1

    def tick(self) -> None:
        """Takes the time of a step that has ended. It includes the wait for its data and a checkpoint before it."""
        now = time.perf_counter()
        self.durations.append(now - self._mark)
        self._mark = now

    def leave_out(self, seconds: float) -> None:
        """Leaves out ``seconds`` that were spent on something else than training."""
        self.since += seconds
        self._mark += seconds

    def check(self, best: str | None, others: Iterable[str]) -> None:
        """Raises `ConfigError` if ``best`` is no figure of these steps, and none of ``others``."""
        line = no_figure(best, {*self.terms, *self.speed(1), *others})
        if line is not None:
            raise ConfigError(line)

    def sums(self) -> dict[str, Tensor]:
        """Sums over steps of the means over ranks, on the CPU. Every rank must call this."""
        if not self.terms:
            return {}
        names = sorted(self.terms)
        total = collectives.sum_on_host(torch.stack([self.terms[name].float() for name in names]))
        return dict(zip(names, (total / collectives.world()).unbind(), strict=True))

    def total_counts(self) -> dict[str, Tensor]:
        """Sums of the counts over steps and ranks, on the CPU. Every rank must call this."""
        names = sorted(self.counts)
        return {name: collectives.sum_on_host(self.counts[name]) for name in names}

    def means(self) -> dict[str, float]:
        """Means over steps and ranks. Every rank must call this."""
        return self.of_sums(self.sums())

    def of_sums(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """The means that belong to what `sums` returned."""
        return {name: (value / self.steps).item() for name, value in sums.items()}

    def speed(self, batch: int) -> dict[str, float]:
        """Utterances per second, and the shares of the time that were spent waiting for data and for the memory."""
        elapsed = time.perf_counter() - self.since
        of_memory = {} if self.asked is None else {"memory_wait": self.asked / elapsed}
        return {
            "utterances_per_s": (self.steps - self.restored) * batch / elapsed,
            "data_wait": self.waited / elapsed,
            **of_memory,
        }


def no_figure(best: str | None, names: Iterable[str]) -> str | None:
    """A line if ``training.checkpoints.best`` is none of the figures ``names``; else None."""
    known = sorted(names)
    if best is None or best in known:
        return None
    return f"training.checkpoints.best: this run has no figure '{best}'; choose one of {', '.join(known)}, or null"


def device_memory(device: torch.device) -> dict[str, float]:
    """Bytes of a GPU; empty for a CPU.

    Allocated in tensors now, the peak of that since the last call, reserved by torch, and in total.
    """
    if device.type != "cuda":
        return {}
    figures = {
        "gpu_allocated_bytes": float(torch.cuda.memory_allocated(device)),
        "gpu_peak_bytes": float(torch.cuda.max_memory_allocated(device)),
        "gpu_reserved_bytes": float(torch.cuda.memory_reserved(device)),
        "gpu_total_bytes": float(torch.cuda.get_device_properties(device).total_memory),
    }
    torch.cuda.reset_peak_memory_stats(device)
    return figures
