"""Outputs, batches and methods of few labels, small and random, for their tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rayssl.methods.base import Batch, Classes, ClassRecall
from rayssl.models.encoder import Encoder, EncoderConfig, build_encoder
from tests.runs import ENCODER

CLASSES = Classes(("a", "b", "c", "d"), (20, 9, 3, 1))
LABELLED, UNLABELLED, WIDTH = 5, 10, 16


def encoder() -> Encoder:
    torch.manual_seed(0)
    return build_encoder(EncoderConfig.model_validate(ENCODER))


def build(kind: Any, config: Any, **changes: object) -> Any:
    torch.manual_seed(1)
    return kind(config.model_validate(changes), encoder(), CLASSES)


def batch(step: int = 0, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def part(size: int, labels: Tensor, truth: Tensor) -> Batch:
        unknown = torch.full((size,), -1)
        return Batch(torch.arange(size), unknown, unknown, labels, 0, truth, step)

    labels = torch.randint(4, (LABELLED,), generator=generator)
    truth = torch.randint(-1, 4, (UNLABELLED,), generator=generator)
    few, many = part(LABELLED, labels, labels), part(UNLABELLED, torch.full((UNLABELLED,), -1), truth)
    return Batch(many.ids, many.speakers, many.recordings, many.labels, 0, truth, step, few)


def without_anchors(prototypes: Tensor, present: Tensor, histogram: Tensor) -> ClassRecall:
    """The answer of a memory that hands out no rows."""
    rows, filled = prototypes.new_zeros(len(present), 0, prototypes.shape[1]), torch.zeros_like(histogram)
    return ClassRecall(prototypes=prototypes, present=present, histogram=histogram, rows=rows, filled=filled)


def outputs(seed: int = 0, scale: float = 2.0) -> dict[str, Tensor]:
    """What `forward` returns, as leaves that take a gradient."""
    generator = torch.Generator().manual_seed(100 + seed)

    def leaf(*shape: int) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).requires_grad_()

    out = {"labelled": leaf(LABELLED, 4), "weak": leaf(UNLABELLED, 4), "strong": leaf(UNLABELLED, 4)}
    return out | {name: leaf(UNLABELLED, WIDTH) for name in ("weak_rows", "strong_rows")}


def same_gradients(loss: Tensor, out: dict[str, Tensor], expected: Tensor, twin: dict[str, Tensor]) -> None:
    """``loss`` of ``out`` and ``expected`` of its ``twin`` agree in value and in the gradient of every output."""
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    loss.backward()
    expected.backward()
    for name in out:
        mine, theirs = (
            each.grad if each.grad is not None else torch.zeros_like(each) for each in (out[name], twin[name])
        )
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")
