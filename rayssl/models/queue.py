"""A first-in, first-out queue of rows of past batches: the negatives of MoCo, the past embeddings of SwAV."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RowQueue(nn.Module):
    """``length`` rows of ``dim`` values in saved buffers. If all ranks push the same rows, the queue is equal on them.

    ``rows`` is ``[length, dim]`` of ``dtype``, with zeros where it is not filled yet. ``pushed``, int64 ``[]``, counts
    all rows that were ever pushed. Both stay on the device, and no function here waits for the device.
    """

    equal_on_ranks = ("rows", "pushed")
    rows: Tensor
    pushed: Tensor

    def __init__(self, length: int, dim: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(length, dim, dtype=dtype))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    @property
    def filled(self) -> Tensor:
        """Which rows are filled, bool ``[length]``."""
        return torch.arange(len(self.rows), device=self.rows.device) < self.pushed

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """Replaces the oldest rows by ``rows [N, dim]``, in order. If N > ``length``, only the last rows are kept.

        It changes the queue in place, so do not call it between a forward pass that uses the queue and its backward
        pass.
        """
        skipped = max(0, len(rows) - len(self.rows))
        offsets = torch.arange(skipped, len(rows), device=self.rows.device)
        self.rows.index_copy_(0, (self.pushed + offsets) % len(self.rows), rows[skipped:].to(self.rows.dtype))
        self.pushed += len(rows)
