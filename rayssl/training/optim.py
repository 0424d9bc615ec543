"""Optimisers by name. Biases and normalisation weights get no weight decay and no layer-wise rates."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rayssl.schema import Config
from rayssl.training.lars import AdamLars, Lars
from rayssl.training.scaling import scale_each_
from rayssl.training.schedules import ScheduleConfig


class OptimiserConfig(Config):
    """``lr`` is the rate at the configured global batch. It is never rescaled by the batch size.

    The steps of ``lars`` and ``adam_lars`` are in proportion to the length of each layer's weights, see
    `rayssl.training.lars`. They need other rates than ``sgd`` and ``adam``. ``momentum`` is for ``sgd`` and ``lars``.
    ``trust`` is the factor of ``lars``: in one step a layer moves by ``lr * trust`` of its length, before momentum.
    """

    name: Literal["adam", "adamw", "sgd", "lars", "adam_lars"] = "adam"
    """The optimiser. ``lars`` (SGD) and ``adam_lars`` (Adam) scale the step of each layer by the length of its weights,
    for large batches, and need other rates than ``sgd`` and ``adam``.
    """
    lr: float = Field(1e-3, gt=0)
    """The learning rate at the configured global batch, after the warm-up. It is never rescaled by the batch or the
    number of ranks. Lower it first if a loss is not finite.
    """
    weight_decay: float = Field(0.0, ge=0)
    """The weight decay: added to the gradient for ``adam``, ``sgd`` and ``lars``, decoupled for ``adamw`` and
    ``adam_lars``. Biases and normalisation weights get none.
    """
    momentum: float = Field(0.9, ge=0, lt=1)
    """The momentum of ``sgd`` and ``lars``, from 0 to below 1. The other optimisers ignore it."""
    trust: float = Field(0.001, gt=0)
    """The factor of ``lars`` alone: in one step a layer moves by ``lr * trust`` of its length, before momentum."""
    clip_norm: float | None = Field(None, gt=0)
    """The largest L2 norm of the whole gradient; a longer one is scaled down to it. Null does not limit it. Set it if
    single batches make the loss jump.
    """
    clip_each: float | None = Field(None, gt=0)
    """The largest L2 norm of the gradient of each single tensor of weights; a longer one is scaled down to it, and the
    others stay as they are. Null does not limit them. 3 is published for DINO. With ``clip_norm``, this comes first.
    """
    schedule: ScheduleConfig = ScheduleConfig()
    """How the learning rate changes over the training."""


def build_optimiser(config: OptimiserConfig, model: nn.Module) -> torch.optim.Optimizer:
    """An optimiser over the trainable parameters of ``model``, in the order of their names.

    On a GPU, a step of torch's optimisers is one launch for a group of parameters.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for _, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            (decayed if parameter.ndim > 1 else plain).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    if config.name in ("lars", "adam_lars"):
        groups[0]["trust"], groups[1]["trust"] = (config.trust if config.name == "lars" else 1.0), None
    groups = [group for group in groups if group["params"]]
    fused = all(p.device.type == "cuda" for group in groups for p in group["params"]) or None
    made: torch.optim.Optimizer
    if config.name == "sgd":
        made = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused)
    elif config.name == "lars":
        made = Lars(groups, lr=config.lr, momentum=config.momentum)
    elif config.name == "adam_lars":
        made = AdamLars(groups, lr=config.lr)
    else:
        kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
        made = kind(groups, lr=config.lr, fused=fused)
    made.register_load_state_dict_post_hook(_lay_as_parameters)
    return made


def clip_gradients(config: OptimiserConfig, model: nn.Module) -> None:
    """Scales the gradients of ``model`` down in place, as ``clip_each`` and then ``clip_norm`` say.

    ``clip_each`` c: a gradient ``g`` of one tensor becomes ``g * min(1, c / (|g| + 1e-6))``, as in the public code of
    DINO. The host does not wait for the device.
    """
    if config.clip_each is not None:
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if gradients:
            lengths = torch.stack(list(torch._foreach_norm(gradients)))
            scale_each_(gradients, (config.clip_each / (lengths + 1e-6)).clamp(max=1.0))
    if config.clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)


def _lay_as_parameters(optimiser: torch.optim.Optimizer) -> None:
    """Gives loaded moments the layout in memory of their parameters, which a checkpoint of a CPU does not have.

    Fused kernels refuse tensors of different layouts.
    """
    for parameter, state in optimiser.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
