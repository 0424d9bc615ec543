"""Channels last in memory: the same function of the same weights, in every backbone that has two layouts.

Double precision, with which a CPU calls none of oneDNN's kernels: some of those for channels last break the heap where
there are few channels (torch 2.11, a convolution 1x1 with stride 2).
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rayssl.models.base import Backbone
from rayssl.models.ecapa import Ecapa, EcapaConfig
from rayssl.models.encoder import EncoderConfig, build_encoder
from rayssl.models.fast_resnet34 import FastResnet34
from rayssl.models.layout import TimeConv, lay_kernels, placed
from rayssl.models.neighbours import _places, _sliced, neighbours
from rayssl.schema import parse
from tests.models.test_encoder import ECAPA, FITTING
from tests.training.waits import counted

CASES = {**FITTING, "ecapa-scale-4": ({}, {**ECAPA, "scale": 4})}


def network(name: str, *, last: bool | None) -> tuple[Backbone, Tensor]:
    """A backbone in double precision with weights that are not initial ones, and features for it."""
    torch.manual_seed(5)
    frontend, backbone = CASES[name]
    encoder = build_encoder(parse(EncoderConfig, {"frontend": frontend, "backbone": backbone}, "test"))
    features = encoder.frontend(0.1 * torch.randn(6, 8000)).double()
    with torch.no_grad():
        for key, value in encoder.backbone.state_dict().items():
            if key.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif value.dim() == 1:
                value.add_(0.2 * torch.randn_like(value))
    network = encoder.backbone.double()
    network.channels_last = last
    return network, features


def results(network: Backbone, features: Tensor) -> dict[str, Tensor]:
    """Embeddings, gradients of weights and features, and running statistics, each divided by its largest value."""
    x = features.clone().requires_grad_()
    out = network(x)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).double())
    assert x.grad is not None
    found = {"embedding": out.detach(), "features": x.grad}
    found |= {
        f"gradient of {name}": weight.grad for name, weight in network.named_parameters() if weight.grad is not None
    }
    found |= {name: value for name, value in network.named_buffers() if value.is_floating_point()}
    largest = max(value.abs().max() for name, value in found.items() if name.startswith("gradient"))
    return {name: value / (largest if name.startswith("gradient") else 1) for name, value in found.items()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", list(CASES))
def test_both_layouts_are_one_function(name: str, training: bool) -> None:
    plain, features = network(name, last=False)
    last, _ = network(name, last=True)
    lay_kernels(last)
    expected, found = results(plain.train(training), features), results(last.train(training), features)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-11, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", list(CASES))
def test_a_checkpoint_of_one_layout_fits_the_other(name: str) -> None:
    """The names, shapes and values of the weights; and the layout stays what it was."""
    plain, features = network(name, last=False)
    last, _ = network(name, last=True)
    lay_kernels(last)
    kernels = {key: value.stride() for key, value in last.named_parameters()}
    with torch.no_grad():
        for weight in last.parameters():
            weight.zero_()
    last.load_state_dict(plain.state_dict())
    assert {key: value.stride() for key, value in last.named_parameters()} == kernels
    torch.testing.assert_close(last(features), plain(features), rtol=1e-9, atol=1e-11)
    plain.load_state_dict(last.state_dict())
    assert list(plain.state_dict()) == list(last.state_dict())


@pytest.mark.parametrize("name", list(CASES))
def test_convolutions_keep_the_channels_last(name: str) -> None:
    """No convolution gets, or gives, another layout: between them nothing is converted."""
    last, features = network(name, last=True)
    lay_kernels(last)
    found: list[tuple[str, Tensor]] = []
    for key, part in last.named_modules():
        if isinstance(part, (nn.Conv2d, TimeConv)):
            part.register_forward_hook(lambda _part, given, out, key=key: found.extend([(key, given[0]), (key, out)]))
    last(features)
    assert bool(found) == ("ecapa" not in name)  # in ECAPA each one is a product
    for key, value in found:
        assert value.is_contiguous(memory_format=torch.channels_last), key
    for key, part in last.named_modules():
        if isinstance(part, TimeConv) and part.weight.shape[1] > 1:
            assert part.weight.unsqueeze(2).is_contiguous(memory_format=torch.channels_last), key


@pytest.mark.parametrize("name", list(CASES))
def test_channels_last_let_the_host_wait_for_nothing(name: str) -> None:
    """The census of whole steps is in the layout of a CPU; this is the other one, also for a length that is new."""
    last, features = network(name, last=True)
    lay_kernels(last)
    _places.cache_clear()
    with counted() as waits:
        last(features).sum().backward()
    assert not waits


class Called(TorchDispatchMode):
    """Counts the operators that are called, and notes the sizes of what they make."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[str, list[int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.made.setdefault(str(func).removesuffix(".default"), []).append(made.numel())
        return made


@pytest.mark.parametrize("variant", ["speechbrain", "wespeaker"])
def test_ecapa_copies_nothing_backward_but_its_neighbours(variant: str) -> None:
    """Without a compiler each index would be a copy into zeros, and each operation in place on a view two copies."""
    features = network("ecapa", last=True)[1]
    settings = parse(EcapaConfig, {**ECAPA, "scale": 4, "variant": variant}, "test")
    last = Ecapa(settings, features.shape[1]).double()
    last.channels_last = True
    out = last(features)
    with Called() as called:
        out.sum().backward()
    assert not [name for name in called.made if name.endswith(("slice_backward", "select_backward"))]
    activation = features.shape[0] * features.shape[2] * settings.channels // settings.scale
    weights = {weight.numel() for weight in last.parameters()}
    sizes = [*called.made.get("aten.copy_", []), *called.made.get("aten.clone", [])]
    copies = [size for size in sizes if size >= activation and size not in weights]
    assert copies == [activation] * 3 * (settings.scale - 1), "one for each convolution over neighbours"


@pytest.mark.parametrize("mode", ["reflect", "constant"])
@pytest.mark.parametrize(("kernel", "dilation", "frames"), [(3, 1, 9), (3, 4, 5), (5, 1, 7), (1, 1, 3), (5, 2, 30)])
def test_neighbours_are_those_of_slices(kernel: int, dilation: int, frames: int, mode: str) -> None:
    x = torch.randn(2, frames, 3, dtype=torch.float64)
    given = torch.randn(2, frames, 3 * kernel, dtype=torch.float64)
    results = []
    for function in (neighbours, _sliced):
        leaf = x.clone().requires_grad_()
        seen = function(leaf, kernel, dilation, mode)
        seen.backward(given)
        results.append((seen.detach(), leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-12, atol=1e-12)


def test_a_cpu_keeps_its_layout() -> None:
    backbone, features = network("ecapa", last=None)
    assert not backbone.lays_channels_last(features)
    assert backbone.lays_channels_last(features.to("meta"))


def test_kernels_are_laid_out_where_there_are_two_layouts() -> None:
    backbone = network("fast_resnet34", last=None)[0]
    assert isinstance(backbone, FastResnet34)
    before = copy.deepcopy(backbone.state_dict())
    identities = [id(weight) for weight in backbone.parameters()]
    placed(backbone, torch.device("cpu"))
    assert backbone.blocks[0].conv1.weight.is_contiguous()
    lay_kernels(backbone)
    assert [id(weight) for weight in backbone.parameters()] == identities
    assert backbone.stem.weight.is_contiguous()
    kernel = backbone.blocks[0].conv1.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last) and not kernel.is_contiguous()
    torch.testing.assert_close(backbone.state_dict(), before, rtol=0, atol=0)


def test_a_device_decides_the_layout() -> None:
    """Channels last anywhere but on a CPU; and a module that comes back has the layout that it had."""
    backbone = network("fast_resnet34", last=None)[0]
    assert isinstance(backbone, FastResnet34)
    expected = copy.deepcopy(backbone.state_dict())
    lay_kernels(backbone)
    kernel = placed(backbone, torch.device("cpu")).blocks[0].conv1.weight
    assert kernel.is_contiguous()
    torch.testing.assert_close(backbone.state_dict(), expected, rtol=0, atol=0)
    kernel = placed(backbone, torch.device("meta")).blocks[0].conv1.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last) and not kernel.is_contiguous()
