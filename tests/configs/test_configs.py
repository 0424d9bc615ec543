"""Every configuration of the project says what it shows, is read, and runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from rayssl.checks.small_nights import write_nights
from rayssl.data.corpus import PrepareConfig
from rayssl.experiment.config import Experiment
from rayssl.methods.registry import METHODS
from rayssl.models.nightmel import NightMelConfig
from rayssl.schema import load_yaml, override, parse
from rayssl.sweeps import points
from rayssl.sweeps.config import read_plan
from tests.runs import SPLITS, batches, build, records, write_corpus

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs"
FILES = sorted(FOLDER.rglob("*.yaml"))
TREES = {str(path.relative_to(FOLDER)): load_yaml(path.read_text(), path.name) for path in FILES}
SWEEPS = [name for name, tree in TREES.items() if "space" in tree]
PREPARED = [name for name, tree in TREES.items() if "corpora" in tree]
EXPERIMENTS = [name for name in TREES if name not in (*SWEEPS, *PREPARED)]
# Two epochs of two steps: SSPS remembers in the first and replaces positives in the second.
QUICK = (
    *("training.epochs=2", "training.batch=8", "training.log_every=1", "training.precision=fp32", "ray.workers=1"),
    *("views.segment_s=0.2", "views.reference_s=0.3", "training.compile=false"),
)
QUICK_SSPS = ("method.start_epoch=1", "method.clusters=4", "method.neighbours=1", "method.queue=0")
SMALL_BACKBONE = ("channels=32", "mfa_channels=48", "embedding_dim=16")
# Taken away again by the softmax over time and by a head's normalisation: only Adam moves them, by their rounding
UNSEEN = ("pool.score.bias", "backbone.project.bias")
# In four steps, two of them without the last layer, a teacher that follows as slowly as published stays within rounding
QUICK_METHODS = {
    "dino": ("local_s=0.1", "head={hidden: [16], bottleneck: 8, prototypes: 16}", "teacher_momentum=0.5"),
    "moco": ("queue=20",),
    "swav": ("projector.sizes=[16, 8]", "prototypes=10", "queue=12", "queue_start_epoch=1"),
    "sdpn": ("local_s=0.1", "head={hidden: [16], bottleneck: 8, prototypes: 16}", "teacher_momentum=0.5"),
    "vicreg": ("projector.sizes=[16, 16, 8]",),
    "pseudo_speakers": ("clusters=4", "gate_after=1", "correct_after=1"),
    "clar": ("projector.sizes=[16, 8]",),
    "daso": ("warmup_steps=1", "window=1"),
    "configs/own_method/barlow.py:BarlowTwins": ("projector.sizes=[16, 16, 8]",),
}
# A sequence of four epochs of 8 bands x 31 frames. A window that the file scores is left to the network again.
QUICK_NIGHTS = (
    *("encoder.frontend.mel.n_mels=8", "encoder.frontend.mel.hop_ms=1000", "encoder.backbone.sequence=4"),
    *("encoder.backbone.scored=null", "views.night.strong.noise.clips=1", "views.night.strong.noise.clip_s=5"),
)
QUICK_NIGHT_BACKBONES = {
    "sleepformer": ("width=0.125", "embedding_dim=64", "heads=4", "bands=32", "frames=32", "blocks=1"),
    "soundsleepnet": ("width=8", "embedding_dim=16", "heads=4", "hidden=16", "blocks=1"),
}
# of clips of four classes, two of each labelled; of nights, those of the hospital
QUICK_LABELS = ("labels.split=few", "labels.ratio=2", "training.epoch_steps=2")


def learns_sequences(tree: dict[str, Any]) -> bool:
    """Whether the experiment is of sleep: its corpus is one of nights."""
    return METHODS.find(tree["method"]["name"]).sequences


def made_small(tree: dict[str, Any]) -> list[str]:
    """Overrides that shrink sizes and lengths, and leave everything else as the file has it."""
    method: dict[str, Any] = tree["method"]
    over = method.get("over", {}) if method["name"] == "ssps" else method
    changes = [*QUICK, *(QUICK_SSPS if method["name"] == "ssps" else ())]
    changes += ["method.merged_from=6"] if method.get("merged_from") else []
    encoder, at = tree["encoder"], "encoder"
    if learns_sequences(tree):
        encoder = None
        backbone = tree["encoder"]["backbone"]["name"]
        changes += [*QUICK_NIGHTS, *(f"encoder.backbone.{change}" for change in QUICK_NIGHT_BACKBONES[backbone])]
    while encoder is not None:
        backbone = encoder["backbone"]
        changes += [f"{at}.start_from=null"] if "start_from" in encoder else []
        if "width" in backbone:
            changes += [f"{at}.backbone.width=4", f"{at}.backbone.embedding_dim=16"]
        elif backbone.get("channels", 512) > 64:
            changes += [f"{at}.backbone.{change}" for change in SMALL_BACKBONE]
        encoder, at = encoder.get("beside"), f"{at}.beside"
    if "labels" in tree:
        changes += QUICK_LABELS
    prefix = "method." if over is method else "method.over."
    return changes + [prefix + change for change in QUICK_METHODS.get(over.get("name", "simclr"), ())]


# of the default layer: a memory of utterances, a teacher, a memory of classes, two encoders, a method of one's own
QUICK_ONES = ("synthetic_ssps", "gsc_dino", "words_daso", "digits_clar_cross", "own_method/barlow", "nights_sleep")


def test_there_are_some() -> None:
    assert EXPERIMENTS and SWEEPS and PREPARED


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_header(path: Path) -> None:
    """What it shows, the command that runs this very file, and on what hardware, before the first key."""
    lines = path.read_text().splitlines()
    header = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    fields = {match[1]: match[2] for line in header if (match := re.match(r"# (\w+): +(\S.*)", line))}
    assert {"Shows", "Command", "Hardware"} <= fields.keys()
    name = str(path.relative_to(FOLDER))
    verb = "train" if name in EXPERIMENTS else "sweep" if name in SWEEPS else "prepare"
    assert re.match(rf"rayssl ({verb}) configs/{re.escape(name)}\b", fields["Command"])


@pytest.mark.parametrize("name", PREPARED)
def test_prepare_configs_are_read(name: str) -> None:
    assert parse(PrepareConfig, TREES[name], name).corpora


@pytest.mark.parametrize("name", SWEEPS)
def test_sweeps_are_read(name: str) -> None:
    """Of one of these experiments; every trial is an experiment, and those of a search by optuna at its start."""
    plan = read_plan(str(ROOT / "configs" / name), [])
    assert plan.config.base in EXPERIMENTS
    blind = plan.config.search == "optuna"
    drawn = [points.suggested(plan.config, k, []) for k in range(4)] if blind else points.drawn(plan.config)
    for index, point in enumerate(drawn):
        experiment = plan.experiment(point, plan.run(index))
        assert len(plan.rungs(experiment)) > 1


@pytest.mark.parametrize(
    "name",
    [
        name if name.removesuffix(".yaml") in QUICK_ONES else pytest.param(name, marks=pytest.mark.long)
        for name in EXPERIMENTS
    ],
)
def test_experiments_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As written it is read; made small it is built, and runs, with every weight moved."""
    monkeypatch.chdir(ROOT)  # a method of one's own is named from there
    full = parse(Experiment, TREES[name], name)
    assert full.training.epochs > 1
    method: dict[str, Any] = TREES[name]["method"]
    changes = [*made_small(TREES[name]), f"run={tmp_path}/run", f"corpus.uri={tmp_path}/corpus"]
    distort = TREES[name].get("views", {}).get("distort", {})  # speech will do as noise and as a room
    recorded = [f"noise.corpora.{kind}" for kind in distort.get("noise", {}).get("corpora", {})]
    recorded += ["reverb.corpus"] if "corpus" in distort.get("reverb", {}) else []
    changes += [f"views.distort.{key}={tmp_path}/corpus" for key in recorded]
    settings = parse(Experiment, override(TREES[name], changes), name)
    frontend = settings.encoder.frontend
    if isinstance(frontend, NightMelConfig):
        write_nights(f"{tmp_path}/corpus", frontend.mel)
    else:
        write_corpus(tmp_path / "corpus", (9, 8), splits=SPLITS)
    loop = build(settings)
    before = {name: p.detach().clone() for name, p in loop.state.method.named_parameters()}
    loop.fit(batches(settings, loop))
    assert [line["step"] for line in records(settings.run, "step")] == [1, 2, 3, 4]
    unmoved = [name for name, p in loop.state.method.named_parameters() if torch.equal(p, before[name])]
    unseen = UNSEEN if settings.training.optimiser.name == "sgd" else ()
    assert [name for name in unmoved if not name.endswith(unseen)] == []
    assert (full.evaluation is not None and full.evaluation.task == "staging") <= full.method.sequences
    if method["name"] == "ssps":
        assert records(settings.run, "epoch")[-1]["coverage"] > 0


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_evaluation_is_of_a_corpus_that_a_config_prepares(name: str) -> None:
    """The walk of the README: what an experiment reads, one of the files beside it makes."""
    made = {corpus["out"] for tree in TREES.values() for corpus in tree.get("corpora", {}).values()}
    evaluation = TREES[name].get("evaluation")
    assert {TREES[name]["corpus"]["uri"], *([evaluation["corpus"]] if evaluation else [])} <= made
