"""The model card of a published encoder: what it is, how to load it, data, method, figures, and the open licence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rayssl.data import shards
from rayssl.errors import UserError
from rayssl.experiment.config import Experiment
from rayssl.inference.scoring import evaluation_of
from rayssl.runs.reading import RunCheckpoint
from rayssl.training import weights

# figures of an evaluation in the order of the card: their keys in result.json, their names, and how they are shown
_FIGURES = (
    ("eer", "EER (ROC convex hull)", ".2%"),
    ("eer_nearest", "EER (max of FPR and FNR where nearest)", ".2%"),
    ("min_dcf_001", "minDCF (p = 0.01)", ".3f"),
    ("min_dcf_005", "minDCF (p = 0.05)", ".3f"),
    ("balanced_accuracy", "balanced accuracy", ".2%"),
    ("accuracy", "accuracy", ".2%"),
    ("macro_f1", "macro F1", ".3f"),
    ("kappa", "Cohen's kappa", ".3f"),
)
_SIZES = (("trials", "trials"), ("n", "clips"), ("nights", "nights"), ("subjects", "subjects"))


@dataclass(frozen=True)
class Facts:
    """What the card tells: the ``name``, the run's checkpoint ``source``, its ``config`` as published, what
    ``rayssl.json`` says (``about``), and the ``data`` in words.
    """

    name: str
    source: RunCheckpoint
    config: Experiment
    about: Mapping[str, Any]
    data: str


def results_of(source: RunCheckpoint, which: str) -> list[dict[str, Any]]:
    """The figures of the evaluation of this checkpoint, a dictionary for each classifier; empty if there is none."""
    if weights.is_published(source.run):
        return list(weights.about(source.run).get("results", []))
    found = evaluation_of(source, which)
    kept = {"head", "share", "norm", *(key for key, *_ in (*_FIGURES, *_SIZES))}
    kept |= {f"{key}_{end}" for key, *_ in _FIGURES for end in ("low", "high")}
    return [] if found is None else [{key: each[key] for key in each if key in kept} for each in found[1]]


def data_of(experiment: Experiment) -> str:
    """The training corpus in words: its name, and its size if it can be read."""
    uri = experiment.corpus.uri
    name = uri.rstrip("/").rpartition("/")[2]
    try:
        manifest = shards.read_manifest(uri)
    except UserError:
        return f"The corpus `{name}`; its size was not known when this was published."
    hours = sum(shard.seconds for shard in manifest.shards) / 3600
    counts = [f"{manifest.rows:,} utterances", f"{hours:,.2f} hours" if hours < 10 else f"{hours:,.0f} hours"]
    counts += [f"{manifest.speakers:,} speakers"] if manifest.speakers else []
    return f"The corpus `{name}`: {', '.join(counts)}, at {manifest.rate:,} Hz."


def card(facts: Facts) -> str:
    """The card as Markdown, with the front matter that the hub of Hugging Face reads."""
    about, config = facts.about, facts.config
    training, evaluation = config.training, config.evaluation
    learns = "with labels" if config.method.learns_labels else "without labels"
    learns = "with labels" if config.method.short_name == "supervised" else learns
    started = f", starting from the weights `{config.encoder.start_from}`" if config.encoder.start_from else ""
    task = "" if evaluation is None else f" (task `{evaluation.task}`, corpus `{evaluation.corpus}`)"
    return f"""---
library_name: rayssl
pipeline_tag: feature-extraction
tags: [rayssl, audio, embeddings, {config.method.short_name.replace(":", "-")}]
# license: not chosen yet, see "Licence" below
---

# {facts.name}

An audio encoder: mono audio at {about["rate"]:,} Hz to embeddings of {about["dim"]} dimensions (float32, not
normalised). It was trained with rayssl {about["rayssl"]}. Two embeddings are compared by their cosine.

## How to load it

```python
import rayssl

model = rayssl.load("{facts.name}")  # this folder, a URI, or hf://OWNER/NAME
embedding = model.embed_file("a.wav")  # [{about["dim"]}]
score = model.score("a.wav", "b.flac")  # a cosine in [-1, 1]
```

`rayssl score {facts.name} a.wav b.flac` and `rayssl embed {facts.name} recordings` do the same in a terminal.
`encoder.start_from: {facts.name}` in an experiment begins a training with these weights. The weights are in
`model.safetensors`, the settings in `config.yaml`; no file holds code.

## Data

{facts.data}

## Method

- Method: `{config.method.label}`, {learns}{started}.
- Model: {about["architecture"]}.
- Training: {about["step"]:,} steps of {training.batch} utterances; `training.epochs` {training.epochs}, seed
  {config.seed}. `config.yaml` has all settings. Places in it are names only.

## Figures

{_figures(about["results"], task)}
{_threshold(about["threshold"])}
## Licence

Not chosen yet. Whoever publishes this chooses one, here and as `license:` at the top of this file, and respects the
licence of the data.
"""


def _figures(results: list[dict[str, Any]], task: str) -> str:
    if not results:
        return "This checkpoint was not evaluated when it was published: `rayssl evaluate RUN` before gives figures.\n"
    lines = [
        f"Of this checkpoint, by `rayssl evaluate`{task}. Intervals are of 95 %.",
        "",
        "| figure | value |",
        "|---|---|",
    ]
    for result in results:
        head = f"{result['head']}: " if len(results) > 1 and "head" in result else ""
        for key, name, form in _FIGURES:
            if result.get(key) is None:
                continue
            low, high = result.get(f"{key}_low"), result.get(f"{key}_high")
            interval = "" if low is None or high is None else f" [{low:{form}}, {high:{form}}]"
            lines.append(f"| {head}{name} | {result[key]:{form}}{interval} |")
        sizes = ", ".join(f"{result[key]:,} {name}" for key, name in _SIZES if result.get(key) is not None)
        lines.append(f"| {head}over | {sizes} |")
    return "\n".join(lines) + "\n"


def _threshold(threshold: Mapping[str, Any] | None) -> str:
    if threshold is None:
        return ""
    return (
        f"\nAt a cosine of {threshold['value']:.4f} as many pairs of different speakers are accepted as pairs of the\n"
        "same speaker are refused, on these trials. Other recordings need a threshold of their own.\n"
    )
