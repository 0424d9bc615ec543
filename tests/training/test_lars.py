"""Layer-wise rates: the papers' updates written out, lightly's LARS and torch's Adam, what scale means, resuming."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightly.utils.lars import LARS
from torch import Tensor, nn

from rayssl.errors import CheckpointError
from rayssl.training.lars import AdamLars, Lars
from rayssl.training.optim import OptimiserConfig, build_optimiser
from tests.runs import batches, build, experiment, write_corpus

METHOD = {"name": "simclr"}
NAMES = ("lars", "adam_lars")
RATES = [0.1, 0.4, 0.2, 0.05, 0.3, 0.1]


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).double()


def made(name: str, net: nn.Module, **changes: Any) -> torch.optim.Optimizer:
    settings = {"name": name, "weight_decay": 0.1, "trust": 0.02, "momentum": 0.8, **changes}
    return build_optimiser(OptimiserConfig.model_validate(settings), net)


def descend(net: nn.Module, optimiser: torch.optim.Optimizer, first: int, last: int, scale: float = 1.0) -> None:
    """Steps ``first .. last - 1`` of a fixed sequence of batches and rates."""
    for step in range(first, last):
        for group in optimiser.param_groups:
            group["lr"] = RATES[step]
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step)).double()
        optimiser.zero_grad()
        (scale * net(x).square().mean()).backward()
        optimiser.step()


def gradients(net: nn.Module, step: int) -> list[torch.Tensor]:
    net.zero_grad()
    net(torch.randn(8, 3, generator=torch.Generator().manual_seed(step)).double()).square().mean().backward()
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


def length(x: torch.Tensor) -> float:
    return math.sqrt(sum(value**2 for value in x.flatten().tolist()))


def test_lars_written_out() -> None:
    """Algorithm 1 of You et al. (2017), with rates that change."""
    ours, other = network(), network()
    descend(ours, made("lars", ours), 0, 6)
    velocity = [torch.zeros_like(p) for p in other.parameters()]
    for step in range(6):
        for p, g, v in zip(other.parameters(), gradients(other, step), velocity, strict=True):
            local, decay = 1.0, 0.0
            if p.dim() > 1:
                decay = 0.1
                local = 0.02 * length(p) / (length(g) + decay * length(p))
            v.copy_(0.8 * v + RATES[step] * local * (g + decay * p.detach()))
            p.data = p.data - v
    for mine, expected in zip(ours.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, expected)


def test_adam_lars_written_out() -> None:
    """Algorithm 2 of You et al. (2020) with phi the identity."""
    ours, other = network(), network()
    descend(ours, made("adam_lars", ours), 0, 6)
    m = [torch.zeros_like(p) for p in other.parameters()]
    s = [torch.zeros_like(p) for p in other.parameters()]
    for step in range(6):
        for k, (p, g) in enumerate(zip(other.parameters(), gradients(other, step), strict=True)):
            m[k] = 0.9 * m[k] + 0.1 * g
            s[k] = 0.999 * s[k] + 0.001 * g**2
            u = m[k] / (1 - 0.9 ** (step + 1)) / ((s[k] / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
            ratio = 1.0
            if p.dim() > 1:
                u = u + 0.1 * p.detach()
                ratio = length(p) / length(u)
            p.data = p.data - RATES[step] * ratio * u
    for mine, expected in zip(ours.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, expected)


def test_lars_is_lightlys_at_a_constant_rate() -> None:
    """Which leaves out the scaling where there is no decay, and has the rate outside of the momentum."""
    ours, other = network(), network()
    mine = made("lars", ours)
    theirs = LARS(
        [
            {"params": [p for p in other.parameters() if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in other.parameters() if p.dim() == 1], "weight_decay": 0.0},
        ],
        lr=0.2,
        momentum=0.8,
        trust_coefficient=0.02,
        eps=0.0,
    )
    for step in range(5):
        for net, optimiser in ((ours, mine), (other, theirs)):
            gradients(net, step)
            for group in optimiser.param_groups:
                group["lr"] = 0.2
            optimiser.step()
    for p, expected in zip(ours.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, expected)


def test_without_trust_it_is_torchs() -> None:
    for ours, theirs in ((AdamLars, torch.optim.AdamW), (Lars, torch.optim.SGD)):
        known = {"momentum": 0.9} if ours is Lars else {"weight_decay": 0.1}
        nets = network(), network()
        optimisers = ours(nets[0].parameters(), 0.1, trust=None, **known), theirs(nets[1].parameters(), 0.1, **known)
        for step in range(5):
            for net, optimiser in zip(nets, optimisers, strict=True):
                gradients(net, step)
                optimiser.step()
        for p, expected in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
            torch.testing.assert_close(p, expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_scale_of_the_loss_does_not_count_for_weights(name: str) -> None:
    """The point of a layer-wise rate; so does Adam, hence LARS before Adam would change nothing."""
    nets = nn.Linear(3, 2, bias=False).double(), nn.Linear(3, 2, bias=False).double()
    nets[1].load_state_dict(nets[0].state_dict())
    for net, scale in zip(nets, (1.0, 1e4), strict=True):
        descend(net, made(name, net, weight_decay=0.0), 0, 6, scale)
    torch.testing.assert_close(nets[0].weight, nets[1].weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "share"), [("lars", 0.3 * 0.02), ("adam_lars", 0.3)])
def test_a_first_step_is_that_share_of_the_length(name: str, share: float) -> None:
    for length in (1e-3, 1.0, 50.0):
        net = nn.Linear(30, 20, bias=False).double()
        with torch.no_grad():
            net.weight.mul_(length / net.weight.norm())
        before = net.weight.detach().clone()
        net.weight.grad = torch.randn(20, 30).double()
        made(name, net, weight_decay=0.0, lr=0.3).step()
        assert (net.weight - before).norm().item() == pytest.approx(share * length)


@pytest.mark.parametrize("name", NAMES)
def test_zeros_neither_stay_nor_spoil(name: str) -> None:
    """Weights of zeros move, gradients of zeros are finite, no gradient leaves all as it is, decay included."""
    net = nn.Linear(3, 2, bias=False)
    nn.init.zeros_(net.weight)
    optimiser = made(name, net)
    net.weight.grad = torch.ones(2, 3)
    optimiser.step()
    assert torch.isfinite(net.weight).all() and net.weight.abs().min() > 0
    still = nn.Linear(3, 2, bias=False)
    before = still.weight.detach().clone()
    optimiser = made(name, still, weight_decay=0.0)
    optimiser.step()
    still.weight.grad = torch.zeros(2, 3)
    optimiser.step()
    assert torch.equal(still.weight, before)


@pytest.mark.parametrize("name", NAMES)
def test_six_steps_are_three_resumed_and_three(name: str) -> None:
    whole, cut = network(), network()
    optimiser = made(name, whole)
    descend(whole, optimiser, 0, 6)
    first = made(name, cut)
    descend(cut, first, 0, 3)
    buffer = io.BytesIO()
    torch.save({"net": cut.state_dict(), "optimiser": first.state_dict()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    fresh = network(1)
    fresh.load_state_dict(saved["net"])
    second = made(name, fresh)
    second.load_state_dict(saved["optimiser"])
    descend(fresh, second, 3, 6)
    torch.testing.assert_close(fresh.state_dict(), whole.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(second.state_dict(), optimiser.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_closure_is_evaluated_with_gradients(name: str) -> None:
    net = nn.Linear(3, 2)
    optimiser = made(name, net)
    before = net.weight.detach().clone()

    def closure() -> float:
        loss = net(torch.ones(1, 3)).square().sum()
        loss.backward()
        return loss.item()

    loss = optimiser.step(closure)
    assert loss is not None and loss > 0 and not torch.equal(net.weight, before)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_goes_on_from_its_checkpoint(name: str, tmp_path: Path) -> None:
    """Through the loop and its files; another optimiser's state is refused."""
    write_corpus(tmp_path / "corpus", (9, 8))
    overrides = (f"training.optimiser.name={name}", "training.optimiser.lr=0.05", "training.optimiser.trust=0.5")
    ends = []
    for run, epochs in (("whole", (2,)), ("cut", (1, 2))):
        for count in epochs:
            changes = (*overrides, f"training.epochs={count}", "training.optimiser.schedule.name=constant")
            settings = experiment(tmp_path / run, tmp_path / "corpus", *changes, method=METHOD)
            loop = build(settings)
            loop.fit(batches(settings, loop))
        ends.append((loop.state.method.state_dict(), loop.optimiser.state_dict()))
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=0)
    for other in {"adam", "lars", "adam_lars"} - {name}:
        settings = experiment(tmp_path / "cut", tmp_path / "corpus", f"training.optimiser.name={other}", method=METHOD)
        with pytest.raises(CheckpointError, match=rf"another optimiser than {other}; .*training\.optimiser\.name back"):
            build(settings)


def of_one(name: str, p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    """The update of one parameter, operation by operation."""

    def ratio(of: Tensor, to: Tensor) -> Tensor:
        return torch.where((of > 0) & (to > 0), of / to, 1.0)

    decay, trust, norm = group["weight_decay"], group["trust"], torch.linalg.vector_norm
    assert p.grad is not None
    if name == "lars":
        direction = p.grad.add(p, alpha=decay)
        if trust is not None:
            direction.mul_(ratio(trust * norm(p), norm(p.grad) + decay * norm(p)))
        velocity = state.setdefault("velocity", torch.zeros_like(p))
        p.sub_(velocity.mul_(group["momentum"]).add_(direction, alpha=group["lr"]))
        return
    (first, second), step = group["betas"], state.get("step", 0) + 1
    mean = state.setdefault("mean", torch.zeros_like(p)).lerp_(p.grad, 1 - first)
    square = state.setdefault("square", torch.zeros_like(p)).mul_(second)
    square.addcmul_(p.grad, p.grad, value=1 - second)
    deviation = (square / (1 - second**step)).sqrt_().add_(group["eps"])
    direction = (mean / (1 - first**step)).div_(deviation).add_(p, alpha=decay)
    if trust is not None:
        direction.mul_(ratio(trust * norm(p), norm(direction)))
    p.sub_(direction, alpha=group["lr"])
    state["step"] = step


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_all_parameters_at_once_are_one_after_the_other(name: str, dtype: torch.dtype) -> None:
    """To the bit, also where a parameter is zero, has no gradient, or gets its first one later than others."""
    nets = network().to(dtype), network().to(dtype)
    optimiser, states = made(name, nets[0]), [{} for _ in nets[1].parameters()]
    groups = {id(p): group for group in made(name, nets[1]).param_groups for p in group["params"]}
    with torch.no_grad():
        for net in nets:
            net[3].bias.zero_()
    for step in range(5):
        for net in nets:
            for number, p in enumerate(net.parameters()):
                gradient = torch.randn(p.shape, generator=torch.Generator().manual_seed(10 * step + number))
                p.grad = None if number == 0 and step < 2 else gradient.to(dtype)
        for group in (*optimiser.param_groups, *groups.values()):
            group["lr"] = RATES[step]
        optimiser.step()
        with torch.no_grad():
            for p, state in zip(nets[1].parameters(), states, strict=True):
                if p.grad is not None:
                    of_one(name, p, state, groups[id(p)])
    torch.testing.assert_close(nets[0].state_dict(), nets[1].state_dict(), rtol=0, atol=0)
    for p, state in zip(nets[0].parameters(), states, strict=True):
        torch.testing.assert_close(optimiser.state[p], state, rtol=0, atol=0)
