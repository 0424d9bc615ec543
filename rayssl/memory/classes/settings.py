"""What a memory of classes is made from: its sizes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ClassSettings:
    """Queues of ``length`` features of ``dim`` dimensions for each of ``classes`` C, and predictions counted in windows
    of ``window`` steps.

    ``anchors`` (A): how many of the newest rows of each class a recall hands out, at most ``length``; 0 for none. An
    answer then has 4 classes A dim bytes more, for each rank and step: 1.6 MB for 4 classes, A = 256 and 384
    dimensions. If a step gives more than A rows of a class, its anchors are only the last of them, those of the last
    ranks. A checkpoint does not depend on A. Raises ValueError naming what is out of its range.
    """

    classes: int
    dim: int
    length: int = 256
    window: int = 100
    anchors: int = 0

    def __post_init__(self) -> None:
        for name in ("classes", "dim", "length", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.anchors <= self.length:
            raise ValueError(f"anchors must lie in 0..{self.length}, the length of a queue, got {self.anchors}")
