"""The method sleep interrupted after every step and resumed: the same bits of weights, moments, average and queues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rayssl.memory.classes.memory import ClassMemory
from rayssl.memory.classes.settings import ClassSettings
from rayssl.training import checkpoint
from rayssl.training.classes import Classes
from rayssl.training.context import InProcessClasses
from tests.night_runs import ANCHORED_SLEEP, SLEEP_METHOD, night_experiment, write_night_corpus
from tests.runs import batches, build, fit, records
from tests.training.test_resume import content

STEPS = 6  # two epochs of three
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "anchors of the memory": ("soundsleepnet", ANCHORED_SLEEP),
    "sleepformer": ("sleepformer", {**ANCHORED_SLEEP, "pseudo": "average"}),
    "anchors of the batch": ("soundsleepnet", SLEEP_METHOD),
    "one stream": ("soundsleepnet", {"name": "sleep", "noise": {"weight": 1.0}}),
}
QUICK = ("anchors of the memory",)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nights")
    write_night_corpus(folder)
    return folder


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.long) for case in CASES]
)
def test_interrupted_after_every_step(corpus: Path, tmp_path: Path, case: str) -> None:
    backbone, method = CASES[case]
    whole = night_experiment(tmp_path / "whole", corpus, method=method, backbone=backbone)
    fresh = {key: value.clone() for key, value in build(whole).state.method.state_dict().items()}
    expected = content(fit(whole))
    assert ("classes.rows" in expected["memory"]) == ("memory" in case or backbone == "sleepformer")
    for key in ("average.classifier.linear.weight", "model.classifier.linear.bias"):
        assert not torch.equal(fresh[key], expected["weights"][key])
    settings = night_experiment(
        tmp_path / "cut", corpus, "training.checkpoints.every_steps=1", method=method, backbone=backbone
    )
    lives = 0
    while not checkpoint.steps(settings.run) or checkpoint.steps(settings.run)[-1] < STEPS - 1:
        fit(settings, 1)
        lives += 1
    assert lives > STEPS / 2
    torch.testing.assert_close(content(fit(settings)), expected, rtol=0, atol=0)
    for kind in ("step", "epoch", "classes"):
        assert records(settings.run, kind) == records(whole.run, kind)


def test_the_queues_are_in_the_checkpoint_and_in_use(corpus: Path, tmp_path: Path) -> None:
    """Half the steps, and the rest without the queues of the first half: another run. So the test above can fail."""
    whole = night_experiment(tmp_path / "whole", corpus, method=ANCHORED_SLEEP, backbone="soundsleepnet")
    queues = content(fit(whole))["memory"]
    assert queues["classes.pushed"].min() > 0 and queues["classes.pushed"].max() > 6  # one of them went round
    other = night_experiment(
        tmp_path / "cut", corpus, "training.checkpoints.every_steps=3", method=ANCHORED_SLEEP, backbone="soundsleepnet"
    )
    fit(other, 4)
    loop = build(other)
    assert loop.step == 3 and isinstance(loop.state.prototypes, InProcessClasses)
    memory = loop.state.prototypes.memory
    assert memory.recall(3).filled.sum() > 0
    sizes = ClassSettings(classes=4, dim=memory.dim, length=6, anchors=6)
    memory.load_state_dict(ClassMemory(sizes).state_dict())
    loop.classes = Classes(sizes, loop.state.prototypes, torch.device("cpu"))
    loop.fit(batches(other, loop))
    assert records(other.run, "step")[3]["ssc"] != records(whole.run, "step")[3]["ssc"]


def test_a_run_begins_with_the_weights_of_another(corpus: Path, tmp_path: Path) -> None:
    """Of one with other terms; its average too. The queues begin empty."""
    first = night_experiment(tmp_path / "first", corpus, method={"name": "sleep", "noise": {"weight": 1.0}})
    trained = content(fit(first))["weights"]
    method = {**ANCHORED_SLEEP, "start_from": str(tmp_path / "first")}
    begun = build(night_experiment(tmp_path / "second", corpus, method=method))
    for name, value in begun.state.method.state_dict().items():
        assert torch.equal(value, trained[name]), name
