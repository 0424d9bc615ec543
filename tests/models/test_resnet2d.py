"""ResNet-18 against torchvision's, in size, value and gradients for the same weights."""

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from rayssl.models.resnet2d import Resnet2d, Resnet2dConfig


def size(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def test_published_size() -> None:
    """11,689,512 of the original less its last layer of 512 x 1000 + 1000."""
    with torch.device("meta"):
        assert size(Resnet2d(Resnet2dConfig(), 3)) == 11_689_512 - 513_000 == 11_176_512
        assert size(Resnet2d(Resnet2dConfig(), 1)) == 11_176_512 - 2 * 64 * 49
        assert size(Resnet2d(Resnet2dConfig(embedding_dim=128), 3)) == 11_176_512 + 513 * 128


def their_name(name: str) -> str:
    """Torchvision's name for one of our weights or buffers, at two blocks a stage."""
    first, rest = name.split(".", 1)
    if first != "blocks":
        return {"stem": "conv1", "stem_norm": "bn1"}[first] + f".{rest}"
    position, rest = rest.split(".", 1)
    rest = rest.replace("norm", "bn").replace("shortcut", "downsample")
    return f"layer{int(position) // 2 + 1}.{int(position) % 2}.{rest}"


@pytest.mark.parametrize("training", [True, False])
def test_torchvision_parity(training: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = Resnet2d(Resnet2dConfig(), 3), models.resnet18()
    theirs.fc = nn.Identity()
    with torch.no_grad():
        for name, value in ours.state_dict().items():
            if name.endswith("running_var") or (name.endswith("weight") and value.dim() == 1):
                value.uniform_(0.5, 1.5)
            elif name.endswith(("running_mean", "bias")):
                value.normal_(0, 0.2)
    theirs.load_state_dict({their_name(name): value for name, value in ours.state_dict().items()})
    ours.double().train(training)
    theirs.double().train(training)
    x = torch.randn(3, 3, 40, 37).double()
    out, expected = ours(x), theirs(x)
    torch.testing.assert_close(out, expected)
    cotangent = torch.randn_like(out)
    out.backward(cotangent)
    expected.backward(cotangent)
    gradients = dict(theirs.named_parameters())
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[their_name(name)].grad, msg=name)
    torch.testing.assert_close(
        {their_name(name): buffer for name, buffer in ours.named_buffers()}, dict(theirs.named_buffers())
    )


def test_one_channel_may_lack_its_axis() -> None:
    model = Resnet2d(Resnet2dConfig(width=4, embedding_dim=7), 1).eval()
    x = torch.randn(2, 40, 30)
    assert torch.equal(model(x), model(x[:, None])) and model(x).shape == (2, 7)


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (128, 126), (40, 401)])
def test_any_size_of_plane(shape: tuple[int, int]) -> None:
    model = Resnet2d(Resnet2dConfig(width=2, embedding_dim=16, blocks=[1, 1, 2, 1]), 3).eval()
    out = model(torch.randn(2, 3, *shape))
    assert out.shape == (2, 16) and torch.isfinite(out).all()
    assert isinstance(model.project, nn.Identity)  # 8 * 2


def test_rows_are_independent_in_evaluation() -> None:
    model = Resnet2d(Resnet2dConfig(width=4), 3).eval()
    x = torch.randn(4, 3, 32, 30)
    torch.testing.assert_close(model(x)[1:3], model(x[1:3]))


def test_without_a_projection_the_embedding_is_finer_than_bfloat16() -> None:
    def embedded(model: Resnet2d) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(torch.randn(2, 1, 40, 90))

    torch.manual_seed(0)
    out = embedded(Resnet2d(Resnet2dConfig(width=4, embedding_dim=32), 1))
    assert out.dtype == torch.float32 and not torch.equal(out, out.bfloat16().float())
