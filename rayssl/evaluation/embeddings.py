"""Whole utterances to embeddings with a frozen encoder, the same whatever they are batched with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


def embed_utterances(
    encoder: nn.Module,
    waves: Sequence[NDArray[np.int16]],
    device: torch.device | str,
    batch: int = 32,
    *,
    normalise: bool = True,
) -> NDArray[np.float32]:
    """Embeddings ``[n, D]`` of ``waves``, n arrays ``[T_i]`` int16, each seen whole; unit rows with ``normalise``.

    ``encoder(wave [B, T] in [-1, 1], None) -> [B, D]`` runs in eval mode, in full float32 and without gradient, and
    gets back the modes it had. Only utterances of equal length share a batch: padding would enter means, statistics
    pooling and squeeze-excitation, and an embedding would depend on its neighbours. ``batch`` bounds the utterances
    of one forward pass. Raises `ValueError` for an empty utterance, or an embedding that is not finite.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, wave in enumerate(waves):
        if wave.ndim != 1 or wave.dtype != np.int16 or not len(wave):
            raise ValueError(f"utterance {index}: expected int16 [T] with T > 0, got {wave.dtype} {list(wave.shape)}")
        by_length[len(wave)].append(index)
    rows: dict[int, Tensor] = {}
    with frozen(encoder):
        # longest first, so that memory which does not suffice shows at once
        for length in sorted(by_length, reverse=True):
            members = by_length[length]
            for start in range(0, len(members), batch):
                part = members[start : start + batch]
                stacked = torch.from_numpy(np.stack([waves[index] for index in part])).to(device)
                found = encoder(stacked.to(torch.float32) / 32768.0, None).to(torch.float32)
                rows.update(zip(part, found.cpu(), strict=True))
    if not rows:
        return np.zeros((0, int(getattr(encoder, "embedding_dim", 0))), np.float32)
    result = torch.stack([rows[index] for index in range(len(waves))])
    bad = (~torch.isfinite(result).all(dim=1)).nonzero()[:, 0].tolist()
    if bad:
        raise ValueError(f"{len(bad)} of {len(waves)} embeddings are NaN or infinite, first of utterance {bad[0]}")
    return (nn.functional.normalize(result, dim=1) if normalise else result).numpy()


@contextmanager
def frozen(encoder: nn.Module) -> Iterator[None]:
    """Eval mode, full float32 and no gradient within: how every embedding is computed.

    Afterwards each module has its own mode again (parts may have been frozen by the caller).
    """
    modes = {module: module.training for module in encoder.modules()}
    encoder.eval()
    try:
        with _full_float32(), torch.inference_mode():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _full_float32() -> Iterator[None]:
    """No TF32 and no autocast within: at three digits the result would depend on the kernel a batch size selects."""
    matmul, convolution = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolution
