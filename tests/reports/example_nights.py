"""A run folder as a training on nights and its evaluation leave it, made from a seed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import yaml

from rayssl.data.nights.scores import write_stages
from rayssl.data.sources.nights import STAGES
from rayssl.evaluation.staging import staging_result
from tests.evaluation.nights import night

CONFIG = {
    "seed": 7,
    "method": {"name": "sleep", "sequential": 1.0, "contrastive": 0.5},
    "encoder": {"backbone": {"name": "sleepformer", "head": "vit"}},
    "evaluation": {"task": "staging", "corpus": "s3://corpora/home-nights", "stride": 20},
}


def write_night_run(folder: Path, *, nights: int = 24, epochs: int = 840, seed: int = 0, skill: float = 2.5,
                    evaluated: bool = True, trained: bool = True, resamples: int = 200) -> Path:  # fmt: skip
    """Writes the folder and returns it: two nights of each subject, some with a gap, and the last one bad."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "seed": seed}, sort_keys=False))
    origin = {"argv": ["rayssl", "train", "configs/nights_sleep.yaml"], "commit": "0123abc", "seed": seed}
    (folder / "origin.json").write_text(json.dumps(origin))
    draw = np.random.default_rng([seed])
    lines = [
        {"kind": "step", "step": s, "epoch": s // 20, "time": 1.7e9 + 3.0 * s, "lr": 2e-4,
         "loss": 0.6 + 0.9 * np.exp(-s / 40) + draw.normal(scale=0.04)}
        for s in range(1, 161)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if evaluated:
        found = [
            night(
                k, subject=k // 2, epochs=epochs - 17 * (k % 5), gap=20 * (k % 4 == 1), seed=seed,
                skill=skill if k < nights - 1 else 0.6,
            )
            for k in range(nights)
        ]  # fmt: skip
        result = staging_result(
            found, STAGES, train_counts=[8426, 91528, 5515, 5483] if trained else None, seed=seed, resamples=resamples,
            checkpoint="step-160",
        )  # fmt: skip
        (folder / "evaluation").mkdir(exist_ok=True)
        (folder / "evaluation/result.json").write_text(json.dumps(result.model_dump(mode="json")))
        pq.write_table(write_stages(found), folder / "evaluation/stages.parquet")
    return folder
