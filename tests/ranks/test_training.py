"""Two ranks with half the batch each train as one rank with all of it: losses, gradients, weights and memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from torch.nn import functional

from rayssl.experiment.config import Experiment
from tests.anchored import ANCHORED_METHOD
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
    experiment,
    records,
    remembered,
    write_corpus,
)

pytestmark = pytest.mark.ranks
Result = dict[str, Any]
METHODS: dict[str, dict[str, Any]] = {
    "simclr": {"name": "simclr", "temperature": 0.5, "projector": {"sizes": [12, 8]}},
    "ssps": {**SSPS_METHOD, "over": {"name": "simclr", "temperature": 0.5}},
    "ssps_fill": {**SSPS_METHOD, "over": {"name": "simclr", "temperature": 0.5}, "references": "fill"},
    "ssps_ahead": {**SSPS_METHOD, "over": {"name": "simclr", "temperature": 0.5}},
    "supervised": {"name": "supervised", "scale": 5.0},
    "dino": DINO_METHOD,
    "ssps_dino": {**SSPS_METHOD, "over": DINO_METHOD},
    "moco": {**MOCO_METHOD, "projector": {"sizes": [12, 8]}},
    "ssps_moco": {**SSPS_METHOD, "over": {**MOCO_METHOD, "negatives": "others", "key_statistics": "average"}},
    "ssps_moco_published": {
        **SSPS_METHOD,
        "over": {**MOCO_METHOD, "symmetric": True, "shuffle": True, "enqueue": "recalled"},
    },
    "swav": SWAV_METHOD,
    "ssps_swav": {**SSPS_METHOD, "over": SWAV_METHOD},
    "vicreg": VICREG_METHOD,
    "ssps_vicreg": {**SSPS_METHOD, "over": VICREG_METHOD},
    "sdpn": SDPN_METHOD,
    "ssps_sdpn": {**SSPS_METHOD, "over": SDPN_METHOD},
    "pseudo_speakers": PSEUDO_METHOD,
    "daso": DASO_METHOD,
    "usadtm": USADTM_METHOD,
    "usadtm_published": {**USADTM_METHOD, "rule": "cosine", "features": "current", "warmup_steps": 2},
    "anchored": ANCHORED_METHOD,
    "clar": {"name": "clar", "projector": {"sizes": [12, 8]}, "labels": "cross_entropy"},
    "clar_published": {"name": "clar", "projector": {"sizes": [12, 8]}, "labels": "cross_entropy"}
    | {"cross_entropy_over": "sum", "classifier_on": "projection"},
    "clar_stream": {
        "name": "clar",
        "projector": {"sizes": [12, 8]},
        "labels": "cross_entropy",
        "labels_from": "stream",
    },
    "clar_other_classes": {
        "name": "clar",
        "projector": {"sizes": [12, 8]},
        "labels": "cross_entropy",
        "negatives": "other_classes",
    },
    "supcon": {"name": "clar", "projector": {"sizes": [12, 8]}, "labels": "supcon"},
}
LEARNERS = (
    "daso",
    "usadtm",
    "usadtm_published",
    "anchored",
    "clar",
    "clar_published",
    "clar_stream",
    "clar_other_classes",
    "supcon",
)  # from the labels of a split
# SGD with small steps: larger ones amplify rounding, and Adam makes a whole step of a gradient that is nothing but it
OVERRIDES = (
    "training.optimiser={name: sgd, lr: 0.002, momentum: 0.5}",
    "training.sync_batchnorm=true",
    "views.distort.noise.p=1.0",
)


def _train(rank: int, world: int, corpus: str, method: str, sync: bool) -> Result:
    """Three epochs of four steps, wrapped as `rayssl.runtime.train` does; what came of it on this rank."""
    with tempfile.TemporaryDirectory(prefix="rank-") as folder:
        return _train_in(Path(folder), rank, world, corpus, method, sync)


def _train_in(folder: Path, rank: int, world: int, corpus: str, method: str, sync: bool) -> Result:
    overrides = (*OVERRIDES, f"ray.workers={world}", f"training.sync_batchnorm={str(sync).lower()}")
    # as many steps as there are passes of the others
    few = (*FEW, "training.epoch_steps=4") if method in LEARNERS else ()
    # groups of three steps and one; some steps are computed again on both ranks
    few += ("memory.ahead=3", "training.verify_every=5") if method == "ssps_ahead" else ()
    return trained(experiment(folder, Path(corpus), *overrides, *few, method=METHODS[method]), rank, world)


def trained(settings: Experiment, rank: int, world: int) -> Result:
    """What the training of ``settings`` gives on this rank, wrapped as `rayssl.runtime.train` does."""
    loop = build(settings)
    gradients: dict[str, np.ndarray] = {}

    def first(*_: object) -> None:
        """Of the first step that has any: a contrast with a queue that is still empty has none."""
        if not any(gradient.any() for gradient in gradients.values()):
            found = {name: p.grad for name, p in loop.state.method.named_parameters() if p.grad is not None}
            gradients.update({name: gradient.numpy().copy() for name, gradient in found.items()})

    loop.optimiser.register_step_pre_hook(first)
    # smooth in place of ReLU: where its input is next to zero, rounding decides over a whole gradient
    with mock.patch.object(functional, "relu", lambda x, inplace=False: functional.softplus(x)):
        loop.fit(batches(settings, loop))
    return {
        "gradients": gradients,
        "weights": {name: value.numpy() for name, value in loop.state.method.state_dict().items()},
        "memory": remembered(loop),
        "steps": records(settings.run, "step") if rank == 0 else [],
        "epochs": records(settings.run, "epoch") if rank == 0 else [],
        "classes": records(settings.run, "classes") if rank == 0 else [],
    }


def _close(one: dict[str, np.ndarray], other: dict[str, np.ndarray], rtol: float, atol: float) -> None:
    assert one.keys() == other.keys()
    for name, expected in other.items():
        np.testing.assert_allclose(one[name], expected, rtol=rtol, atol=atol, err_msg=name)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, splits=SPLITS)
    return str(folder)


@pytest.mark.parametrize("method", list(METHODS))
def test_two_ranks_are_one(ranks: Callable[..., list[Result]], corpus: str, method: str) -> None:
    two = ranks(_train, corpus, method, True, world=2)
    one = _train(0, 1, corpus, method, True)
    assert len(one["steps"]) == 12 and len({step["loss"] for step in one["steps"]}) > 6
    losses, expected = ([step["loss"] for step in result["steps"]] for result in (two[0], one))
    np.testing.assert_allclose(losses, expected, rtol=2e-5)
    means, wanted = ([epoch["loss"] for epoch in result["epochs"]] for result in (two[0], one))
    np.testing.assert_allclose(means, wanted, rtol=2e-5)
    for result in two:
        _close(result["gradients"], one["gradients"], rtol=1e-3, atol=1e-5)
        _close(result["weights"], one["weights"], rtol=1e-3, atol=2e-5)
        same_memory(result["memory"], one["memory"])
    assert two[0]["classes"] == one["classes"] and bool(one["classes"]) == (method in LEARNERS[:4])
    # between the ranks there is not even rounding
    for name, value in two[0]["weights"].items():
        np.testing.assert_array_equal(two[1]["weights"][name], value, err_msg=name)
    if method.startswith("ssps"):
        figures = ("coverage", "pool_size", "speaker_accuracy", "nmi_speaker", "clusters_used", "queue_fill")
        for mine, theirs in zip(two[0]["epochs"], one["epochs"], strict=True):
            assert [mine.get(name) for name in figures] == [theirs.get(name) for name in figures]
        assert one["epochs"][-1]["coverage"] > 0.3


def same_memory(mine: dict[str, np.ndarray], theirs: dict[str, np.ndarray], atol: float = 1e-4) -> None:
    """Exactly the same utterances, ages and clusters; embeddings up to rounding."""
    assert mine.keys() == theirs.keys()
    for name, expected in theirs.items():
        if name == "counters":  # read, and so reset, on rank 0 only
            continue
        if np.issubdtype(expected.dtype, np.floating):
            np.testing.assert_allclose(mine[name], expected, rtol=1e-3, atol=atol, err_msg=name)
        else:
            np.testing.assert_array_equal(mine[name], expected, err_msg=name)


def test_without_synchronised_statistics_ranks_differ(ranks: Callable[..., list[Result]], corpus: str) -> None:
    """So that the test above can fail: each rank's own batch normalisation is another function."""
    two = ranks(_train, corpus, "simclr", False, world=2)
    one = _train(0, 1, corpus, "simclr", True)
    difference = max(np.abs(two[0]["gradients"][name] - value).max() for name, value in one["gradients"].items())
    assert difference > 1e-3
