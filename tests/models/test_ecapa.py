"""ECAPA-TDNN against speechbrain's, value and gradients, for the same weights."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from rayssl.models import ecapa
from rayssl.models.ecapa import Ecapa, EcapaConfig

speechbrain = pytest.importorskip("speechbrain.lobes.models.ECAPA_TDNN")

SMALL = EcapaConfig(channels=16, embedding_dim=12, mfa_channels=24, attention_channels=8, se_channels=6, scale=4)


def twin(config: EcapaConfig, features: int) -> nn.Module:
    mfa = config.mfa_channels or 3 * config.channels
    return speechbrain.ECAPA_TDNN(
        features,
        lin_neurons=config.embedding_dim,
        channels=[config.channels] * 4 + [mfa],
        attention_channels=config.attention_channels,
        se_channels=config.se_channels,
        res2net_scale=config.scale,
    )


def their_name(name: str) -> str:
    """Speechbrain's name for one of our weights or buffers."""
    module, leaf = name.rsplit(".", 1)
    parts = module.split(".")
    if parts[0] == "stem":
        prefix, rest = "blocks.0", parts[1:]
    elif parts[0] == "blocks":
        prefix, rest = f"blocks.{int(parts[1]) + 1}", parts[2:]
        if rest[0] == "groups":
            prefix, rest = f"{prefix}.res2net_block.blocks.{rest[1]}", rest[2:]
        elif rest[0] in ("before", "after"):
            prefix, rest = f"{prefix}.{'tdnn1' if rest[0] == 'before' else 'tdnn2'}", rest[1:]
        else:
            return f"{prefix}.se_block.{'conv1' if rest[0] == 'squeeze' else 'conv2'}.conv.{leaf}"
    elif parts[0] == "mfa":
        prefix, rest = "mfa", parts[1:]
    elif parts[0] == "pool":
        inner = {"context": "asp.tdnn.conv.conv", "norm": "asp.tdnn.norm.norm", "score": "asp.conv.conv"}
        return f"{inner[parts[1]]}.{leaf}"
    else:
        return {"pool_norm": "asp_bn.norm", "project": "fc.conv"}[parts[0]] + f".{leaf}"
    return f"{prefix}.{rest[0]}.{rest[0]}.{leaf}"


def pair(config: EcapaConfig, features: int) -> tuple[Ecapa, nn.Module]:
    torch.manual_seed(3)
    ours, theirs = Ecapa(config, features), twin(config, features)
    with torch.no_grad():
        for name, value in ours.state_dict().items():
            if name.endswith(("norm.weight", "running_var")):
                value.uniform_(0.5, 1.5)
            elif name.endswith(("norm.bias", "running_mean")):
                value.normal_(0, 0.2)
    state = theirs.state_dict()
    mapped = {their_name(name): value for name, value in ours.state_dict().items()}
    assert mapped.keys() == state.keys()
    theirs.load_state_dict({name: value.reshape(state[name].shape) for name, value in mapped.items()})
    return ours, theirs


@pytest.mark.parametrize("repeated", [True, False], ids=["batched product", "convolution"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_speechbrain_parity(
    dtype: torch.dtype, training: bool, repeated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ecapa, "_LARGEST_REPEATED", 1 << 22 if repeated else 0)
    ours, theirs = pair(SMALL, 10)
    ours.to(dtype).train(training)
    theirs.to(dtype).train(training)
    x = torch.randn(6, 10, 40, dtype=dtype, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    tolerance = {"rtol": 1e-5, "atol": 1e-5}
    out, expected = ours(x), theirs(y.transpose(1, 2))[:, 0]
    torch.testing.assert_close(out, expected, **tolerance)
    cotangent = torch.randn_like(out)
    out.backward(cotangent)
    expected.backward(cotangent)
    scale = y.grad.abs().max()
    torch.testing.assert_close(x.grad / scale, y.grad / scale, **tolerance)
    gradients = {name: weight.grad for name, weight in theirs.named_parameters()}
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, weight in ours.named_parameters():
        expected_gradient = gradients[their_name(name)].reshape(weight.shape)
        torch.testing.assert_close(weight.grad / largest, expected_gradient / largest, **tolerance, msg=name)
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, theirs.state_dict()[their_name(name)], **tolerance)


@pytest.mark.parametrize(("channels", "millions"), [(512, 6.2), (1024, 14.7)])
def test_published_sizes(channels: int, millions: float) -> None:
    """Table 1 of the paper, which aggregates into 1536 channels at both sizes."""
    config = EcapaConfig(channels=channels, mfa_channels=1536)
    with torch.device("meta"):
        ours = Ecapa(config, 80)
    count = sum(weight.numel() for weight in ours.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.1)


def test_channels_that_do_not_split_are_refused() -> None:
    with pytest.raises(ValidationError, match="multiple of 'scale'"):
        EcapaConfig(channels=100)


def test_rows_are_independent_in_evaluation() -> None:
    ours, _ = pair(SMALL, 10)
    ours.eval()
    x = torch.randn(4, 10, 30)
    torch.testing.assert_close(ours(x)[1:3], ours(x[1:3]))


def test_silent_features_have_finite_gradients() -> None:
    ours, _ = pair(SMALL, 10)
    ours(torch.zeros(4, 10, 30)).square().sum().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in ours.parameters())
