"""Checkpoints: everything that a run needs to resume as if it had not stopped, in one folder.

``checkpoints/step-0000001234/`` holds ``state.pt`` (model, optimiser, random states; read with ``weights_only=True``),
``memory-*.npz`` (the memory, see `rayssl.training.pieces`; read with ``allow_pickle=False``) and ``meta.json``, which
is written last. ``meta.json`` has the cursor, the size and SHA-256 of the other files, and a hash of itself. A folder
without a valid ``meta.json`` is not a checkpoint: nobody takes what a crash leaves behind for one. Object stores have
no rename, so the order of writing is the commit protocol.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from rayssl import storage
from rayssl.errors import CheckpointError, DamagedCheckpoint
from rayssl.schema import Config
from rayssl.training import pieces
from rayssl.training.pieces import Records

_STATE, _META = "state.pt", "meta.json"
_ASIDE = "meta.damaged"  # what `go_back` makes of meta.json
_DIGEST = "sha256"  # in meta.json, of all the rest of it
_FORMER = "memory.npz"  # the whole memory in one file, as an earlier rayssl wrote it


class CheckpointConfig(Config):
    """When checkpoints are written, and which ones stay.

    ``every_steps``: steps between checkpoints inside an epoch; 0 for none. The end of an epoch always has one.
    ``keep``: how many of the last ones stay. ``best``: the one with the lowest epoch mean of this metric stays too,
    unless ``training.validate`` judges.
    ``milestones``: those at the end of these epochs (counted from 1) stay for ever.
    """

    every_steps: int = Field(0, ge=0)
    """Steps between two checkpoints inside an epoch; 0 for none. The end of an epoch always has one. Set it where an
    epoch takes hours, so that a failure costs less.
    """
    keep: int = Field(2, ge=1)
    """How many of the last checkpoints stay. Older ones are deleted, except the best one and the milestones."""
    best: str | None = "loss"
    """The metric whose lowest mean over an epoch marks the best checkpoint, which stays too and is called ``best``. A
    name from the epoch lines of ``metrics.jsonl``; null keeps none. From ``method.start_epoch`` of SSPS on, only epochs
    after it count: losses before and after cannot be compared. With ``training.validate``, its metric decides instead.
    """
    milestones: list[Annotated[int, Field(ge=1)]] = []
    """The epochs, counted from 1, whose last checkpoint stays for ever, for example to evaluate the course of a
    training with ``--checkpoint every``.
    """


@dataclass(frozen=True)
class Meta:
    """What ``meta.json`` holds.

    ``step``: optimiser steps done. ``epoch``, ``epoch_step``: the cursor of the next batch. ``metrics``: those of the
    last epoch. ``files``: the records of the other files. ``validated``: how far validation has come, see
    `rayssl.training.validating.Validation`; empty without any.
    """

    step: int
    epoch: int
    epoch_step: int
    architecture: str
    metrics: dict[str, float] = field(default_factory=dict)
    files: Records = field(default_factory=dict)
    validated: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Best:
    """Which checkpoint is the best: of those at the end of an epoch, the one with the best ``metric``.

    ``metric``: a name in `Meta.metrics`; None for no best one. ``mode``: whether the lowest or the highest value is
    best. ``since``: once there is a checkpoint of a later epoch than this (counted from 1), only later ones count: the
    values before are of another objective.
    """

    metric: str | None = "loss"
    mode: Literal["min", "max"] = "min"
    since: int = 0

    def of(self, metas: Iterable[Meta]) -> int | None:
        """The step of the best of the checkpoints ``metas``, the earliest of equal ones; None if none has a value."""
        ends = [meta for meta in metas if meta.epoch_step == 0]
        if any(meta.epoch > self.since for meta in ends):
            ends = [meta for meta in ends if meta.epoch > self.since]
        sign = 1.0 if self.mode == "min" else -1.0
        scored = {meta.step: sign * meta.metrics[self.metric] for meta in ends if self.metric in meta.metrics}
        return min(scored, key=lambda step: (scored[step], step)) if scored else None


@dataclass(frozen=True)
class Loaded:
    """A checkpoint read back, with ``state`` as `save` was given it. The memory's files are not read: its stores do."""

    uri: str
    meta: Meta
    state: dict[str, Any]

    @property
    def memory(self) -> Records:
        """The records of the memory's files; empty for a run without a memory.

        Raises `CheckpointError` for a checkpoint of an earlier rayssl, which had the memory in one file.
        """
        if _FORMER in self.meta.files:
            raise CheckpointError(
                f"{self.uri}/{_FORMER}: an earlier rayssl wrote the memory into one file, and a run cannot resume from "
                "it; use another run folder, with method.start_from to begin with these weights"
            )
        return {name: record for name, record in self.meta.files.items() if name.startswith(pieces.PREFIX)}


def save(run: str, meta: Meta, state: dict[str, Any], memory: Callable[[str], Records] | None) -> str:
    """Writes one checkpoint below the run's folder ``run`` and returns its URI. It is complete when this returns.

    ``state`` goes into ``state.pt``. ``memory`` writes the memory's own files into the folder that it is given and
    returns their records; None for a run without a memory. Raises `StorageError`.
    """
    uri = storage.join(run, "checkpoints", f"step-{meta.step:010d}")
    written = {_STATE: pieces.recorded(uri, _STATE, lambda stream: torch.save(state, stream))}
    if memory is not None:
        written |= memory(uri)
    _write_meta(uri, replace(meta, files=written))
    return uri


def _write_meta(uri: str, meta: Meta) -> None:
    body = dict(meta.__dict__)
    text = json.dumps({**body, _DIGEST: _digest(body)}, indent=1)
    storage.write_bytes(storage.join(uri, _META), text.encode())


def amend(run: str, step: int, metrics: Mapping[str, float], validated: dict[str, float]) -> None:
    """Adds ``metrics`` to those of the complete checkpoint of ``run`` at ``step``, and replaces `Meta.validated`.

    One small object is written anew, whole. Raises `CheckpointError` or `StorageError`.
    """
    meta = read_meta(_uri(run, step))
    _write_meta(_uri(run, step), replace(meta, metrics={**meta.metrics, **metrics}, validated=validated))


def steps(run: str) -> list[int]:
    """The steps of the complete checkpoints of a run, in ascending order; empty where there is none."""
    found = []
    for uri in storage.list_files(storage.join(run, "checkpoints"), suffixes=(_META,)):
        step = _step_of(uri.rpartition("/")[0])
        if step is not None:
            found.append(step)
    return sorted(found)


def locate(run: str, which: str, best: Best = Best()) -> str:
    """The URI of the checkpoint ``which`` of a run.

    Args:
        run: folder or URI of the run.
        which: ``last``, ``best``, ``epoch-N`` (the end of epoch N, counted from 1) or ``step-N``.
        best: which one ``best`` is.

    Raises:
        CheckpointError: there is no such checkpoint. The message names the run and the checkpoints that it has.
    """
    known = steps(run)
    if not known:
        raise CheckpointError(f"{run}: no checkpoint there; train first, or give the folder of a run")
    if which == "last":
        chosen: int | None = known[-1]
    elif which.startswith("step-") and which[5:].isdigit():
        chosen = int(which[5:]) if int(which[5:]) in known else None
    else:
        metas = {step: read_meta(_uri(run, step)) for step in known}
        ends = {step: meta for step, meta in metas.items() if meta.epoch_step == 0}
        if which == "best":
            chosen = best.of(ends.values())
        else:
            chosen = next((step for step, meta in ends.items() if which == f"epoch-{meta.epoch}"), None)
    if chosen is None:
        have = ", ".join(f"step-{step}" for step in known)
        raise CheckpointError(f"{run}: no checkpoint '{which}'; there are {have} (also: last, best, epoch-N)")
    return _uri(run, chosen)


def all_uris(run: str) -> list[str]:
    """The URIs of all complete checkpoints of a run, in the order of their steps."""
    return [_uri(run, step) for step in steps(run)]


def read_meta(uri: str) -> Meta:
    """The meta data of the checkpoint at ``uri``. Raises `CheckpointError` if they cannot be read as such."""
    text = storage.read_text(storage.join(uri, _META))
    try:
        body = json.loads(text)
        digest = body.pop(_DIGEST, None)  # an earlier rayssl wrote none
        if digest is not None and digest != _digest(body):
            raise DamagedCheckpoint(f"{uri}/{_META}: damaged (its hash differs); delete this folder and resume")
        return Meta(**body)
    except CheckpointError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(
            f"{uri}/{_META}: not a checkpoint's meta data; delete this folder and resume"
        ) from error


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def load(uri: str, *, mapped: bool = False) -> Loaded:
    """Reads the checkpoint at ``uri`` and verifies it. Raises `CheckpointError` naming the damaged file.

    ``mapped``: the tensors of a local checkpoint are pages of its file, for one who copies some of them at once.
    """
    meta = read_meta(uri)
    if _STATE not in meta.files:
        raise CheckpointError(f"{uri}/{_META}: does not list {_STATE}; delete this folder and resume")
    what = uri, _STATE, meta.files[_STATE]
    found = pieces.verified_file(*what) if mapped else io.BytesIO(pieces.verified(*what))
    try:
        state = torch.load(found, map_location="cpu", weights_only=True, mmap=isinstance(found, str))
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise pieces.foreign(uri, _STATE) from error
    return Loaded(uri, meta, state)


def go_back(run: str, error: DamagedCheckpoint) -> str | None:
    """Sets the last checkpoint of ``run`` aside, if ``error`` is about it and there is one before. A line that says so.

    None: nothing was changed. Its ``meta.json`` gets another name, so that it is no checkpoint any more.
    """
    known = steps(run)
    if len(known) < 2 or not str(error).startswith(f"{_uri(run, known[-1])}/"):
        return None
    meta = storage.join(_uri(run, known[-1]), _META)
    storage.write_bytes(storage.join(_uri(run, known[-1]), _ASIDE), storage.read_bytes(meta))
    storage.remove(meta)
    what = str(error).partition("; ")[0]
    return f"{what}; it is left out, and the run resumes from the checkpoint before, step {known[-2]}"


def take_over(source: str, run: str) -> str:
    """Copies the last checkpoint of the run ``source`` into ``run``, where it becomes the last one; returns its URI.

    The checkpoints of ``run`` at the same step and later are removed. Raises `CheckpointError` if ``source`` has no
    checkpoint, or a damaged one; ``run`` is unchanged then.
    """
    uri = locate(source, "last")
    meta = read_meta(uri)
    files = {name: pieces.verified(uri, name, record) for name, record in meta.files.items()}
    for step in (step for step in steps(run) if step >= meta.step):
        storage.remove(storage.join(_uri(run, step), _META))
        storage.remove(_uri(run, step), recursive=True)
    own = _uri(run, meta.step)
    for name, data in files.items():
        storage.write_bytes(storage.join(own, name), data)
    storage.write_text(storage.join(own, _META), storage.read_text(storage.join(uri, _META)))
    return own


def find_weights(source: str) -> str:
    """``source`` itself if it is the URI of a checkpoint, else the URI of the last checkpoint of the run ``source``.

    Raises `CheckpointError` if there is none.
    """
    return source if storage.exists(storage.join(source, _META)) else locate(source, "last")


def load_weights(module: torch.nn.Module, source: str, architecture: str) -> str:
    """Gives ``module`` the weights of a checkpoint, or of a run's last one. Returns the checkpoint's URI.

    Of a run of SSPS, the weights of the method inside are taken.

    Args:
        module: what receives the weights.
        source: URI of a checkpoint, or of a run.
        architecture: the model in one line, for the message.

    Raises:
        CheckpointError: there is no checkpoint, or its weights do not fit ``module``.
    """
    uri = find_weights(source)
    state = load(uri).state["method"]
    if all(name.startswith("base.") for name in state):
        state = {name.removeprefix("base."): value for name, value in state.items()}
    load_module(module, state, uri, architecture)
    return uri


def load_module(module: torch.nn.Module, state: dict[str, torch.Tensor], uri: str, architecture: str) -> None:
    """Gives ``module`` exactly the weights of ``state``, which is of the checkpoint at ``uri``.

    Raises `CheckpointError` naming the first parameter that does not fit, and both architectures.
    """
    problem = mismatch(module, state)
    if problem is not None:
        raise CheckpointError(
            f"{uri}: the checkpoint is of another architecture, {read_meta(uri).architecture}: {problem}; "
            f"this run's is {architecture}; use the run's own config.yaml or another run folder"
        )
    module.load_state_dict(state)


def mismatch(module: torch.nn.Module, state: dict[str, torch.Tensor]) -> str | None:
    """What is wrong with the first weight of ``state`` that does not fit ``module``; None if all of them fit."""
    own = module.state_dict()
    for name in sorted(own.keys() | state.keys()):
        if name not in state:
            return f"it lacks '{name}'"
        if name not in own:
            return f"it has '{name}', which this model lacks"
        if own[name].shape != state[name].shape:
            return f"'{name}' is {list(state[name].shape)} there and {list(own[name].shape)} here"
    return None


def prune(run: str, config: CheckpointConfig, best: Best | None = None) -> None:
    """Removes the checkpoints that ``config`` does not keep, and what an interrupted `save` or `prune` left behind.

    ``best``: which one is the best (default: the lowest ``config.best``).
    ``meta.json`` is removed first, so that no checkpoint is half there. Only the run's one writer calls this, after
    `save`.
    """
    known = steps(run)
    storage.remove_unfinished(storage.join(run, "checkpoints"))
    written = storage.list_files(storage.join(run, "checkpoints"), suffixes=(_STATE, ".npz"))
    for folder in {uri.rpartition("/")[0] for uri in written}:
        step = _step_of(folder)
        if step is not None and step not in known:
            storage.remove(folder, recursive=True)
    wanted = set(known[-config.keep :])
    metas = {step: read_meta(_uri(run, step)) for step in known}
    ends = {step: meta for step, meta in metas.items() if meta.epoch_step == 0}
    wanted |= {step for step, meta in ends.items() if meta.epoch in config.milestones}
    chosen = (best or Best(config.best)).of(ends.values())
    for step in set(known) - wanted - {chosen}:
        storage.remove(storage.join(_uri(run, step), _META))
        storage.remove(_uri(run, step), recursive=True)


def _step_of(folder: str) -> int | None:
    """The step in the name of a checkpoint's folder; None for any other folder."""
    name = folder.rpartition("/")[2]
    return int(name[5:]) if name.startswith("step-") and name[5:].isdigit() else None


def _uri(run: str, step: int) -> str:
    return storage.join(run, "checkpoints", f"step-{step:010d}")
