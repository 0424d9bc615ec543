"""The LSTM that is written out step by step equals torch's."""

import pytest
import torch

from rayssl.models.recurrent import BiLSTM


@pytest.mark.parametrize("steps", [1, 4, 6])
def test_unrolled_equals_torch_in_value_and_gradient(steps: int) -> None:
    torch.manual_seed(0)
    model = BiLSTM(3, 5, layers=2, longest=6).double()
    x = torch.randn(2, steps, 3, dtype=torch.float64, requires_grad=True)
    whole, unrolled = model(x), model.unrolled(x)
    assert whole.shape == (2, steps, 10)
    torch.testing.assert_close(unrolled, whole)
    cotangent = torch.randn_like(whole)
    weights = [x, *model.parameters()]
    found, expected = (torch.autograd.grad((y * cotangent).sum(), weights) for y in (unrolled, whole))
    torch.testing.assert_close(found, expected)
