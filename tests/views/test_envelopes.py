"""Rolls, fades and masks against their definitions, row by row."""

import math

import pytest
import torch

from rayssl.views.envelopes import fade_gains, masked, rolled


def test_rolls_are_those_of_torch() -> None:
    wave, shift = torch.rand(6, 11), torch.tensor([0, 3, -3, 11, -11, 5])
    expected = torch.stack([row.roll(int(by)) for row, by in zip(wave, shift, strict=True)])
    assert torch.equal(rolled(wave, shift), expected)


@pytest.mark.parametrize(
    ("shape", "curve"),
    [(0, lambda x: x), (1, lambda x: math.log10(1 + 9 * x)), (2, lambda x: (10**x - 1) / 9)],
)
def test_fades_rise_by_their_formula(shape: int, curve: object) -> None:
    gains = fade_gains(torch.tensor([0, 4, 9]), torch.tensor([shape] * 3), 9)
    assert torch.equal(gains[0], torch.ones(9))
    for row, length in ((1, 4), (2, 9)):
        rise = torch.tensor([curve((t + 1) / (length + 1)) for t in range(length)])  # type: ignore[operator]
        torch.testing.assert_close(gains[row, :length], rise)
        assert torch.equal(gains[row, length:], torch.ones(9 - length))
    assert (gains > 0).all() and (gains.diff(dim=1) >= 0).all()


def test_logarithmic_is_above_linear_is_above_exponential() -> None:
    linear, logarithmic, exponential = fade_gains(torch.tensor([50] * 3), torch.arange(3), 100)[:, :50]
    assert (logarithmic > linear).all() and (linear > exponential).all()


def test_masks_zero_their_stretch_alone() -> None:
    wave = torch.ones(4, 10)
    out = masked(wave, torch.tensor([0, 2, 9, 5]), torch.tensor([0, 3, 1, 5]))
    zeros = [[t for t in range(10) if row[t] == 0] for row in out.tolist()]
    assert zeros == [[], [2, 3, 4], [9], [5, 6, 7, 8, 9]]
    assert torch.equal(wave, torch.ones(4, 10))
