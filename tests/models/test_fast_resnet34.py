"""Fast ResNet-34: the published size and strides, poolings, gradients everywhere."""

import pytest
import torch

from rayssl.models.fast_resnet34 import AttentivePooling, FastResnet34, FastResnet34Config


def test_published_size() -> None:
    with torch.device("meta"):
        model = FastResnet34(FastResnet34Config(), 40)
    # The paper's Table 2 gives 1.4 million
    assert sum(weight.numel() for weight in model.parameters()) / 1e6 == pytest.approx(1.4, abs=0.05)


@pytest.mark.parametrize(("gates", "weights"), [(False, 1_416_368), (True, 1_437_078)])
def test_the_public_code_for_ssps_has_gates(gates: bool, weights: int) -> None:
    """1,437,078 parameters in theolepage/sslsv at 9a9bf49, with 40 bands."""
    with torch.device("meta"):
        model = FastResnet34(FastResnet34Config(squeeze_excitation=gates), 40)
    assert sum(weight.numel() for weight in model.parameters()) == weights


def test_strides() -> None:
    model = FastResnet34(FastResnet34Config(channels=4), 40).eval()
    shapes: list[tuple[int, ...]] = []
    model.stem.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    model(torch.randn(1, 40, 200))
    assert [shapes[k] for k in (0, 3, 7, 13, 16)] == [
        (1, 4, 20, 200),
        (1, 4, 20, 200),
        (1, 8, 10, 100),
        (1, 16, 5, 50),
        (1, 32, 5, 50),
    ]


@pytest.mark.parametrize("pooling", ["sap", "asp"])
@pytest.mark.parametrize("squeeze_excitation", [False, True])
def test_every_weight_has_a_gradient(pooling: str, squeeze_excitation: bool) -> None:
    config = FastResnet34Config.model_validate(
        {"channels": 4, "embedding_dim": 7, "pooling": pooling, "squeeze_excitation": squeeze_excitation}
    )
    torch.manual_seed(0)
    model = FastResnet34(config, 40)
    for name, weight in model.named_parameters():
        if name.endswith("squeeze.bias"):
            # so narrow a squeeze may otherwise be negative, hence without gradient, for all three rows
            torch.nn.init.constant_(weight, 2.0)
    out = model(torch.randn(3, 40, 60))
    assert out.shape == (3, 7)
    out.square().sum().backward()
    for name, weight in model.named_parameters():
        assert torch.isfinite(weight.grad).all(), name
        assert weight.grad.abs().max() > 0, name


def test_pooling_is_the_weighted_mean_and_deviation() -> None:
    torch.manual_seed(0)
    pool = AttentivePooling(5, deviation=True).double()
    x = torch.randn(2, 5, 9).double()
    for row, result in zip(x, pool(x), strict=True):
        scores = torch.stack([pool.query.weight[0] @ torch.tanh(pool.hidden(frame)) for frame in row.T])
        weights = scores.exp() / scores.exp().sum()
        mean = sum(weight * frame for weight, frame in zip(weights, row.T, strict=True))
        square = sum(weight * frame**2 for weight, frame in zip(weights, row.T, strict=True))
        torch.testing.assert_close(result, torch.cat((mean, (square - mean**2).sqrt())))
