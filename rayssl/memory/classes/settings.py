"""What a memory of classes is made from: its sizes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ClassSettings:
    """Queues of ``length`` features of ``dim`` dimensions for each of ``classes`` C, and predictions counted in windows
    of ``window`` steps. Raises ValueError naming what is below 1.
    """

    classes: int
    dim: int
    length: int = 256
    window: int = 100

    def __post_init__(self) -> None:
        for name in ("classes", "dim", "length", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
