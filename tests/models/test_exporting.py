"""`exporting`: a graph for a file is told from one of `torch.compile`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rayssl.models.exporting import exporting


class Which(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if exporting() else x - 1


def test_of_each_way_to_run_a_module() -> None:
    """TorchDynamo folds ``torch.compiler.is_exporting()`` to True: encoders were compiled without their layout."""
    x = torch.zeros(2)
    exported = torch.export.export(Which(), (x,), strict=False).module()
    compiled = torch.compile(Which(), backend="eager", fullgraph=True)
    assert [float(each(x)[0]) for each in (Which(), compiled, exported)] == [-1, -1, 1]
    torch._dynamo.reset()
