"""``training.accumulate``: a step in parts has the loss and the gradient of the whole batch, for every method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from rayssl.errors import ConfigError
from rayssl.experiment.config import Experiment
from rayssl.methods.registry import METHODS as REGISTRY
from rayssl.training.filling import fill
from rayssl.training.passes import InParts
from rayssl.training.state import TrainingConfig
from tests.night_runs import ANCHORED_SLEEP, night_experiment, write_night_corpus
from tests.runs import (
    DASO_METHOD,
    DINO_METHOD,
    FEW,
    MOCO_METHOD,
    PSEUDO_METHOD,
    SDPN_METHOD,
    SPLITS,
    SSPS_METHOD,
    SWAV_METHOD,
    USADTM_METHOD,
    VICREG_METHOD,
    batches,
    build,
    content,
    experiment,
    fit,
    write_corpus,
)

LABELS = ("labels.split=few", "training.epoch_steps=3")
METHODS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "simclr": ({"name": "simclr", "temperature": 0.5}, ()),
    "moco": (MOCO_METHOD, ()),
    "dino": (DINO_METHOD, ()),
    "swav": (SWAV_METHOD, ()),
    "vicreg": (VICREG_METHOD, ()),
    "sdpn": (SDPN_METHOD, ()),
    "ssps": (SSPS_METHOD, ()),
    "clar": ({"name": "clar", "labels": "cross_entropy", "projector": {"sizes": [12, 8]}}, LABELS),
    "clar_stream": (
        {"name": "clar", "labels": "cross_entropy", "labels_from": "stream", "projector": {"sizes": [12, 8]}},
        FEW,
    ),
    "clar_other_classes": (
        {"name": "clar", "labels": "cross_entropy", "negatives": "other_classes", "projector": {"sizes": [12, 8]}},
        LABELS,
    ),
    "supervised": ({"name": "supervised", "scale": 5.0}, ()),
    "pseudo_speakers": (PSEUDO_METHOD, ()),
    "classifier": ({"name": "classifier"}, (*LABELS, "training.batch=6")),
    "fixmatch": ({"name": "fixmatch", "threshold": 0.3}, FEW),
    "usadtm": (USADTM_METHOD, FEW),
    "daso": (DASO_METHOD, FEW),
}
SOON = ("simclr", "daso")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, (9, 10, 6), splits=SPLITS)
    return folder


def frozen_statistics(module: torch.nn.Module) -> None:
    """Batch normalisation by its running statistics: what a row becomes does not depend on the other rows."""
    for part in module.modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            part.eval()


def trained(settings: Experiment, steps: int = 2) -> tuple[list[float], dict[str, Tensor]]:
    """The losses and the last gradients of some steps, with `frozen_statistics`."""
    loop, losses = build(settings), list[float]()
    loop.state.method.train()
    frozen_statistics(loop.state.method)
    gradients: dict[str, Tensor] = {}

    def seen(*_: object) -> None:
        gradients.update({n: p.grad.clone() for n, p in loop.state.method.named_parameters() if p.grad is not None})

    loop.optimiser.register_step_pre_hook(seen)
    rows = batches(settings, loop)
    for _ in range(steps):
        raw = loop._next(rows)
        assert raw is not None
        if raw["fill"]:
            raw = fill(loop, raw, rows)
            loop._begin_epoch()
        loop._train_step(raw, rows)
        losses.append(loop._epoch.terms["loss"].item())
    return losses, gradients


def same(one: tuple[list[float], dict[str, Tensor]], other: tuple[list[float], dict[str, Tensor]]) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    assert one[1].keys() == other[1].keys() and any(gradient.any() for gradient in one[1].values())
    for name, gradient in other[1].items():
        torch.testing.assert_close(one[1][name], gradient, rtol=2e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", [n if n in SOON else pytest.param(n, marks=pytest.mark.long) for n in METHODS])
def test_parts_are_the_whole_batch(corpus: Path, tmp_path: Path, name: str) -> None:
    """Eight rows in three parts of three, three and two; of the labelled stream four, in parts of two, one and one."""
    method, overrides = METHODS[name]
    # small steps: large ones would carry rounding into the second step
    plain = ("training.optimiser={name: sgd, lr: 0.001}", *overrides)
    whole = trained(experiment(tmp_path / "whole", corpus, *plain, method=method))
    parts = trained(experiment(tmp_path / "parts", corpus, *plain, "training.accumulate=3", method=method))
    same(parts, whole)


def test_no_method_is_left_out() -> None:
    """`sleep` has a test of its own."""
    assert {method["name"] for method, _ in METHODS.values()} == set(REGISTRY.names()) - {"sleep"}


@pytest.mark.long
def test_parts_of_nights_drop_out_the_same_units_twice(tmp_path: Path) -> None:
    """Both passes draw alike, or the gradient would be of another loss. One part is the whole batch."""
    write_night_corpus(tmp_path / "nights")
    whole, parts = (
        night_experiment(tmp_path / f"run{n}", tmp_path / "nights", method=ANCHORED_SLEEP) for n in range(2)
    )
    loops = build(whole), build(parts)
    state = loops[1].state
    loops[1]._passes = InParts(state.method, 1, state.context.device, loops[1].precision)
    for loop, settings in zip(loops, (whole, parts), strict=True):
        torch.manual_seed(7)
        loop.fit(batches(settings, loop))
    torch.testing.assert_close(content(loops[1]), content(loops[0]), rtol=1e-5, atol=1e-6)


def test_running_statistics_move_once_for_each_part(corpus: Path, tmp_path: Path) -> None:
    """Not in the pass without a graph; and a run in parts goes to its end."""
    loop = fit(experiment(tmp_path, corpus, "training.accumulate=2", "training.epochs=2", method=SSPS_METHOD))
    counts = [buffer for name, buffer in loop.state.method.named_buffers() if name.endswith("num_batches_tracked")]
    assert loop.step == 6 and counts and all(count == 12 for count in counts)


def test_fewer_rows_than_parts(corpus: Path, tmp_path: Path) -> None:
    loop = build(settings := experiment(tmp_path, corpus, "training.accumulate=9", method={"name": "simclr"}))
    with pytest.raises(ConfigError, match=r"^training\.accumulate=9: a rank has only 8 rows .* at most 8, or raise"):
        loop.fit(batches(settings, loop))


def test_a_step_in_parts_is_not_verified() -> None:
    with pytest.raises(ValidationError, match="verify_every: computes a whole batch at once"):
        TrainingConfig(accumulate=2, verify_every=5)
