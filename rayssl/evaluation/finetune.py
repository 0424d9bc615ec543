"""Fine-tunes a copy of an encoder with a linear head on labelled random crops, and classifies whole utterances."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from rayssl.evaluation.embeddings import embed_utterances
from rayssl.random.draws import fold, keys_np, uniform_np
from rayssl.views.crops import cut

Ints = NDArray[np.int64]

_ORDER, _CROP, _DROPOUT = 41, 42, 43  # the purposes of random draws
_WEIGHT_DECAY = 0.01


def finetune(
    encoder: nn.Module,
    waves: Sequence[NDArray[np.int16]],
    labels: ArrayLike,
    *,
    classes: int,
    epochs: int,
    batch: int,
    lr: float,
    head_lr: float,
    segment: int,
    seed: int,
    device: torch.device | str,
) -> tuple[nn.Module, nn.Linear]:
    """Trains a copy of ``encoder``, with a linear head, on ``waves`` (n int16 ``[T_i]``) and ``labels [n]``.

    Cross-entropy and AdamW (weight decay 0.01), with rate ``lr`` for all parameters of the copy, also frozen ones, and
    ``head_lr`` for the head. Both fall along a cosine to 0 at the last step. Each epoch passes over all utterances in a
    new order, in random crops of ``segment`` samples; a short utterance is repeated to fill one. Rows of the epoch's
    beginning fill up the last batch, so that BatchNorm always sees a full one. ``encoder`` itself, its modes and its
    statistics do not change. Order and crops depend only on (seed, epoch, row), and torch's draws (dropout) on the
    seed; the caller's random state does not change. On a CPU a second call gives the same weights.

    Returns:
        The copy and the head ``[embedding_dim -> classes]``, both in eval mode on ``device``.

    Raises:
        ValueError: there are no utterances, audio is unusable, labels are not in [0, classes) or of one class only, a
            setting is below 1, or the loss is not finite.
    """
    truth = _checked(waves, labels, classes, epochs=epochs, batch=batch, segment=segment)
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        torch.manual_seed(fold(seed, _DROPOUT) >> 1)
        tuned = copy.deepcopy(encoder).to(device).train().requires_grad_(True)
        head = nn.Linear(int(getattr(tuned, "embedding_dim")), classes).to(device)  # noqa: B009 - typed as a module
        nn.init.zeros_(head.weight)  # the first gradients of a random head would only disturb the encoder
        nn.init.zeros_(head.bias)
        rates = [{"params": tuned.parameters(), "lr": lr}, {"params": head.parameters(), "lr": head_lr}]
        optimizer = torch.optim.AdamW(rates, weight_decay=_WEIGHT_DECAY)
        steps = epochs * -(-len(waves) // batch)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        for epoch in range(epochs):
            total = torch.zeros((), device=device)
            for rows, pcm in _batches(waves, batch, segment, seed, epoch):
                wave = torch.from_numpy(pcm).to(device).to(torch.float32) / 32768.0
                loss = nn.functional.cross_entropy(head(tuned(wave, None)), truth[rows].to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.detach()
            if not torch.isfinite(total):
                raise ValueError(f"fine-tuning: the loss is not finite in epoch {epoch}; try a lower lr or head_lr")
    return tuned.eval(), head.eval()


def predict(
    encoder: nn.Module,
    head: nn.Linear,
    waves: Sequence[NDArray[np.int16]],
    device: torch.device | str,
    batch: int = 32,
) -> Ints:
    """Classes ``[n]`` of ``waves``, n int16 arrays ``[T_i]``. Each utterance is classified as a whole.

    Of classes with equal scores, the lowest number wins. ``encoder`` and ``head`` are on ``device``. Raises what
    `embed_utterances` raises.
    """
    if not len(waves):
        return np.zeros(0, np.int64)
    rows = embed_utterances(encoder, waves, device, batch, normalise=False)
    with torch.inference_mode():
        scores = head(torch.from_numpy(rows).to(device))
    return np.asarray(scores.argmax(dim=1).cpu().numpy(), np.int64)


def _batches(
    waves: Sequence[NDArray[np.int16]], batch: int, segment: int, seed: int, epoch: int
) -> Iterator[tuple[Ints, NDArray[np.int16]]]:
    """Rows ``[B]`` and their crops ``[B, segment]`` of each step of an epoch; B is the smaller of ``batch`` and n."""
    count = len(waves)
    rows = np.arange(count)
    order = np.argsort(uniform_np(keys_np(fold(seed, _ORDER, epoch), rows), 0), kind="stable")
    positions = uniform_np(keys_np(fold(seed, _CROP, epoch), rows), 0)
    for start in range(0, count, batch):
        chosen = np.take(order, np.arange(start, start + min(batch, count)), mode="wrap")
        yield chosen, np.stack([cut(waves[row], segment, float(positions[row])) for row in chosen])


def _checked(waves: Sequence[NDArray[np.int16]], labels: ArrayLike, classes: int, **settings: int) -> Tensor:
    """The labels ``[n]`` as a tensor. Raises `ValueError` unless all arguments are usable."""
    for name, value in settings.items():
        if value < 1:
            raise ValueError(f"fine-tuning: {name} must be at least 1, got {value}")
    given = np.ravel(np.asarray(labels))
    if not len(waves) or len(given) != len(waves):
        raise ValueError(f"fine-tuning needs labelled utterances, got {len(waves)} utterances and {len(given)} labels")
    for index, wave in enumerate(waves):
        if wave.ndim != 1 or wave.dtype != np.int16 or not len(wave):
            raise ValueError(f"utterance {index}: expected int16 [T] with T > 0, got {wave.dtype} {list(wave.shape)}")
    bad = np.flatnonzero((given < 0) | (given >= classes))
    if len(bad):
        raise ValueError(
            f"fine-tuning: {len(bad)} labels lie outside 0..{classes - 1}, first {given[bad[0]]} of utterance {bad[0]}"
        )
    if len(np.unique(given)) < 2:
        raise ValueError(f"fine-tuning needs at least two classes, but all utterances are of class {given[0]}")
    return torch.from_numpy(given.astype(np.int64))
