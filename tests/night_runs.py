"""A corpus of a few short nights as tiny pictures, and experiments of the method sleep over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rayssl.checks.small_nights import write_nights
from rayssl.data.mel import MelConfig
from rayssl.data.shards import Manifest
from rayssl.experiment.config import Experiment
from rayssl.methods.base import Batch, Classes
from rayssl.methods.sleep import Sleep, SleepConfig
from rayssl.models.encoder import EncoderConfig, build_encoder
from rayssl.schema import override, parse

SEQUENCE = 4
MEL: dict[str, Any] = {"n_mels": 8, "hop_ms": 1000}  # 8 x 31
FRONTEND: dict[str, Any] = {"name": "nightmel", "mel": MEL}
BACKBONES: dict[str, dict[str, Any]] = {
    "sleepformer": {"name": "sleepformer", "width": 0.125, "bands": 32, "frames": 32, "blocks": 1, "dropout": 0.1},
    "soundsleepnet": {
        "name": "soundsleepnet",
        "width": 8,
        "embedding_dim": 16,
        "blocks": 1,
        "hidden": 16,
        "dropout": 0.1,
    },
}
# without noise, whose banks take a second to make
VIEWS: dict[str, Any] = {
    "night": {
        "weak": {"gain": {"p": 0.5}},
        "strong": {"noise": {"p": 0.8, "kinds": ["white"], "clips": 2, "clip_s": 5}, "mask": {"p": 0.5}},
    }
}
SLEEP_METHOD: dict[str, Any] = {
    "name": "sleep",
    "ema": 0.8,
    "stage_power": 0.5,
    "noise": {"weight": 0.5, "nights": "both"},
    "fixmatch": {"weight": 0.7, "threshold": 0.25},
    "sequential": {"weight": 2.0},
    "ccssl": {"weight": 0.1, "temperature": 0.5},
    "ssc": {"weight": 0.3, "temperature": 0.5},
}
# longer than one step's rows of a stage, and full after some steps
ANCHORED_SLEEP: dict[str, Any] = {
    **SLEEP_METHOD,
    "ssc": {**SLEEP_METHOD["ssc"], "anchors": "memory", "queue": 6},
}
# streams of different lengths: an epoch is no pass over either
FEW_NIGHTS = ("labels={split: few, ratio: 2}", "training.epoch_steps=3")


def write_night_corpus(folder: Path, **how: Any) -> Manifest:
    """`rayssl.checks.small_nights.write_nights` as the pictures of `MEL`."""
    return write_nights(str(folder), MelConfig.model_validate(MEL), **how)


def encoder_config(name: str = "sleepformer", **changes: Any) -> EncoderConfig:
    backbone = {**BACKBONES[name], "sequence": SEQUENCE, **changes}
    return EncoderConfig.model_validate({"frontend": FRONTEND, "backbone": backbone})


def night_experiment(
    run: Path, corpus: Path, *overrides: str, method: dict[str, Any] | None = None, backbone: str = "sleepformer"
) -> Experiment:
    tree: dict[str, Any] = {
        "run": str(run),
        "seed": 3,
        "corpus": {"uri": str(corpus), "unit_rows": 16},
        "views": VIEWS,
        "encoder": {"frontend": FRONTEND, "backbone": {**BACKBONES[backbone], "sequence": SEQUENCE}},
        "method": method or SLEEP_METHOD,
        "training": {"epochs": 2, "batch": 4, "log_every": 1},
        "ray": {"workers": 1},
    }
    return parse(Experiment, override(tree, [*FEW_NIGHTS, *overrides]), "tests/night_runs.py")


CLASSES = Classes(("Wake", "Light", "Deep", "REM"), (20, 40, 9, 3))


def build_sleep(backbone: str = "sleepformer", changes: dict[str, Any] | None = None, **keys: Any) -> Sleep:
    """A small method without a corpus; ``changes`` are those of the backbone, ``keys`` those of the method."""
    torch.manual_seed(1)
    return Sleep(SleepConfig.model_validate(keys), build_encoder(encoder_config(backbone, **(changes or {}))), CLASSES)


def sleep_batch(
    own_ids: list[list[int]], labelled_ids: list[list[int]] | None, labels: list[list[int]], *, step: int = 0
) -> Batch:
    """The batch of unlabelled sequences ``own_ids`` beside labelled ones; only these, if ``labelled_ids`` is None.

    ``labels``: the stages of the labelled sequences. The truth of unlabelled epoch k is stage k % 4.
    """

    def part(ids: list[list[int]], stages: Tensor, truth: Tensor, labelled: Batch | None = None) -> Batch:
        flat = torch.tensor(ids).flatten()
        unknown = torch.full_like(flat, -1)
        return Batch(flat, unknown, unknown, stages, 0, truth, step, labelled)

    stages = torch.tensor(labels).flatten()
    if labelled_ids is None:
        return part(own_ids, stages, stages)
    few = part(labelled_ids, stages, stages)
    truth = torch.tensor(own_ids).flatten() % 4
    return part(own_ids, torch.full_like(truth, -1), truth, few)
