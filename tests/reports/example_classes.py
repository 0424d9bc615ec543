"""A run folder as a semi-supervised training on a long-tailed corpus and its evaluation leave it, made from a seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rayssl.evaluation.imbalance import classification_result

WORDS = str.split(
    "yes no up down left right on off stop go zero one two three four five six seven eight nine bed bird cat dog happy "
    "house marvin sheila tree wow backward forward follow learn visual"
)
CONFIG = {
    "seed": 7,
    "method": {"name": "daso", "threshold": 0.95},
    "encoder": {"backbone": {"name": "ecapa", "channels": 512, "embedding_dim": 192}},
    "evaluation": {"corpus": "s3://corpora/words-test", "shares": [0.01, 0.1, 0.2, 1.0]},
}
HEAD_SKILL = {"linear": 0.55, "knn": 0.4, "finetune": 0.6}


def labelled_counts(classes: int, most: int = 1500, ratio: float = 100) -> np.ndarray:
    """Labelled rows by class, falling exponentially, not in the order of the names."""
    counts = np.maximum(1, (most * ratio ** (-np.arange(classes) / max(1, classes - 1))).astype(int))
    return counts[np.random.default_rng([classes]).permutation(classes)]


def write_class_run(folder: Path, *, classes: int = 10, epochs: int = 40, steps: int = 10, seed: int = 0,
                    evaluated: bool = True, names: list[str] | None = None) -> Path:  # fmt: skip
    """Writes the folder and returns it; without trials, scores or embeddings."""
    draw = np.random.default_rng([seed, classes])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    origin = {"argv": ["rayssl", "train", "configs/daso.yaml"], "commit": "0123abc", "seed": 7, "world_size": 1}
    (folder / "origin.json").write_text(json.dumps(origin))
    named = names or (WORDS[:classes] if classes <= len(WORDS) else [f"class {c:03}" for c in range(classes)])
    counts = labelled_counts(classes)
    lines = metric_lines(draw, named, counts, epochs, steps)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if evaluated:
        (folder / "evaluation").mkdir()
        records = results(draw, named, counts)
        (folder / "evaluation/result.json").write_text(json.dumps(records))
    return folder


def metric_lines(
    draw: np.random.Generator, names: list[str], counts: np.ndarray, epochs: int, steps: int
) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    rank = np.argsort(np.argsort(-counts, kind="stable")) / max(1, len(names) - 1)
    for epoch in range(epochs):
        for inner in range(steps):
            step, loss = epoch * steps + inner + 1, 0.4 + 3 * np.exp(-epoch / 9) + draw.normal(scale=0.08)
            time = 1.7e9 + 12.0 * step
            lines.append({"kind": "step", "step": step, "epoch": epoch, "time": time, "loss": loss, "lr": 1e-3})
        progress = 1 - np.exp(-(epoch + 1) / (0.3 * epochs))
        pseudo = pseudo_counts(draw, counts, rank, progress)
        first = {"names": names} if epoch == 0 else {}
        lines.append({"kind": "classes", "epoch": epoch, "step": step, **first, **pseudo})
        balanced = 1 / len(names) + (0.85 - 1 / len(names)) * progress + draw.normal(scale=0.01)
        probe = {"seconds": 12.0 * step * 3, "balanced_accuracy": balanced, "accuracy": balanced + 0.12 * progress}
        lines.append({"kind": "probe", "step": step, **probe})
    return lines


def pseudo_counts(
    draw: np.random.Generator, counts: np.ndarray, rank: np.ndarray, progress: float
) -> dict[str, list[int]]:
    """Rows of the tail are taken for those of the head, less so later in the training."""
    truth = 3 * counts + 20
    recall = np.clip(0.97 - (0.95 - 0.6 * progress) * rank - 0.3 * (1 - progress), 0, 1)
    right = draw.binomial(truth, recall)
    share = counts / counts.sum()
    predicted = right + draw.multinomial(int(truth.sum() - right.sum()), share)
    confident = draw.binomial(predicted, 0.2 + 0.6 * progress * (1 - 0.5 * rank))
    parts = {"predicted": predicted, "confident": confident, "right": right, "truth": truth}
    return {name: values.tolist() for name, values in parts.items()}


def predictions(
    draw: np.random.Generator, counts: np.ndarray, skill: float, speakers: int = 30, each: int = 4
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, predictions and speakers of a test set with equally many rows of every class."""
    classes = len(counts)
    speaker = np.tile(np.repeat(np.arange(speakers), each), classes)
    truth = np.repeat(np.arange(classes), speakers * each)
    rank = np.argsort(np.argsort(-counts, kind="stable")) / max(1, classes - 1)
    ease = draw.normal(scale=0.1, size=speakers)[speaker]
    right = draw.random(len(truth)) < skill + 0.35 * (1 - rank[truth]) + ease
    frequent = draw.choice(classes, len(truth), p=counts / counts.sum())
    near = np.where(draw.random(len(truth)) < 0.5, (truth + 1) % classes, frequent)
    return truth, np.where(right, truth, near), speaker


def results(draw: np.random.Generator, names: list[str], counts: np.ndarray) -> list[dict[str, Any]]:
    """One record for the model's own classifier and four for every other head."""
    found = []
    heads = [("model", None, 0.62)]
    heads += [
        (head, share, skill + 0.06 * np.log10(share) * (3 if head == "finetune" else 2))
        for head, skill in HEAD_SKILL.items()
        for share in (0.01, 0.1, 0.2, 1.0)
    ]
    for head, share, skill in heads:
        truth, predicted, speaker = predictions(draw, counts, skill)
        result = classification_result(
            truth, predicted, names, train_counts=counts.tolist(), resamples=100, groups=speaker, head=head,
            share=share, checkpoint="step-400",
        )  # fmt: skip
        found.append(result.model_dump(mode="json"))
    return found
