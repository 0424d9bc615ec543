"""Rows of past batches, first in, first out: MoCo's negatives, SwAV's past embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RowQueue(nn.Module):
    """``length`` rows of ``dim`` in saved buffers; identical on all ranks where all of them push the same rows.

    ``rows`` float32 ``[length, dim]``, zeros until they are filled; ``pushed`` int64 ``[]``: rows ever put in. Both
    stay on their device: nothing here waits for it.
    """

    rows: Tensor
    pushed: Tensor

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(length, dim))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    @property
    def filled(self) -> Tensor:
        """``[length]`` bool: which rows have been put in."""
        return torch.arange(len(self.rows), device=self.rows.device) < self.pushed

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """Puts ``rows [N, dim]`` in place of the oldest ones, in their order; of more than ``length`` only the last.

        In place: not between a forward pass that used the queue and its backward pass.
        """
        skipped = max(0, len(rows) - len(self.rows))
        offsets = torch.arange(skipped, len(rows), device=self.rows.device)
        self.rows.index_copy_(0, (self.pushed + offsets) % len(self.rows), rows[skipped:].to(self.rows.dtype))
        self.pushed += len(rows)
