"""The Transformer's block against torch's own, and dropout by keys."""

import torch
from torch import nn

from rayssl.models.attention import AttentionBlock, keyed_dropout
from rayssl.random.draws import fold
from rayssl.random.draws_torch import keys_torch

THEIRS = {
    "norm_attention": "norm1",
    "norm_hidden": "norm2",
    "in_project": "self_attn.in_proj",
    "out_project": "self_attn.out_proj",
    "widen": "linear1",
    "narrow": "linear2",
}


def their_name(name: str) -> str:
    module, _, kind = name.rpartition(".")
    return f"{THEIRS[module]}{'_' if module == 'in_project' else '.'}{kind}"


def test_torch_parity_in_value_and_gradient() -> None:
    torch.manual_seed(0)
    ours = AttentionBlock(12, heads=3, hidden=20).double()
    theirs = nn.TransformerEncoderLayer(12, 3, 20, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    with torch.no_grad():
        for weight in ours.parameters():
            weight.normal_(0, 0.4)
    theirs.double().load_state_dict({their_name(name): value for name, value in ours.state_dict().items()})
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    out, expected = ours(x), theirs(x)
    torch.testing.assert_close(out, expected)
    cotangent = torch.randn_like(out)
    out.backward(cotangent)
    expected.backward(cotangent)
    gradients = dict(theirs.named_parameters())
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[their_name(name)].grad, msg=name)


def test_dropout_depends_on_each_rows_key_alone() -> None:
    x, keys = torch.ones(200, 5, 8), keys_torch(fold(1), torch.arange(200))
    out = keyed_dropout(x, keys, 0.3)
    assert torch.equal(out.unique(), torch.tensor([0.0, 1 / 0.7]))
    assert abs((out == 0).float().mean() - 0.3) < 0.02
    assert torch.equal(keyed_dropout(x[7:9], keys[7:9], 0.3), out[7:9])
    assert not torch.equal(keyed_dropout(x, keys, 0.3, stream=1), out)
    assert not torch.equal(out[0], out[1])
    assert keyed_dropout(x, None, 0.3) is x and keyed_dropout(x, keys, 0.0) is x
