"""Methods with a state of their own: interrupted after every step and resumed, they do what they would have done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rayssl.experiment.config import Experiment
from rayssl.training import checkpoint
from rayssl.training.loop import Loop
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
    batches,
    build,
    experiment,
    records,
    remembered,
    write_corpus,
)

STEPS = 9  # three epochs of three
METHODS: dict[str, dict[str, Any]] = {
    "dino": DINO_METHOD,
    "ssps_dino": {**SSPS_METHOD, "over": DINO_METHOD},
    "ssps_dino_output": {**SSPS_METHOD, "over": {**DINO_METHOD, "store": "output"}},
    "moco": MOCO_METHOD,
    "ssps_moco": {**SSPS_METHOD, "over": {**MOCO_METHOD, "negatives": "others", "key_statistics": "average"}},
    "swav": SWAV_METHOD,
    "ssps_swav": {**SSPS_METHOD, "over": SWAV_METHOD},
    "ssps_sdpn": {**SSPS_METHOD, "over": SDPN_METHOD},
    "pseudo_speakers": PSEUDO_METHOD,
    "daso": DASO_METHOD,
    "usadtm": USADTM_METHOD,
    "anchored": ANCHORED_METHOD,
    "classifier": {"name": "classifier", "ema": 0.8, "recipe": "strong"},
    "clar": {"name": "clar", "projector": {"sizes": [12, 8]}, "labels": "cross_entropy"},
    "clar_stream": {
        "name": "clar",
        "projector": {"sizes": [12, 8]},
        "labels": "cross_entropy",
        "labels_from": "stream",
    },
}
# of the default layer: a teacher, a queue under SSPS, labels of clusters, a memory of classes, and one that gives rows
QUICK = ("dino", "ssps_moco", "pseudo_speakers", "daso", "anchored")
LEARNERS = ("daso", "usadtm", "anchored", "classifier", "clar", "clar_stream")  # from the labels of a split
# What a resumed run would lack if it were not saved, by method
STATE = {
    **dict.fromkeys(("dino",), ("centre", "teacher.head.prototypes.weight", "teacher.encoder.backbone.project.weight")),
    **dict.fromkeys(("ssps_dino", "ssps_dino_output"), ("base.centre", "base.teacher.head.prototypes.weight")),
    "moco": ("queue.rows", "queue.pushed", "key_encoder.backbone.project.weight"),
    "ssps_moco": ("base.queue.rows", "base.queue.pushed", "base.ids.rows", "base.key_encoder.backbone.project.weight"),
    "swav": ("queue.rows", "queue.pushed", "prototypes.weight"),
    "ssps_sdpn": ("base.prototypes.weight", "base.teacher.head.layers.0.weight"),
    "ssps_swav": ("base.queue.rows", "base.queue.pushed", "base.prototypes.weight"),
    **dict.fromkeys(
        ("daso", "usadtm", "anchored", "classifier"),
        ("average.classifier.linear.weight", "average.encoder.backbone.project.weight", "model.classifier.linear.bias"),
    ),
    "pseudo_speakers": ("losses", "head.weight"),
    **dict.fromkeys(("clar", "clar_stream"), ("classifier.linear.weight", "encoder.backbone.project.weight")),
}


class Interrupted(Exception):
    """What ends a run in the middle."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, (9, 10, 6), splits=SPLITS)
    return folder


def life(settings: Experiment, steps: int | None = None) -> Loop:
    """A run from its last checkpoint on, to its end or for so many steps, and the pass that fills a memory before."""
    loop = build(settings)

    def cut_off() -> Any:
        done = 0
        for row in batches(settings, loop):
            if done == steps:
                raise Interrupted
            done += not row["fill"]
            yield row

    try:
        loop.fit(cut_off())
    except Interrupted:
        assert steps is not None
    finally:
        assert loop.state.log is not None
        loop.state.log.close()
    return loop


def content(loop: Loop) -> dict[str, Any]:
    return {
        "weights": loop.state.method.state_dict(),
        "optimiser": loop.optimiser.state_dict(),
        "memory": {name: torch.from_numpy(array) for name, array in remembered(loop).items()},
    }


@pytest.mark.parametrize(
    "changes", [{}, *(pytest.param(each, marks=pytest.mark.long) for each in ({"warm_start": True}, {"whiten": True}))]
)
def test_interrupted_while_the_memory_is_clustered(corpus: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Overlapped: a checkpoint after any step holds what the next epoch will use."""
    method = {**SSPS_METHOD, **changes}
    overrides = ("training.epochs=5", "memory.clustering=overlapped")
    whole = experiment(tmp_path / "whole", corpus, *overrides, method=method)
    expected = content(life(whole))
    versions = [line["version"] for line in records(whole.run, "refresh")]
    assert versions == [1, 1, 2, 3]
    settings = experiment(tmp_path / "cut", corpus, *overrides, "training.checkpoints.every_steps=1", method=method)
    while not checkpoint.steps(settings.run) or checkpoint.steps(settings.run)[-1] < 14:
        life(settings, 1)
    torch.testing.assert_close(content(life(settings)), expected, rtol=0, atol=0)
    for kind in ("step", "epoch", "refresh", "classes"):
        assert records(settings.run, kind) == records(whole.run, kind)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in METHODS]
)
def test_interrupted_after_every_step(corpus: Path, tmp_path: Path, name: str) -> None:
    few = FEW if name in LEARNERS else ()
    whole = experiment(tmp_path / "whole", corpus, *few, method=METHODS[name])
    fresh = {key: value.clone() for key, value in build(whole).state.method.state_dict().items()}
    expected = content(life(whole))
    assert [key for key in STATE[name] if torch.equal(fresh[key], expected["weights"][key])] == []
    settings = experiment(tmp_path / "cut", corpus, "training.checkpoints.every_steps=1", *few, method=METHODS[name])
    lives = 0
    while not checkpoint.steps(settings.run) or checkpoint.steps(settings.run)[-1] < STEPS - 1:
        life(settings, 1)
        lives += 1
    assert lives > STEPS / 2
    torch.testing.assert_close(content(life(settings)), expected, rtol=0, atol=0)
    for kind in ("step", "epoch", "refresh", "classes"):
        assert records(settings.run, kind) == records(whole.run, kind)
