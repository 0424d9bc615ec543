"""Optimisers: which parameters decay, which are there, and that the names mean what they say."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from rayssl.training.optim import OptimiserConfig, build_optimiser, clip_gradients


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(12, 2))


def test_biases_and_normalisation_do_not_decay() -> None:
    net = model()
    groups = build_optimiser(OptimiserConfig(weight_decay=0.1), net).param_groups
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decays) == len(list(net.parameters()))
    expected = {"0.weight": 0.1, "0.bias": 0, "1.weight": 0, "1.bias": 0, "3.weight": 0.1, "3.bias": 0}
    assert {name: decays[id(p)] for name, p in net.named_parameters()} == expected


def test_decay_moves_weights_only() -> None:
    net = model()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimiser = build_optimiser(OptimiserConfig(name="sgd", lr=0.5, weight_decay=0.1), net)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimiser.step()
    for name, p in net.named_parameters():
        factor = 0.95 if p.ndim > 1 else 1.0
        torch.testing.assert_close(p.detach(), factor * before[name])


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adam", "Adam"), ("adamw", "AdamW"), ("sgd", "SGD"), ("lars", "Lars"), ("adam_lars", "AdamLars")],
)
def test_names(name: str, kind: str) -> None:
    config = OptimiserConfig.model_validate({"name": name, "lr": 0.3, "momentum": 0.7})
    optimiser = build_optimiser(config, model())
    assert type(optimiser).__name__ == kind
    assert {group["lr"] for group in optimiser.param_groups} == {0.3}
    if name in ("sgd", "lars"):
        assert {group["momentum"] for group in optimiser.param_groups} == {0.7}


def test_frozen_parameters_are_left_out() -> None:
    net = model()
    net[0].requires_grad_(False)
    optimiser = build_optimiser(OptimiserConfig(), net)
    assert sum(len(group["params"]) for group in optimiser.param_groups) == 4
    only_biases = nn.BatchNorm1d(3)
    assert len(build_optimiser(OptimiserConfig(), only_biases).param_groups) == 1  # no empty group


def test_order_is_that_of_the_names() -> None:
    """The optimiser's state is saved by position: the position must not depend on the order of construction."""

    class Two(nn.Module):
        def __init__(self, names: tuple[str, str]) -> None:
            super().__init__()
            for name in names:
                setattr(self, name, nn.Linear(len(name), 1))

    orders = []
    for names in (("a", "bb"), ("bb", "a")):
        groups = build_optimiser(OptimiserConfig(), Two(names)).param_groups
        orders.append([p.shape for group in groups for p in group["params"]])
    assert orders[0] == orders[1]


@pytest.mark.parametrize(("name", "trust"), [("lars", 0.002), ("adam_lars", 1.0)])
def test_biases_and_normalisation_have_no_trust_ratio(name: str, trust: float) -> None:
    net = model()
    config = OptimiserConfig.model_validate({"name": name, "trust": 0.002, "weight_decay": 0.1})
    groups = build_optimiser(config, net).param_groups
    found = {id(p): (group["trust"], group["weight_decay"]) for group in groups for p in group["params"]}
    for p in net.parameters():
        assert found[id(p)] == ((trust, 0.1) if p.ndim > 1 else (None, 0.0))
    only_biases = build_optimiser(config, nn.BatchNorm1d(3)).param_groups
    assert [group["trust"] for group in only_biases] == [None]


def test_only_a_gpu_has_fused_steps() -> None:
    for name in ("adam", "adamw", "sgd"):
        config = OptimiserConfig.model_validate({"name": name})
        assert {group["fused"] for group in build_optimiser(config, model()).param_groups} == {None}


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lars", "adam_lars"])
def test_moments_have_the_layout_of_their_parameters(name: str) -> None:
    """Of a checkpoint with another layout too; and the steps after it are those of the first optimiser."""
    config = OptimiserConfig.model_validate({"name": name, "lr": 0.1})

    def network(last: bool) -> nn.Conv2d:
        torch.manual_seed(0)
        net = nn.Conv2d(4, 3, 3)
        return net.to(memory_format=torch.channels_last) if last else net  # type: ignore[call-overload]

    def step(net: nn.Module, optimiser: torch.optim.Optimizer, seed: int) -> None:
        for p in net.parameters():
            gradient = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
            p.grad = torch.empty_like(p).copy_(gradient)
        optimiser.step()

    first, second = network(False), network(True)
    optimisers = build_optimiser(config, first), build_optimiser(config, second)
    step(first, optimisers[0], 1)
    second.load_state_dict(first.state_dict())
    optimisers[1].load_state_dict(copy.deepcopy(optimisers[0].state_dict()))
    moments = [value for value in optimisers[1].state[second.weight].values() if torch.is_tensor(value) and value.dim()]
    assert moments and all(value.stride() == second.weight.stride() for value in moments)
    assert second.weight.stride() != first.weight.stride()
    step(first, optimisers[0], 2)
    step(second, optimisers[1], 2)
    torch.testing.assert_close(second.state_dict(), first.state_dict(), rtol=1e-6, atol=1e-7)


def with_gradients(scale: float) -> nn.Sequential:
    net = model()
    generator = torch.Generator().manual_seed(3)
    for factor, p in zip((0.01, 0.1, 1.0, 10.0, 100.0), net.parameters(), strict=False):
        p.grad = scale * factor * torch.randn(p.shape, generator=generator)
    return net  # the last tensor has none


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
@pytest.mark.parametrize("norm", [None, 2.0])
def test_each_gradient_is_clipped_as_in_a_loop_over_them(scale: float, norm: float | None) -> None:
    """The rule of the public code of DINO; the global norm is of what this leaves."""
    ours, theirs = with_gradients(scale), with_gradients(scale)
    clip_gradients(OptimiserConfig(clip_each=3.0, clip_norm=norm), ours)
    for p in theirs.parameters():
        if p.grad is not None:
            length = float(p.grad.norm(2))
            if 3.0 / (length + 1e-6) < 1:
                p.grad = p.grad * (3.0 / (length + 1e-6))
    if norm is not None:
        nn.utils.clip_grad_norm_(theirs.parameters(), norm)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)


def test_without_a_limit_gradients_stay() -> None:
    ours, theirs = with_gradients(50.0), with_gradients(50.0)
    clip_gradients(OptimiserConfig(), ours)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert a.grad is b.grad is None or torch.equal(a.grad, b.grad)
