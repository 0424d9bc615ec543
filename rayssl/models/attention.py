"""A Transformer encoder (Vaswani et al., NeurIPS 2017; pre-norm) over the epochs of a sequence, and dropout by keys.

With the same weights a block computes the same function as torch's ``TransformerEncoderLayer`` with ``norm_first`` and
GELU. It is short, and it has one path for training, evaluation and export.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from rayssl.random.draws_torch import uniform_torch

# Dropout uses the streams of draws 500..599.
_DROPPED = 500


class AttentionBlock(nn.Module):
    """One block of a Transformer encoder. ::

    x = x + attention(norm(x))        over all N positions, ``heads`` heads of dim / heads
    x = x + W_2 GELU(W_1 norm(x))     ``hidden`` wide
    """

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_hidden = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.in_project, self.out_project = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.widen, self.narrow = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        nn.init.xavier_uniform_(self.in_project.weight)
        nn.init.zeros_(self.in_project.bias)
        nn.init.zeros_(self.out_project.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``x [B, N, dim]`` to the same shape."""
        parts = self.in_project(self.norm_attention(x)).unflatten(2, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        x = x + self.out_project(attended.transpose(1, 2).flatten(2))
        found: Tensor = x + self.narrow(F.gelu(self.widen(self.norm_hidden(x))))
        return found


def keyed_dropout(x: Tensor, keys: Tensor | None, p: float, stream: int = 0) -> Tensor:
    """``x [B, N, D]`` with each value set to 0 with probability ``p``, else divided by ``1 - p``.

    The draws of a row depend on its key in ``keys [B]`` int64 and on ``stream`` (0..99) alone: they are the same on any
    number of ranks and after a resume. Without keys ``x`` is returned.
    """
    if keys is None or p == 0:
        return x
    kept = uniform_torch(keys, _DROPPED + stream, x.shape[1] * x.shape[2]).view(x.shape) >= p
    return x * kept / (1 - p)
