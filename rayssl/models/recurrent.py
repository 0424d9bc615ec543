"""A bidirectional LSTM (Hochreiter and Schmidhuber, 1997) that can also be exported with a free number of steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rayssl.models.exporting import exporting


class BiLSTM(nn.Module):
    """torch's LSTM, ``layers`` layers in both directions: ``[B, N, inputs]`` to ``[B, N, 2 * hidden]``.

    torch's own cannot be in a graph of `torch.export` whose N is free. There, ``longest`` steps are written out
    instead, and those from N on leave the state as it is. The function is the same.
    """

    def __init__(self, inputs: int, hidden: int, *, layers: int, longest: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, hidden, num_layers=layers, bidirectional=True, batch_first=True)
        self.longest = longest

    def forward(self, x: Tensor) -> Tensor:
        """``x [B, N, inputs]`` to ``[B, N, 2 * hidden]``; in an exported graph N is at most ``longest``."""
        if exporting():
            return self.unrolled(x)
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            found: Tensor = self.lstm(x)[0]
            return found
        with torch.autocast("cpu", enabled=False):  # processors without AVX-512 have no LSTM in bf16
            return self.lstm(x.float())[0].to(x.dtype)  # type: ignore[no-any-return]

    def unrolled(self, x: Tensor) -> Tensor:
        """What `forward` gives, step by step::

        i, f, g, o = W_ih x_t + b_ih + W_hh h + b_hh
        c = sigmoid(f) c + sigmoid(i) tanh(g),    h = sigmoid(o) tanh(c)
        """
        count = x.shape[1]
        steps = torch.arange(self.longest, device=x.device)
        inside = steps < count
        along = x.index_select(1, steps.clamp_max(count - 1))
        for layer in range(self.lstm.num_layers):
            ways = [self._way(along, inside, f"l{layer}{suffix}") for suffix in ("", "_reverse")]
            along = torch.cat(ways, dim=2)
        return along[:, :count]

    def _way(self, x: Tensor, inside: Tensor, name: str) -> Tensor:
        """One layer in one direction: ``x [B, longest, ...]`` to ``[B, longest, hidden]``."""
        of_input, of_state, of_bias, of_state_bias = (
            getattr(self.lstm, f"{kind}_{name}") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        gates = x @ of_input.T + (of_bias + of_state_bias)
        state = cell = torch.zeros_like(gates[:, 0, : self.lstm.hidden_size])
        found: list[Tensor] = []
        order = range(self.longest)
        for step in reversed(order) if name.endswith("reverse") else order:
            i, f, g, o = (gates[:, step] + state @ of_state.T).chunk(4, dim=1)
            cell = torch.where(inside[step], f.sigmoid() * cell + i.sigmoid() * g.tanh(), cell)
            state = torch.where(inside[step], o.sigmoid() * cell.tanh(), state)
            found.append(state)
        return torch.stack(found[::-1] if name.endswith("reverse") else found, dim=1)
