"""ResNet-18 over samples: its size, its steps, and the network written out with sums."""

import pytest
import torch
from torch import Tensor, nn

from rayssl.models.resnet1d import Basic1d, Resnet1d, Resnet1dConfig
from rayssl.models.resnet2d import Resnet2d, Resnet2dConfig


def size(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def test_size_is_that_of_the_network_over_spectra() -> None:
    """But for the first layer: 80 weights instead of 3 x 7 x 7."""
    with torch.device("meta"):
        ours, theirs = Resnet1d(Resnet1dConfig()), Resnet2d(Resnet2dConfig(), 3)
        assert size(ours) == size(theirs) - 64 * 147 + 64 * 80 == 11_172_224
        assert size(Resnet1d(Resnet1dConfig(embedding_dim=100))) == size(ours) + 513 * 100


def test_steps() -> None:
    """A second at 16 kHz: every stage has a quarter of the frames and twice the channels of the one before."""
    model = Resnet1d(Resnet1dConfig(width=2)).eval()
    shapes: list[tuple[int, ...]] = []
    for layer in (model.stem, *model.blocks):
        layer.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
    model(torch.randn(1, 1, 16000))
    assert shapes[0] == (2, 4000)
    assert shapes[2::2] == [(2, 1000), (4, 250), (8, 63), (16, 16)]


def convolved(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """``x [B, I, T]``, ``weight [O, I, K]``: one output after the other."""
    zeros = x.new_zeros(*x.shape[:2], padding)
    padded = torch.cat((zeros, x, zeros), dim=2)
    kernel = weight.shape[2]
    steps = range(0, padded.shape[2] - kernel + 1, stride)
    return torch.stack([(padded[:, None, :, t : t + kernel] * weight).sum((2, 3)) for t in steps], dim=2)


def normalised(x: Tensor, norm: nn.Module, training: bool) -> Tensor:
    mean, variance = norm.running_mean, norm.running_var
    if training:
        mean, variance = x.mean((0, 2)), x.var((0, 2), correction=0)
    scaled = (x - mean[:, None]) / (variance[:, None] + 1e-5).sqrt()
    return norm.weight[:, None] * scaled + norm.bias[:, None]


def by_hand(model: Resnet1d, x: Tensor, training: bool) -> Tensor:
    x = normalised(convolved(x, model.stem.weight, 4, 38), model.stem_norm, training).clamp_min(0)
    x = torch.stack([x[:, :, t : t + 4].amax(2) for t in range(0, x.shape[2], 4)], dim=2)
    for position, block in enumerate(model.blocks):
        stride = 4 if position in (2, 4, 6) else 1
        y = normalised(convolved(x, block.conv1.weight, stride, 4), block.norm1, training).clamp_min(0)
        y = normalised(convolved(y, block.conv2.weight, 1, 4), block.norm2, training)
        if stride > 1:
            conv, norm = block.shortcut
            x = normalised(convolved(x, conv.weight, stride, 0), norm, training)
        x = (x + y).clamp_min(0)
    return x.mean(2) @ model.project.weight.T + model.project.bias


@pytest.mark.parametrize("training", [True, False])
def test_the_network_written_out(training: bool) -> None:
    torch.manual_seed(0)
    model = Resnet1d(Resnet1dConfig(width=3, embedding_dim=5)).double()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var") or (name.endswith("weight") and value.dim() == 1):
                value.uniform_(0.5, 1.5)
            elif name.endswith(("running_mean", "bias")):
                value.normal_(0, 0.2)
    x = torch.randn(3, 1, 2050).double()
    expected = by_hand(model, x, training)
    torch.testing.assert_close(model.train(training)(x), expected)


def test_every_weight_has_a_gradient_and_every_sample_counts() -> None:
    torch.manual_seed(0)
    model = Resnet1d(Resnet1dConfig(width=4, embedding_dim=7))
    model(torch.randn(4, 1, 6000)).square().sum().backward()
    for name, weight in model.named_parameters():
        assert torch.isfinite(weight.grad).all() and weight.grad.abs().max() > 0, name
    block, x = Basic1d(3, 6, 4), torch.randn(1, 3, 41, requires_grad=True)
    assert block(x).shape == (1, 6, 11)
    block.conv1(x).sum().backward()
    assert (x.grad != 0).all()  # a kernel shorter than the stride would leave some out


@pytest.mark.parametrize("length", [4, 79, 1600, 3201])
def test_any_length(length: int) -> None:
    model = Resnet1d(Resnet1dConfig(width=2, embedding_dim=16, blocks=[1, 1, 2, 1])).eval()
    out = model(torch.randn(2, 1, length))
    assert out.shape == (2, 16) and torch.isfinite(out).all()
    assert isinstance(model.project, nn.Identity)  # 8 * 2


def test_rows_are_independent_in_evaluation() -> None:
    model = Resnet1d(Resnet1dConfig(width=4)).eval()
    x = torch.randn(4, 1, 3000)
    torch.testing.assert_close(model(x)[1:3], model(x[1:3]))
