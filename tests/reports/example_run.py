"""A run folder as a training with SSPS and an evaluation leave it, made from a seed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

CONFIG = {
    "seed": 7,
    "method": {"name": "ssps", "over": {"name": "simclr", "temperature": 0.03}, "start_epoch": 10, "clusters": 512},
    "encoder": {"backbone": {"name": "ecapa", "channels": 512, "embedding_dim": 192}},
    "optim": {"name": "adam", "lr": 0.001, "weight_decay": 0.0},
    "data": {"corpus": "s3://corpora/voices", "batch": 256},
    "notes": "<b>bold</b> & 'quoted' <script>alert(1)</script>",
}
ORIGINS = {
    "seed": "override", "method.name": "file", "method.over.name": "file", "method.over.temperature": "default",
    "method.start_epoch": "file", "method.clusters": "override", "encoder.backbone.name": "file",
    "encoder.backbone.channels": "default", "encoder.backbone.embedding_dim": "default", "optim.name": "default",
    "optim.lr": "default", "optim.weight_decay": "default", "data.corpus": "file", "data.batch": "default",
    "notes": "file",
}  # fmt: skip


def write_run(folder: Path, *, epochs: int = 20, steps: int = 60, ssps: bool = True, evaluated: bool = True,
              speakers: int = 40, per_speaker: int = 45, seed: int = 0) -> Path:  # fmt: skip
    """Writes the folder and returns it; SSPS starts half way."""
    draw = np.random.default_rng([seed])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    argv = ["/opt/venv/bin/rayssl", "train", "configs/ssps.yaml", "seed=7", "method.clusters=512", "notes=<b> it's"]
    versions = {"python": "3.11.9", "torch": "2.11.0", "ray": "2.60.0", "<i>odd</i>": "1"}
    origin = {"argv": argv, "commit": "0123abc", "seed": 7, "world_size": 2, "versions": versions, "origins": ORIGINS}
    (folder / "origin.json").write_text(json.dumps(origin))
    lines = metric_lines(draw, epochs, steps, epochs // 2 if ssps else epochs)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if evaluated:
        write_evaluation(folder / "evaluation", draw, speakers, per_speaker)
    return folder


def metric_lines(draw: np.random.Generator, epochs: int, steps: int, start: int) -> list[dict[str, object]]:
    lines: list[dict[str, object]] = []
    for epoch in range(epochs):
        for inner in range(steps):
            step = epoch * steps + inner + 1
            jump = 0.8 * np.exp(-(epoch - start) / 4) if epoch >= start else 0.0
            loss = 0.6 + 4.5 * np.exp(-step / (epochs * steps / 8)) + jump + draw.normal(scale=0.12)
            lr = 1e-3 * 0.95 ** (epoch // 5)
            speed = 950 + draw.normal(scale=25) - (320 if inner == 0 else 0)
            norm = 1.5 + float(draw.gamma(2, 0.3))
            values = {
                "loss": loss,
                "lr": lr,
                "utterances_per_s": speed,
                "gradient_norm": norm,
                "pair_$x$": 1 - loss / 6,
            }
            lines.append({"kind": "step", "step": step, "epoch": epoch, "time": 1.7e9 + 9.0 * step, **values})
        line = {"kind": "epoch", "epoch": epoch, "step": (epoch + 1) * steps, "loss": loss}
        if epoch >= start:
            rise = 1 - np.exp(-(epoch - start + 1) / 4)
            line |= {"coverage": 0.6 + 0.38 * rise, "speaker_accuracy": 0.45 + 0.4 * rise}
            line |= {"recording_accuracy": 0.42 - 0.25 * rise, "useful_rate": 0.03 + 0.65 * rise}
            line |= {"nmi_speaker": 0.7 + 0.2 * rise, "nmi_recording": 0.82 - 0.1 * rise}
        lines.append(line)
    return lines


def write_evaluation(folder: Path, draw: np.random.Generator, speakers: int, per_speaker: int) -> None:
    folder.mkdir()
    dim, recordings = 24, 5
    who = np.repeat(np.arange(speakers), per_speaker)
    recording = who * recordings + draw.integers(0, recordings, len(who))
    centres, channels = draw.normal(size=(speakers, dim)), draw.normal(size=(speakers * recordings, dim))
    rows = centres[who] + 0.55 * channels[recording] + 0.45 * draw.normal(size=(len(who), dim))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    names = [f"id{s:03}/utt{index}" for index, s in enumerate(who)]
    columns = {"name": names, "speaker": who.astype(np.int32), "recording": recording.astype(np.int32)}
    embedding = pa.array(list(rows.astype(np.float32)), pa.list_(pa.float32()))
    label = np.full(len(who), -1, np.int32)
    pq.write_table(pa.table({**columns, "embedding": embedding, "label": label}), folder / "embeddings.parquet",
                   row_group_size=30)  # fmt: skip
    trials = 8 * len(who)
    enrol, test = draw.integers(0, len(who), trials), draw.integers(0, len(who), trials)
    test[::2] = (enrol[::2] // per_speaker) * per_speaker + draw.integers(0, per_speaker, len(test[::2]))
    scores = (rows[enrol] * rows[test]).sum(1)
    same = (who[enrol] == who[test]).astype(np.int8)
    pairs = {"enrol": [names[i] for i in enrol], "test": [names[i] for i in test]}
    pq.write_table(pa.table({**pairs, "label": same, "score": scores.astype(np.float32)}), folder / "scores.parquet")
    order = np.argsort(-scores)
    hits, alarms = np.cumsum(same[order]) / same.sum(), np.cumsum(1 - same[order]) / (1 - same).sum()
    eer = float(alarms[np.abs(1 - hits - alarms).argmin()])
    result = {"eer": eer, "eer_nearest": eer + 0.001, "eer_low": 0.88 * eer, "eer_high": 1.13 * eer + 0.01,
              "min_dcf_001": 0.413, "min_dcf_005": 0.221,
              "trials": trials, "targets": int(same.sum()), "norm": "none", "checkpoint": "step-1200"}  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
