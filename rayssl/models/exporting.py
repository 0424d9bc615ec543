"""Whether a graph is traced for a file, whose sizes stay free."""

from __future__ import annotations

import torch


def exporting() -> bool:
    """Whether `torch.export` traces the caller: then no branch may depend on a size.

    In a graph of ``torch.compile`` this is False. ``torch.compiler.is_exporting`` alone is True there, because
    TorchDynamo says so of itself, though it knows all sizes; a network would be compiled as it is exported.
    """
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()
