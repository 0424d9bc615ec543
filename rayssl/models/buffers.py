"""Which buffers of a network are not the same on all ranks, unless somebody makes them so."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


def differing(module: nn.Module, *, statistics: bool) -> list[tuple[nn.Module, str]]:
    """The buffers that a rank changes by its own rows alone: their owners, parts of ``module``, and their names.

    These are the running statistics of batch normalisation, unless they are those of all ranks, or ``statistics`` is
    False, because no forward pass reads them; and all other buffers in the ``state_dict`` that are not in the owner's
    ``equal_on_ranks``, a tuple of names. A buffer that is not saved follows from the settings.
    """
    found = []
    for part in module.modules():
        if isinstance(part, _NormBase):
            common = isinstance(part, nn.SyncBatchNorm) or getattr(part, "sync", False)
            # every rank counts the same number of batches
            names = ["running_mean", "running_var"] if statistics and not common and part.track_running_stats else []
        else:
            same = {*getattr(part, "equal_on_ranks", ()), *part._non_persistent_buffers_set}
            names = [name for name, _ in part.named_buffers(recurse=False) if name not in same]
        found += [(part, name) for name in names]
    return found
