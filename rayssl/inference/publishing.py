"""Publishes a run's encoder: a folder that others can load, with weights, configuration and a model card.

    <folder>/model.safetensors   the encoder; ``head.weight`` and ``head.bias`` of a classifier behind it
    <folder>/config.yaml         the run's configuration; of every place only the last part of its name
    <folder>/README.md           the model card
    <folder>/rayssl.json         step, hash of the weights, figures; written last

On a disk, the folder is written beside its place and renamed. In an object store, ``rayssl.json`` makes it complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import yaml

from rayssl import __version__, storage
from rayssl.data import decode
from rayssl.errors import CheckpointError, ConfigError
from rayssl.experiment.config import Experiment
from rayssl.inference.card import Facts, card, data_of, results_of
from rayssl.inference.model import Model, load
from rayssl.inference.scoring import threshold_of
from rayssl.registry import outside_files
from rayssl.runs.reading import RunCheckpoint, find
from rayssl.schema import parse
from rayssl.training import weights

_FILES = (weights.MODEL, "config.yaml", "README.md", weights.ABOUT)


@dataclass(frozen=True)
class Published:
    """What `publish` wrote into ``folder``: ``bytes`` of weights of the checkpoint ``checkpoint``.

    ``evaluated``: whether the card has figures of this checkpoint.
    """

    folder: str
    checkpoint: str
    bytes: int
    evaluated: bool


def publish(run: str, folder: str, which: str = "last") -> Published:
    """Writes the encoder of a checkpoint into the new folder ``folder``.

    Args:
        run: folder or URI of the run.
        folder: a folder or URI that does not exist yet, or is empty.
        which: the checkpoint, ``last``, ``best``, ``epoch-N`` or ``step-N``.

    Raises:
        ConfigError: there is something in ``folder``, or the run has a component in a file of its own, which a folder
            of weights cannot carry.
        CheckpointError: what was written does not give the run's embeddings; nothing stays then.
        UserError: the run cannot be read, or the folder cannot be written.
    """
    source = find(run, which)
    _check(source, folder)
    model = load(run, which, device="cpu")
    found = weights.of_run(source.uri)
    data, results = weights.packed(found.state, found.head), results_of(source, which)
    name = storage.absolute(folder).rstrip("/").rpartition("/")[2]
    config = _shared(source.experiment, name)
    threshold = threshold_of(source, which)
    about: dict[str, Any] = {
        "version": weights.VERSION,
        "rayssl": __version__,
        "name": name,
        "checkpoint": source.checkpoint,
        "step": source.step,
        "sha256": hashlib.sha256(data).hexdigest(),
        "architecture": source.experiment.architecture,
        "rate": model.rate,
        "dim": model.dim,
        "minimum_samples": model.minimum_samples,
        "results": results,
        "threshold": None if threshold is None else vars(threshold),
    }
    facts = Facts(name, source, config, about, data_of(source.experiment))
    texts = (yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), card(facts), json.dumps(about, indent=1))
    _write(folder, [data, *(text.encode() for text in texts)], model)
    return Published(folder, source.checkpoint, len(data), bool(results))


def _check(source: RunCheckpoint, folder: str) -> None:
    """Raises `ConfigError` if the run cannot be published, or not into ``folder``."""
    files = outside_files(source.experiment)
    if files:
        raise ConfigError(
            f"{source.run}: uses {', '.join(files)}, which nobody else has; make a package of it, and name it as "
            "package.module:Class in the run's config.yaml"
        )
    there = storage.list_files(folder)
    unfinished = {storage.join(folder, name) for name in _FILES[:-1]}  # what a broken attempt left in an object store
    if (storage.is_file(folder) or there) and not (storage.is_remote(folder) and unfinished.issuperset(there)):
        raise ConfigError(f"{folder}: is there already; give a new folder, or delete this one")
    storage.check_writable(storage.absolute(folder).rstrip("/").rpartition("/")[0] or "/")


def _shared(experiment: Experiment, name: str) -> Experiment:
    """The experiment as others may see it: without addresses; of every path only its last part."""
    tree = experiment.model_dump(mode="json")
    tree["run"], tree["training"]["trackers"] = name, []
    return parse(Experiment, _shortened(tree), "config.yaml")


def _shortened(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shortened(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_shortened(each) for each in value]
    return value.rstrip("/").rpartition("/")[2] if isinstance(value, str) and "/" in value else value


def _write(folder: str, contents: list[bytes], model: Model) -> None:
    """Writes the files and compares what was written with ``model``. Nothing stays in ``folder`` after an error."""
    place = storage.absolute(folder).rstrip("/")
    remote = storage.is_remote(place)
    above, _, last = place.rpartition("/")
    beside = place if remote else f"{above}/.{last}.{uuid.uuid4().hex[:12]}.part"
    try:
        for name, content in zip(_FILES, contents, strict=True):
            storage.write_bytes(storage.join(beside, name), content)
        _compare(beside, folder, model)
    except BaseException:
        for name in reversed(_FILES):
            storage.remove(storage.join(beside, name))
        if not remote:
            storage.remove(beside, recursive=True)
        raise
    if not remote:
        os.rename(beside, place)  # over an empty folder, too


def _compare(written: str, folder: str, model: Model) -> None:
    """Raises `CheckpointError` unless the folder ``written`` gives the embeddings of ``model``, to the bit."""
    rng = np.random.default_rng(0)
    wave = rng.normal(0, 0.1, max(decode.RATE, model.minimum_samples)).clip(-1, 1).astype(np.float32)
    if not torch.equal(load(written, device="cpu").embed(wave), model.embed(wave)):
        raise CheckpointError(f"{folder}: what was written does not give the run's embeddings; nothing was kept")
