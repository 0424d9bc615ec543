"""The method sleep on two ranks: losses, gradients, weights and queues are those of one rank."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayssl import collectives
from rayssl.memory.classes.memory import ClassMemory
from rayssl.memory.classes.settings import ClassSettings
from rayssl.training.classes import HeldClasses
from rayssl.training.context import InProcessClasses
from tests.night_runs import (
    ANCHORED_SLEEP,
    SEQUENCE,
    SLEEP_METHOD,
    build_sleep,
    night_experiment,
    sleep_batch,
    write_night_corpus,
)
from tests.ranks.test_training import OVERRIDES, same_memory, trained

pytestmark = pytest.mark.ranks
Result = dict[str, Any]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "anchors of the batch": ("sleepformer", SLEEP_METHOD),
    "anchors of the memory": ("sleepformer", ANCHORED_SLEEP),
    "the middle is scored": ("soundsleepnet", {**ANCHORED_SLEEP, "pseudo": "average"}),
    "features of the backbone": ("soundsleepnet", {**SLEEP_METHOD, "features": "backbone", "labelled_recipe": "none"}),
    "one stream": ("soundsleepnet", {"name": "sleep", "noise": {"weight": 1.0}}),
}


def _train(rank: int, world: int, corpus: str, case: str, sync: bool) -> Result:
    """Two epochs of three steps, wrapped as `rayssl.runtime.train` does; what came of it on this rank."""
    backbone, method = CASES[case]
    overrides = (*OVERRIDES, f"ray.workers={world}", f"training.sync_batchnorm={str(sync).lower()}")
    with tempfile.TemporaryDirectory(prefix="rank-") as folder:
        settings = night_experiment(Path(folder), Path(corpus), *overrides, method=method, backbone=backbone)
        return trained(settings, rank, world)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("nights")
    write_night_corpus(folder)
    return str(folder)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_are_one(ranks: Callable[..., list[Result]], corpus: str, case: str) -> None:
    two = ranks(_train, corpus, case, True, world=2, timeout=120.0)
    one = _train(0, 1, corpus, case, True)
    assert len(one["steps"]) == 6 and len({step["loss"] for step in one["steps"]}) == 6
    for name in one["steps"][0].keys() - {"train_accuracy", "confident", "step", "epoch", "kind"}:
        mine, wanted = ([step[name] for step in result["steps"]] for result in (two[0], one))
        np.testing.assert_allclose(mine, wanted, rtol=2e-4, atol=1e-7, err_msg=name)
    for result in two:
        assert (
            result["gradients"].keys() == one["gradients"].keys() and result["weights"].keys() == one["weights"].keys()
        )
        for name, expected in one["gradients"].items():
            # by length: single numbers of a deep network, small beside the others, are rounded by more
            far = np.linalg.norm(result["gradients"][name] - expected)
            assert far <= 1e-3 * np.linalg.norm(expected) + 1e-5, name
        for name, expected in one["weights"].items():
            np.testing.assert_allclose(result["weights"][name], expected, rtol=1e-3, atol=2e-5, err_msg=name)
        # features of a deep network after steps of Adam, of size 1: the rounding of all of them adds up
        same_memory(result["memory"], one["memory"], atol=1e-3)
    assert bool(one["memory"]) == (CASES[case][1].get("ssc", {}).get("anchors") == "memory")
    assert two[0]["classes"] == one["classes"]
    for name, value in two[0]["weights"].items():  # between the ranks there is not even rounding
        np.testing.assert_array_equal(two[1]["weights"][name], value, err_msg=name)


def test_without_synchronised_statistics_ranks_differ(ranks: Callable[..., list[Result]], corpus: str) -> None:
    """So that the test above can fail."""
    two = ranks(_train, corpus, "one stream", False, world=2)
    one = _train(0, 1, corpus, "one stream", True)
    difference = max(np.abs(two[0]["gradients"][name] - value).max() for name, value in one["gradients"].items())
    assert difference > 1e-4


WIDTH = 5


def _rare(rank: int, world: int) -> Result:
    """In the first step one night of rank 0 has REM, in the second none has. L_SSC of the second step."""
    method = build_sleep(ssc={"weight": 1.0, "temperature": 0.5, "anchors": "memory", "queue": 3})
    settings = ClassSettings(classes=4, dim=WIDTH, length=3, anchors=3)
    classes = HeldClasses(settings, InProcessClasses(ClassMemory(settings)), torch.device("cpu"))
    stages = [[[3, 0, 1, 1], [0, 1, 2, 2]], [[0, 0, 1, 1], [2, 1, 1, 0]]]
    own = slice(rank * 2 // world, (rank + 1) * 2 // world)
    for step, labels in enumerate(stages):
        generator = torch.Generator().manual_seed(step)
        sizes = dict.fromkeys(("labelled", "weak", "strong"), 4) | dict.fromkeys(
            ("labelled_rows", "weak_rows", "strong_rows"), WIDTH
        )
        out = {
            name: torch.randn(2, SEQUENCE, width, generator=generator, dtype=torch.float64)[own].requires_grad_()
            for name, width in sizes.items()
        }
        ids = [[8 * number + k for k in range(SEQUENCE)] for number in range(2)][own]
        batch = sleep_batch(ids, ids, labels[own], step=step)
        recall = classes.recall(method.consult(out, batch), step)
    found = method.step(out, batch, recall)
    gradient = torch.autograd.grad(found.loss, out["weak_rows"])[0] / collectives.world()
    return {"rem": recall.rows[3].numpy(), "filled": recall.filled.tolist(), "ssc": float(found.terms["ssc"]),
            "gradient": gradient.numpy()}  # fmt: skip


def test_a_stage_that_no_batch_has_has_anchors_on_every_rank(ranks: Callable[..., list[Result]]) -> None:
    two, one = ranks(_rare, world=2), _rare(0, 1)
    assert one["filled"][3] == 1 and one["rem"][0].any()
    for result in two:
        assert result["filled"] == one["filled"]
        np.testing.assert_array_equal(result["rem"], one["rem"])
        assert result["ssc"] == pytest.approx(one["ssc"], rel=1e-9)
    np.testing.assert_allclose(np.concatenate([result["gradient"] for result in two]), one["gradient"], rtol=1e-6)
