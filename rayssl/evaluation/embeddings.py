"""Embeds utterances, and the epochs of nights, with a frozen encoder.

The embedding of an utterance does not depend on the rest of its batch. That of an epoch of sleep depends on the epochs
around it, and on nothing else.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rayssl import transfer
from rayssl.evaluation.settings import EmbeddingPrecision
from rayssl.evaluation.windows import averaged, night_windows
from rayssl.models.encoder import NightEncoder


def embed_utterances(
    encoder: nn.Module,
    waves: Sequence[NDArray[np.int16]],
    device: torch.device | str,
    batch: int = 32,
    *,
    normalise: bool = True,
    precision: EmbeddingPrecision = "fp32",
) -> NDArray[np.float32]:
    """Embeds each utterance as a whole.

    Only utterances of equal length share a batch. Padding would change means, statistics pooling and
    squeeze-excitation, and an embedding would then depend on its neighbours. `kept_samples` gives utterances of
    similar length the same one.

    A batch is launched before the result of the one before is awaited, so that a GPU does not wait for the host.

    Args:
        encoder: ``encoder(wave [B, T] in [-1, 1], None) -> [B, D]``. It runs in eval mode and without gradient.
            Afterwards its modules have the modes they had before.
        waves: n arrays ``[T_i]`` of int16.
        device: where the encoder is.
        batch: the most utterances of one forward pass.
        normalise: whether to scale the rows to length 1.
        precision: ``fp32``: in full float32. ``bf16``: under autocast, see `EmbeddingPrecision`.

    Returns:
        Embeddings ``[n, D]``, in the order of ``waves``.

    Raises:
        ValueError: an utterance is empty or not int16, or an embedding is not finite.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, wave in enumerate(waves):
        if wave.ndim != 1 or wave.dtype != np.int16 or not len(wave):
            raise ValueError(f"utterance {index}: expected int16 [T] with T > 0, got {wave.dtype} {list(wave.shape)}")
        by_length[len(wave)].append(index)
    if not by_length:
        return np.zeros((0, int(getattr(encoder, "embedding_dim", 0))), np.float32)
    place, rows = torch.device(device), dict[int, NDArray[np.float32]]()
    parts = list(_parts(by_length, batch))

    def launched(part: list[int]) -> Tensor:
        stacked = transfer.send(torch.from_numpy(np.stack([waves[index] for index in part])), place)
        return encoder(stacked.to(torch.float32) / 32768.0, None).to(torch.float32)  # type: ignore[no-any-return]

    with frozen(encoder), _autocast(place, precision):
        for part, found in zip(parts, transfer.fetch_each(map(launched, parts)), strict=True):
            rows.update(zip(part, found, strict=True))
    result = torch.from_numpy(np.stack([rows[index] for index in range(len(waves))]))
    bad = (~torch.isfinite(result).all(dim=1)).nonzero()[:, 0].tolist()
    if bad:
        raise ValueError(f"{len(bad)} of {len(waves)} embeddings are NaN or infinite, first of utterance {bad[0]}")
    return (nn.functional.normalize(result, dim=1) if normalise else result).numpy()


def _parts(by_length: dict[int, list[int]], batch: int) -> Iterator[list[int]]:
    """The utterances of each batch; the longest come first, so that too little memory shows at once."""
    for length in sorted(by_length, reverse=True):
        members = by_length[length]
        yield from (members[start : start + batch] for start in range(0, len(members), batch))


def kept_samples(samples: int, crop_share: float, least: int = 1) -> int:
    """How many of the first samples of an utterance are embedded, if up to ``crop_share`` of them may be cut.

    It is the largest step of a geometric grid that is not above ``samples``; each step is ``1 / (1 - crop_share)`` of
    the one before. So it depends on this utterance alone, and utterances of similar length share a batch. Nothing is
    cut if less than ``least`` would be left, or if ``crop_share`` is 0.
    """
    if not crop_share:
        return samples
    ratio = -math.log1p(-crop_share)
    step = math.ceil(math.exp(math.floor(math.log(samples) / ratio) * ratio))
    return min(step, samples) if step >= least else samples


def embed_epochs(
    encoder: NightEncoder,
    index: NDArray[np.int64],
    pictures: Iterable[NDArray[np.float16]],
    device: torch.device | str,
    *,
    stride: int,
    batch: int,
) -> NDArray[np.float32]:
    """The embeddings ``[n, D]`` of a night's epochs: `encode_epochs`, then `embed_windows`."""
    return embed_windows(encoder, index, encode_epochs(encoder, pictures, device), device, stride=stride, batch=batch)


def encode_epochs(
    encoder: NightEncoder,
    pictures: Iterable[NDArray[np.float16]],
    device: torch.device | str,
    together: int | None = None,
) -> Tensor:
    """What `embed_windows` needs of each of n epochs, in their order; ``pictures`` are taken one after the other.

    Windows overlap. Where an epoch's features do not depend on its neighbours (`NightEncoder.apart`), each epoch is
    encoded here, once, and its picture is not kept: ``own [n, own_dim]``. Else the pictures are: ``[n, F, frames]``.

    ``pictures``: at least one ``[F, frames]``, see `rayssl.data.mel.picture`. ``encoder`` runs as in
    `embed_utterances`. ``together``: epochs of one forward pass, by default a window of the encoder.
    """
    rest, found = iter(pictures), list[Tensor]()
    while some := list(islice(rest, together or encoder.window)):
        # one layout of all pictures, wherever they were made: kernels for another one round otherwise
        part = torch.from_numpy(np.ascontiguousarray(np.stack(some)))
        if encoder.apart:
            with frozen(encoder):
                part = encoder.alone(transfer.send(part, torch.device(device)).float())
        found.append(part)
    return torch.cat(found)


def embed_windows(
    encoder: NightEncoder,
    index: NDArray[np.int64],
    encoded: Tensor,
    device: torch.device | str,
    *,
    stride: int,
    batch: int,
    head: Callable[[Tensor], Tensor] = lambda z: z,
) -> NDArray[np.float32]:
    """What ``head`` makes of the embeddings of a night's epochs: float32 ``[n, D]``, by default the embeddings.

    Windows of ``encoder.window`` epochs go over the night. An epoch has the mean over the windows in which its place is
    one that the encoder scores, see `rayssl.evaluation.windows`.

    Args:
        encoder: it runs as in `embed_utterances`.
        index: int64 ``[n]``, the positions of the epochs in the night, rising. A window does not go over a gap.
        encoded: what `encode_epochs` gives of them.
        device: where the encoder is.
        stride: how many epochs a window begins after the one before.
        batch: the most windows of one forward pass.
        head: ``[B, N, embedding_dim] -> [B, N, D]``.

    Raises:
        ValueError: a result is not finite.
    """
    scored = encoder.scored
    windows = night_windows(index, sequence=encoder.window, stride=stride, scored=(scored.start, scored.stop))
    place = torch.device(device)

    def launched(rows: NDArray[np.int64]) -> Tensor:
        given = encoded[transfer.send(torch.from_numpy(rows), encoded.device)]
        if encoder.apart:
            return head(encoder.among(given))
        return head(encoder.sequence(transfer.send(given, place).float(), None)[0])

    with frozen(encoder):
        parts = np.split(windows.source, range(batch, len(windows.source), batch))
        found = list(transfer.fetch_each(map(launched, parts)))
    return averaged(windows, np.concatenate(found), len(index))


def _autocast(device: torch.device, precision: EmbeddingPrecision) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


@contextmanager
def frozen(encoder: nn.Module) -> Iterator[None]:
    """A context with ``encoder`` in eval mode, in full float32 and without gradient. Every embedding is computed so.

    Afterwards each module has its own mode again: the caller may have frozen parts.
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
    """A context without TF32 and autocast, which have three digits: results would depend on the batch size's kernel."""
    matmul, convolution = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolution
