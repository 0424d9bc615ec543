"""The forward and the backward pass of a step: the whole batch at once, or in parts that need less memory.

In parts (Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP 2021): one
pass without a graph computes the outputs of all parts. The method's loss sees them together, as those of a whole batch,
and gives the gradient of each output. A second pass computes each part again, with a graph, and carries these gradients
back to the weights. So the loss and its gradient are those of the whole batch, for every method: the contrasts are
between all rows, and queues, centres and memories change once in a step.

Only batch normalisation sees the difference: in training its statistics are those of a part. Its running statistics
move once for each part. A step takes one more forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from rayssl import collectives
from rayssl.errors import ConfigError
from rayssl.methods.base import Method, Outputs, View, Views
from rayssl.models.buffers import differing
from rayssl.training.resuming import random_state, set_random_state
from rayssl.training.verifying import unchanged

Precision = Callable[[], AbstractContextManager[object]]


class WholeBatch:
    """All rows at once. ``wrapped`` averages the gradients over ranks in its backward pass."""

    def __init__(self, wrapped: nn.Module, precision: Precision) -> None:
        self._wrapped, self._precision = wrapped, precision

    def forward(self, views: Views) -> Outputs:
        """The method's outputs."""
        with self._precision():
            out: Outputs = self._wrapped(views)
        return out

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of ``loss``, averaged over ranks, to that of the weights."""
        loss.backward()


class InParts:
    """``parts`` parts of the rows of this rank, one after the other. It averages the gradients over ranks itself."""

    def __init__(self, method: Method, parts: int, device: torch.device, precision: Precision) -> None:
        self._method, self._parts, self._device, self._precision = method, parts, device, precision
        self._differing = differing(method, statistics=method.reads_statistics)
        self._views: list[Views] = []
        self._out: Outputs = {}
        self._random: dict[str, Tensor] = {}

    def forward(self, views: Views) -> Outputs:
        """The method's outputs for all rows, whose gradients `backward` takes.

        Raises `ConfigError` if a rank has fewer rows than parts, or if outputs are not rows of a view.
        """
        fewest = min(len(view.wave) for view in views.values())
        if fewest < self._parts:
            raise ConfigError(
                f"training.accumulate={self._parts}: a rank has only {fewest} rows in a step; lower it to at most "
                f"{fewest}, or raise training.batch"
            )
        self._views, self._random = _split(views, self._parts), random_state(self._device)
        collectives.share(self._differing)
        outs = []
        with unchanged(self._method, self._device), torch.no_grad(), self._precision():
            for part in self._views:
                outs.append(self._method(part))
                self._check(outs[-1], part)
        joined = {name: torch.cat([out[name] for out in outs]) for name in outs[0]}
        self._out = {name: rows.requires_grad_(rows.is_floating_point()) for name, rows in joined.items()}
        return dict(self._out)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of ``loss``, averaged over ranks, to that of the weights."""
        loss.backward()
        split = {name: rows.grad.tensor_split(self._parts) for name, rows in self._out.items() if rows.grad is not None}
        set_random_state(self._random, self._device)  # a part drops out the same units as before
        for number, part in enumerate(self._views):
            with self._precision():
                out = self._method(part)
            names = [name for name in split if out[name].requires_grad]
            torch.autograd.backward([out[name] for name in names], [split[name][number] for name in names])
        self._views, self._out = [], {}
        collectives.average_gradients(self._method)

    def _check(self, out: Outputs, part: Views) -> None:
        rows = {len(view.wave) for view in part.values()}
        for name, value in out.items():
            if len(value) not in rows:
                raise ConfigError(
                    f"training.accumulate={self._parts}: {type(self._method).__name__} gives '{name}' with "
                    f"{len(value)} rows for views of {sorted(rows)}, so its batch cannot be divided; set it to 1"
                )


def _split(views: Views, parts: int) -> list[Views]:
    """The rows of all views in ``parts`` parts of about the same size, in order."""
    waves = {name: view.wave.tensor_split(parts) for name, view in views.items()}
    keys = {name: None if view.keys is None else view.keys.tensor_split(parts) for name, view in views.items()}
    return [
        {name: View(waves[name][n], None if (own := keys[name]) is None else own[n]) for name in views}
        for n in range(parts)
    ]
