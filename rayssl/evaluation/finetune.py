"""Fine-tunes a copy of an encoder and its linear probe on labelled random crops, and classifies whole utterances.

The probe is the beginning: its weights are those of the head, and the loss is the probe's own, cross-entropy with its
penalty, now also minimised over the encoder. Batch normalisation keeps the running statistics of the pretraining,
because those of a hundred clips are worse. So before the first step the model predicts what the probe predicts.

With few labels, fine-tuning can be worse than the probe. So it is tried first: a fifth of the clips of each class,
those that `rayssl.evaluation.probes` holds out, judge a fine-tuning with the others against the probe of the others.
Only if their cross-entropy falls by more than its standard error is the encoder fine-tuned with all clips; else the
probe is kept. Cross-entropy, because accuracy on twenty clips moves in steps of five points; at the temperature that
suits each model best, because a fine-tuned one is more often right, and far too sure where it is wrong. The standard
error, because a smaller gain may well be chance. This is one training more; cross-validation would be five.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from rayssl.evaluation import probes
from rayssl.evaluation.embeddings import embed_utterances
from rayssl.evaluation.probes import LinearProbe
from rayssl.models.layout import placed
from rayssl.random.draws import fold, keys_np, uniform_np
from rayssl.views.crops import cut

Ints = NDArray[np.int64]
Waves = Sequence[NDArray[np.int16]]

_ORDER, _CROP, _DROPOUT = 41, 42, 43  # the purposes of random draws
_WEIGHT_DECAY = 0.01
_LENGTHS = 8  # the most lengths of the crops of a step, each of which costs a pass
_TEMPERATURES = tuple(2.0 ** (k / 2) for k in range(-6, 13))  # 1/8 to 64
_NEVER = -1e30  # the score of a class without labelled clips


@dataclass(frozen=True)
class Finetuned:
    """A fine-tuned model, or the probe if that is not better.

    ``encoder`` and ``head [embedding_dim -> classes]`` are in eval mode. ``probe_kept``: the encoder is as it was, and
    the head is the linear probe. ``before`` and ``after``: the cross-entropy of the clips that were held out, averaged
    over classes and each at its best temperature, of the probe and after fine-tuning; None if no class has a second
    clip.
    """

    encoder: nn.Module
    head: nn.Linear
    probe_kept: bool
    before: float | None
    after: float | None

    @property
    def told(self) -> str:
        """What was chosen and why, in a line for a person."""
        if self.before is None:
            return "no class has a second clip to judge by, so the linear probe is kept"
        chosen = "so the linear probe is kept" if self.probe_kept else "so the encoder is fine-tuned"
        return f"cross-entropy {self.before:.3f} before and {self.after:.3f} after on those held out, {chosen}"


@dataclass(frozen=True)
class _Material:
    """n labelled clips ``waves``, their embeddings ``rows [n, D]``, and their ``labels [n]``."""

    waves: Waves
    rows: NDArray[np.float32]
    labels: Ints

    def only(self, chosen: NDArray[np.bool_]) -> _Material:
        picked = np.flatnonzero(chosen)
        return _Material([self.waves[k] for k in picked.tolist()], self.rows[picked], self.labels[picked])


@dataclass(frozen=True)
class _Training:
    epochs: int
    steps: int
    batch: int
    lr: float
    head_lr: float
    segment: int
    seed: int
    device: torch.device


def finetune(
    encoder: nn.Module,
    waves: Waves,
    labels: ArrayLike,
    *,
    classes: int,
    epochs: int,
    steps: int,
    batch: int,
    lr: float,
    head_lr: float,
    segment: int,
    seed: int,
    device: torch.device | str,
) -> Finetuned:
    """Trains a copy of ``encoder`` and its linear probe on ``waves`` (n int16 ``[T_i]``) and ``labels [n]``.

    AdamW, with rate ``lr`` for all parameters of the copy, also frozen ones (weight decay 0.01), and ``head_lr`` for
    the head. Both fall along a cosine to 0 at the last step. There are ``epochs`` passes, and more until there are
    ``steps`` steps. Each goes over all utterances in a new order, in random crops of at most ``segment`` samples. A
    shorter utterance keeps its length, cut to a multiple of an eighth of ``segment``. Rows of the epoch's beginning
    fill up the last batch. ``encoder`` itself, its modes and its statistics do not change. Order and crops depend only
    on (seed, epoch, row), and torch's draws (dropout) on the seed; the caller's random state does not change. On a CPU
    a second call gives the same weights. A class without an utterance is never predicted.

    Raises:
        ValueError: there are no utterances, audio is unusable, labels are not in [0, classes) or of one class only, a
            setting is below 1, or the loss is not finite.
    """
    truth = _checked(waves, labels, classes, epochs=epochs, steps=steps, batch=batch, segment=segment)
    how = _Training(epochs, steps, batch, lr, head_lr, segment, seed, torch.device(device))
    start = placed(copy.deepcopy(encoder), how.device).eval()
    everything = _Material(waves, embed_utterances(start, waves, device, batch, normalise=False), truth)
    probe = probes.fit_linear_probe(everything.rows, truth, seed=seed)
    held = probes.held_out(truth, seed)
    if not held.any():
        return Finetuned(start, _folded(probe, classes, how.device), True, None, None)
    known = everything.only(~held)
    fewer = probes.fit_linear_probe(known.rows, known.labels, seed=seed, l2=(probe.l2,))
    before, after, error = _judged(_trained(start, fewer, known, how), fewer, everything.only(held), how)
    better = before - after > error
    tuned, probe = _trained(start, probe, everything, how) if better else (start, probe)
    return Finetuned(tuned, _folded(probe, classes, how.device), not better, before, after)


def predict(encoder: nn.Module, head: nn.Linear, waves: Waves, device: torch.device | str, batch: int = 32) -> Ints:
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


def _trained(
    start: nn.Module, probe: LinearProbe, material: _Material, how: _Training
) -> tuple[nn.Module, LinearProbe]:
    """A trained copy of ``start``, in eval mode, and the probe with the weights of the trained head."""
    device, count = how.device, len(material.waves)
    mean, deviation = (torch.from_numpy(v).to(device, torch.float32) for v in (probe.mean, probe.deviation))
    truth = torch.from_numpy(np.searchsorted(probe.classes, material.labels)).to(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
        torch.manual_seed(fold(how.seed, _DROPOUT) >> 1)
        tuned = _training_mode(copy.deepcopy(start)).requires_grad_(True)
        weight, bias = (
            torch.from_numpy(v).to(device, torch.float32).requires_grad_() for v in (probe.weight, probe.bias)
        )
        groups = [
            {"params": tuned.parameters(), "lr": how.lr},
            {"params": [weight, bias], "lr": how.head_lr, "weight_decay": 0.0},  # it has the probe's penalty
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=_WEIGHT_DECAY)
        epoch_steps = -(-count // how.batch)
        epochs = max(how.epochs, -(-how.steps // epoch_steps))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs * epoch_steps)
        for epoch in range(epochs):
            total = torch.zeros((), device=device)
            for parts in _batches(material.waves, how.batch, how.segment, how.seed, epoch):
                optimizer.zero_grad()
                penalty = 0.5 * probe.penalty * weight.square().sum()
                penalty.backward()
                size = sum(len(rows) for rows, _ in parts)
                for rows, pcm in parts:
                    wave = torch.from_numpy(pcm).to(device).to(torch.float32) / 32768.0
                    logits = nn.functional.linear((tuned(wave, None) - mean) / deviation, weight, bias)
                    loss = nn.functional.cross_entropy(logits, truth[rows], reduction="sum") / size
                    loss.backward()
                    total += loss.detach()
                optimizer.step()
                schedule.step()
            if not torch.isfinite(total):
                raise ValueError(f"fine-tuning: the loss is not finite in epoch {epoch}; try a lower lr or head_lr")
    ends = [each.detach().cpu().double().numpy() for each in (weight, bias)]
    return tuned.eval(), replace(probe, weight=ends[0], bias=ends[1])


def _training_mode(encoder: nn.Module) -> nn.Module:
    """Sets training mode for dropout and its like; batch normalisation uses its running statistics and keeps them."""
    encoder.train()
    for part in encoder.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()
    return encoder


def _judged(
    trained: tuple[nn.Module, LinearProbe], probe: LinearProbe, held: _Material, how: _Training
) -> tuple[float, float, float]:
    """The cross-entropies of the ``held`` clips by ``probe`` and by the ``trained`` model; each class weighs the same.

    Both at their best temperatures, see the docstring of this file. The third is the standard error of their
    difference; it is infinite with one clip.
    """
    encoder, head = trained
    rows = embed_utterances(encoder, held.waves, how.device, how.batch, normalise=False)
    _, column, sizes = np.unique(held.labels, return_inverse=True, return_counts=True)
    weights = 1 / (len(sizes) * sizes[column])
    before, after = (
        min((judge.surprise(x, held.labels, temperature) for temperature in _TEMPERATURES), key=lambda s: weights @ s)
        for judge, x in ((probe, held.rows), (head, rows))
    )
    fall, count = before - after, len(held.labels)
    spread = float((weights**2 * (fall - weights @ fall) ** 2).sum())
    error = float(np.sqrt(spread * count / (count - 1))) if count > 1 else np.inf
    return float(weights @ before), float(weights @ after), error


def _folded(probe: LinearProbe, classes: int, device: torch.device) -> nn.Linear:
    """One layer ``[D -> classes]`` on embeddings as they are, with the scores of ``probe`` on standardised ones."""
    weight, bias = probe.weight / probe.deviation, probe.bias - probe.weight @ (probe.mean / probe.deviation)
    head: nn.Linear = nn.utils.skip_init(nn.Linear, weight.shape[1], classes)  # draws no random numbers
    head.requires_grad_(False)
    head.weight.zero_()
    head.bias.fill_(_NEVER)
    head.weight[probe.classes] = torch.from_numpy(weight).float()
    head.bias[probe.classes] = torch.from_numpy(bias).float()
    return head.to(device).eval()


def _batches(
    waves: Waves, batch: int, segment: int, seed: int, epoch: int
) -> Iterator[list[tuple[Ints, NDArray[np.int16]]]]:
    """Of each step of an epoch, rows ``[b]`` and their crops ``[b, T]`` for each length T of a crop, the longest first.

    The rows of a step are the smaller of ``batch`` and n.
    """
    count = len(waves)
    rows = np.arange(count)
    order = np.argsort(uniform_np(keys_np(fold(seed, _ORDER, epoch), rows), 0), kind="stable")
    positions = uniform_np(keys_np(fold(seed, _CROP, epoch), rows), 0)
    unit = max(1, segment // _LENGTHS)
    for start in range(0, count, batch):
        by_length: dict[int, list[int]] = defaultdict(list)
        for row in np.take(order, np.arange(start, start + min(batch, count)), mode="wrap").tolist():
            length = len(waves[row])
            by_length[segment if length >= segment else max(unit, length // unit * unit)].append(row)
        yield [
            (np.array(chosen), np.stack([cut(waves[row], length, float(positions[row])) for row in chosen]))
            for length, chosen in sorted(by_length.items(), reverse=True)
        ]


def _checked(waves: Waves, labels: ArrayLike, classes: int, **settings: int) -> Ints:
    """The labels ``[n]``. Raises `ValueError` unless all arguments are usable."""
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
    return given.astype(np.int64)
