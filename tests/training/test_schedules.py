"""Learning rates as functions of the step."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from rayssl.training.schedules import ScheduleConfig, learning_rate


def rates(config: ScheduleConfig, base: float = 0.1, steps: int = 4, epochs: int = 20) -> list[float]:
    return [
        learning_rate(config, base, step=step, steps_per_epoch=steps, epochs=epochs) for step in range(steps * epochs)
    ]


def test_step_is_the_published_decay() -> None:
    """x 0.95 every 5 epochs, by default."""
    assert rates(ScheduleConfig()) == pytest.approx([0.1 * 0.95 ** (step // 20) for step in range(80)])


def test_constant() -> None:
    assert set(rates(ScheduleConfig(name="constant"))) == {0.1}


def test_cosine_ends_at_its_final_rate() -> None:
    made = rates(ScheduleConfig(name="cosine", final_lr=1e-3))
    assert made[0] == 0.1 and made[-1] == pytest.approx(1e-3, rel=1e-9)
    assert all(a > b for a, b in pairwise(made))
    middle = learning_rate(ScheduleConfig(name="cosine", final_lr=0), 0.1, step=40, steps_per_epoch=81, epochs=1)
    assert middle == pytest.approx(0.05)


@pytest.mark.parametrize("name", ["step", "cosine", "constant"])
def test_warmup_rises_linearly_to_the_base(name: str) -> None:
    made = rates(ScheduleConfig.model_validate({"name": name, "warmup_epochs": 2.5}))
    assert made[:10] == pytest.approx([0.1 * (step + 1) / 10 for step in range(10)])
    assert made[10] == pytest.approx(0.1) and max(made) <= 0.1 * (1 + 1e-12)


@pytest.mark.parametrize("name", ["step", "cosine", "constant"])
def test_edges_are_finite(name: str) -> None:
    """A run of one step, and warm-up to the very end."""
    for warmup, steps in ((0.0, 1), (1.0, 3)):
        config = ScheduleConfig.model_validate({"name": name, "warmup_epochs": warmup})
        made = rates(config, steps=steps, epochs=1)
        assert all(math.isfinite(rate) and 0 < rate <= 0.1 * (1 + 1e-12) for rate in made)
