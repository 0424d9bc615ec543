"""A prepared corpus of short tones and an experiment over it that trains in seconds, for tests of whole verbs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rayssl import storage
from rayssl.data import decode, shards

ROWS, ROWS_A_SHARD, SPEAKERS = 96, 16, 8


def write_corpus(uri: str, rows: int = ROWS, *, speakers: bool = True, damaged: int | None = None) -> shards.Manifest:
    """``rows`` utterances of 0.3 to 0.5 s by eight speakers in two recordings each, named ``s<speaker>/r<rec>/<id>``.

    ``damaged``: the id of an utterance whose FLAC is cut off in the middle. The trials that `tree` names are written
    beside the corpus.
    """
    write_trials(storage.join(uri.rpartition("/")[0], "trials.txt"), rows)
    rng = np.random.default_rng(7)
    parts = []
    for index, first in enumerate(range(0, rows, ROWS_A_SHARD)):
        columns: dict[str, list[Any]] = {key: [] for key in shards.SCHEMA.names}
        for utterance in range(first, min(rows, first + ROWS_A_SHARD)):
            speaker, recording = utterance % SPEAKERS, utterance // SPEAKERS % 2
            time = np.arange(4800 + 320 * (utterance % 11)) / decode.RATE
            tone = np.sin(2 * np.pi * (180 + 90 * speaker + 4 * recording) * time) * 0.3
            pcm = decode.quantise(tone + rng.normal(0, 0.02 + 0.02 * recording, len(time)))
            audio = decode.encode(pcm, "flac")
            columns["name"].append(f"s{speaker}/r{recording}/{utterance:03d}")
            columns["audio"].append(audio[: len(audio) // 2] if utterance == damaged else audio)
            columns["samples"].append(len(pcm))
            columns["speaker"].append(speaker if speakers else -1)
            columns["recording"].append(2 * speaker + recording if speakers else -1)
            columns["label"].append(-1)
        parts.append(shards.write_shard(uri, (index,), columns))
    named = SPEAKERS if speakers else 0
    names = {
        "speaker": [f"s{k}" for k in range(named)],
        "recording": [f"s{k // 2}/r{k % 2}" for k in range(2 * named)],
        "label": [],
    }
    shards.write_labels(uri, names)
    shards.write_rejects(uri, [])
    return shards.write_manifest(uri, parts, format="flac", names=names, rejected=0, settings={})


def write_trials(uri: str, rows: int = ROWS) -> None:
    """Trials of utterance k against k + 8 (same speaker) and k + 1 (another one), for the corpus of `write_corpus`."""
    names = [f"s{k % SPEAKERS}/r{k // SPEAKERS % 2}/{k:03d}" for k in range(rows)]
    lines = [f"1 {names[k]} {names[k + 8]}\n0 {names[k]} {names[k + 1]}\n" for k in range(rows - 8)]
    storage.write_text(uri, "".join(lines))


def tree(folder: str, **changes: Any) -> dict[str, Any]:
    """SSPS over SimCLR: corpus ``folder``/corpus, trials ``folder``/trials.txt, run ``folder``/run; two workers, six
    steps an epoch, three epochs, positives replaced from the second on. ``changes`` replace whole top-level keys.
    """
    return {
        "run": storage.join(folder, "run"),
        "seed": 3,
        "corpus": {"uri": storage.join(folder, "corpus"), "unit_rows": 32},
        "views": {"segment_s": 0.2, "reference_s": 0.4, "distort": {"reverb": {"p": 0.0}}},
        "encoder": {
            "backbone": {
                "name": "ecapa",
                "channels": 16,
                "mfa_channels": 32,
                "embedding_dim": 16,
                "attention_channels": 8,
                "se_channels": 8,
            }
        },
        "method": {"name": "ssps", "over": {"name": "simclr", "temperature": 0.1}, "start_epoch": 1, "clusters": 16},
        "training": {
            "epochs": 3,
            "batch": 16,
            "log_every": 3,
            "optimiser": {"lr": 0.003},
            "checkpoints": {"every_steps": 2, "keep": 2},
        },
        "evaluation": {
            "corpus": storage.join(folder, "corpus"),
            "trials": storage.join(folder, "trials.txt"),
            "resamples": 50,
        },
        "ray": {"workers": 2, "cpus_per_worker": 1},
        **changes,
    }


def write_config(path: Path, values: Mapping[str, Any]) -> str:
    """``values`` as a YAML file; returns its path as a string."""
    path.write_text(yaml.safe_dump(dict(values)))
    return str(path)
