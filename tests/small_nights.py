"""Short nights of two and of three subjects, their corpora, and a run of the method sleep that trains in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soundfile

import rayssl
from rayssl.data.sources.night_synthetic import NightPart, SyntheticNightsConfig

MEL = {"hop_ms": 1000}
NIGHTS = ("a-1", "b-1", "c-1")
EPOCHS = 11
_STAGES = ("W", "N2", "N3", "R")


def write_nights(folder: Path) -> None:
    """Nights of 11 epochs as WAV, with all stages in a text file; the second in floats, the others in 16 bits."""
    folder.mkdir(parents=True)
    part = NightPart(domain="home", subjects=len(NIGHTS), first_subject=100, hours=EPOCHS / 120)
    source = SyntheticNightsConfig(parts=[part]).build()
    for number, (name, reference) in enumerate(zip(NIGHTS, source.list(), strict=True)):
        subtype = "FLOAT" if number == 1 else "PCM_16"
        soundfile.write(folder / f"{name}.wav", np.asarray(source.read(reference)), 16000, subtype=subtype)
        labels = [_STAGES[(epoch // 2 + number) % 4] for epoch in range(EPOCHS)]
        (folder / f"{name}.txt").write_text("\n".join(labels) + "\n")


def preparation(folder: Path) -> dict[str, Any]:
    """Corpora for training (hospital and home) and for a test of `write_nights`: pictures, FLAC, and other pictures."""
    nights = {"name": "nights", "uri": f"{folder}/nights"}
    held = {"rest": {"nights": {"labelled": ["*"], "held_out": 0.34}}}
    parts = [{"domain": domain, "subjects": 2, "hours": 0.075} for domain in ("hospital", "home")]
    split = {"staging": {"nights": {"labelled": ["hospital/*"], "unlabelled": ["home/*"]}}}
    mel = {"format": "mel", "nights": {"mel": MEL, "shard_epochs": 5}}
    return {
        "corpora": {
            "train": {
                "source": {"name": "synthetic_nights", "parts": parts},
                "out": f"{folder}/train",
                "format": "mel",
                "nights": {"mel": MEL},
                "splits": split,
            },
            "mel": {"source": nights, "out": f"{folder}/mel", **mel, "splits": held},
            "flac": {"source": nights, "out": f"{folder}/flac", "nights": {"shard_epochs": 5}},
        }
    }


def tree(folder: Path, **changes: Any) -> dict[str, Any]:
    """A tiny SleepFormer in ``folder``/run. ``changes`` replace whole top-level keys."""
    return {
        "run": f"{folder}/run",
        "corpus": {"uri": f"{folder}/train"},
        "labels": {"split": "staging", "ratio": 2},
        "encoder": {
            "frontend": {"name": "nightmel", "mel": MEL},
            "backbone": {"name": "sleepformer", "width": 0.125, "frames": 32, "blocks": 1, "sequence": 4},
        },
        "method": {"name": "sleep", "ema": 0.9, "sequential": {"weight": 1}},
        "training": {
            "epochs": 2,
            "epoch_steps": 3,
            "batch": 4,
            "log_every": 1,
            "optimiser": {"lr": 0.003},
            "checkpoints": {"milestones": [1]},
        },
        "evaluation": {"task": "staging", "corpus": f"{folder}/mel", "resamples": 50, "stride": 2},
        "ray": {"workers": 1},
        **changes,
    }


def make(folder: Path) -> Path:
    """Everything in ``folder``; returns it."""
    write_nights(folder / "nights")
    rayssl.prepare(preparation(folder), local=True, progress=False)
    rayssl.train(tree(folder), local=True)
    return folder
