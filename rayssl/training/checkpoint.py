"""Checkpoints: everything a run needs to go on as if it had not stopped, in one folder.

``checkpoints/step-0000001234/`` holds ``state.pt`` (model, optimiser, random states; read with ``weights_only=True``),
``memory-*.npz`` (the memory, see `rayssl.training.pieces`; read with ``allow_pickle=False``) and, written last,
``meta.json`` with the cursor and the size and SHA-256 of the others. A folder without a valid ``meta.json`` is not a
checkpoint: what a crash leaves behind is never taken for one. Object stores have no rename, so the order of writing is
the commit protocol.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import Field

from rayssl import storage
from rayssl.errors import CheckpointError
from rayssl.schema import Config
from rayssl.training import pieces
from rayssl.training.pieces import Records

_STATE, _META = "state.pt", "meta.json"
_FORMER = "memory.npz"  # the whole memory, as rayssl wrote it once


class CheckpointConfig(Config):
    """``every_steps`` between checkpoints inside an epoch (0: only at epoch ends, where there always is one);
    ``keep`` the last so many; ``best``: also the one with the lowest epoch mean of this metric; ``milestones``: also
    those at the end of these epochs (counted from 1), for ever.
    """

    every_steps: int = Field(0, ge=0)
    keep: int = Field(2, ge=1)
    best: str | None = "loss"
    milestones: list[int] = []


@dataclass(frozen=True)
class Meta:
    """``step``: optimiser steps done; ``epoch``, ``epoch_step``: the next batch; ``metrics`` of the last epoch."""

    step: int
    epoch: int
    epoch_step: int
    architecture: str
    metrics: dict[str, float] = field(default_factory=dict)
    files: Records = field(default_factory=dict)


@dataclass(frozen=True)
class Loaded:
    """A checkpoint read back: ``state`` as `save` took it. The memory is left where it is, to be read by its stores."""

    uri: str
    meta: Meta
    state: dict[str, Any]

    @property
    def memory(self) -> Records:
        """The records of the memory's files, none where there was no memory."""
        if _FORMER in self.meta.files:
            raise CheckpointError(
                f"{self.uri}/{_FORMER}: a memory in one file, as rayssl wrote it before, cannot be gone on with; use "
                "another run folder, with method.start_from to begin with these weights"
            )
        return {name: record for name, record in self.meta.files.items() if name.startswith(pieces.PREFIX)}


def save(run: str, meta: Meta, state: dict[str, Any], memory: Callable[[str], Records] | None) -> str:
    """Writes one checkpoint below the run's folder and returns its URI; complete once this returns.

    ``memory`` writes the memory's own files into the folder it is given, and returns their records.
    """
    uri = storage.join(run, "checkpoints", f"step-{meta.step:010d}")
    written = {_STATE: pieces.recorded(uri, _STATE, _torch_bytes(state))}
    if memory is not None:
        written |= memory(uri)
    text = json.dumps({**meta.__dict__, "files": written}, indent=1)
    storage.write_bytes(storage.join(uri, _META), text.encode())
    return uri


def steps(run: str) -> list[int]:
    """Steps of the complete checkpoints of a run, ascending."""
    found = []
    for uri in storage.list_files(storage.join(run, "checkpoints"), suffixes=(_META,)):
        step = _step_of(uri.rpartition("/")[0])
        if step is not None:
            found.append(step)
    return sorted(found)


def locate(run: str, which: str, best: str | None = "loss") -> str:
    """The URI of a run's checkpoint: ``last``, ``best``, ``epoch-N`` (the end of epoch N, from 1) or ``step-N``.

    Raises `CheckpointError` naming the run and what it has instead.
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
            scored = {step: meta.metrics[best] for step, meta in ends.items() if best in meta.metrics}
            chosen = min(scored, key=lambda step: scored[step]) if scored else None
        else:
            chosen = next((step for step, meta in ends.items() if which == f"epoch-{meta.epoch}"), None)
    if chosen is None:
        have = ", ".join(f"step-{step}" for step in known)
        raise CheckpointError(f"{run}: no checkpoint '{which}'; there are {have} (also: last, best, epoch-N)")
    return _uri(run, chosen)


def kept(run: str) -> list[str]:
    """The URIs of all complete checkpoints of a run, in order."""
    return [_uri(run, step) for step in steps(run)]


def read_meta(uri: str) -> Meta:
    """The meta data of the checkpoint at ``uri``."""
    text = storage.read_text(storage.join(uri, _META))
    try:
        return Meta(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{uri}/{_META}: not a checkpoint's meta data; delete this folder and resume") from error


def load(uri: str) -> Loaded:
    """Reads a checkpoint and verifies it; raises `CheckpointError` naming the damaged file."""
    meta = read_meta(uri)
    if _STATE not in meta.files:
        raise CheckpointError(f"{uri}/{_META}: names no {_STATE}; delete this folder and resume")
    data = pieces.verified(uri, _STATE, meta.files[_STATE])
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise pieces.foreign(uri, _STATE) from error
    return Loaded(uri, meta, state)


def take_over(source: str, run: str) -> str:
    """Makes the last checkpoint of the run ``source`` the last one of ``run``, with everything in it; its new URI.

    Later ones of ``run``, and its own of the same step, are removed. Raises `CheckpointError` where ``source`` has
    none, or a damaged one; ``run`` is as it was then.
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
    """The URI of the checkpoint ``source``, or of a run's last one; raises `CheckpointError` where there is none."""
    return source if storage.exists(storage.join(source, _META)) else locate(source, "last")


def load_weights(module: torch.nn.Module, source: str, architecture: str) -> str:
    """Gives ``module`` the weights of a checkpoint, or of a run's last one; returns the checkpoint's URI.

    What SSPS wraps is taken out of a run of SSPS. Raises `CheckpointError` where there is none or it does not fit.
    """
    uri = find_weights(source)
    state = load(uri).state["method"]
    if all(name.startswith("base.") for name in state):
        state = {name.removeprefix("base."): value for name, value in state.items()}
    load_module(module, state, uri, architecture)
    return uri


def load_module(module: torch.nn.Module, state: dict[str, torch.Tensor], uri: str, architecture: str) -> None:
    """Strictly; ``state`` is of the checkpoint at ``uri``.

    Raises `CheckpointError` naming the first parameter that does not fit, and both architectures.
    """
    own = module.state_dict()
    for name in sorted(own.keys() | state.keys()):
        if name not in state:
            problem = f"it lacks '{name}'"
        elif name not in own:
            problem = f"it has '{name}', which this model lacks"
        elif own[name].shape != state[name].shape:
            problem = f"'{name}' is {list(state[name].shape)} there and {list(own[name].shape)} here"
        else:
            continue
        raise CheckpointError(
            f"{uri}: the checkpoint is of another architecture, {read_meta(uri).architecture}: {problem}; "
            f"this run's is {architecture}; use the run's own config.yaml or another run folder"
        )
    module.load_state_dict(state)


def prune(run: str, config: CheckpointConfig) -> None:
    """Removes the checkpoints that ``config`` does not keep, and what an interrupted `save` or `prune` left behind.

    ``meta.json`` goes first, so that none is half there. To be called by the run's only writer, after `save`.
    """
    known = steps(run)
    written = storage.list_files(storage.join(run, "checkpoints"), suffixes=(_STATE, ".npz"))
    for folder in {uri.rpartition("/")[0] for uri in written}:
        step = _step_of(folder)
        if step is not None and step not in known:
            storage.remove(folder, recursive=True)
    kept = set(known[-config.keep :])
    metas = {step: read_meta(_uri(run, step)) for step in known}
    ends = {step: meta for step, meta in metas.items() if meta.epoch_step == 0}
    kept |= {step for step, meta in ends.items() if meta.epoch in config.milestones}
    scored = {step: meta.metrics[config.best] for step, meta in ends.items() if config.best in meta.metrics}
    if scored:
        kept.add(min(scored, key=lambda step: scored[step]))
    for step in set(known) - kept:
        storage.remove(storage.join(_uri(run, step), _META))
        storage.remove(_uri(run, step), recursive=True)


def _step_of(folder: str) -> int | None:
    """The step that a checkpoint's folder is named after, None for any other folder."""
    name = folder.rpartition("/")[2]
    return int(name[5:]) if name.startswith("step-") and name[5:].isdigit() else None


def _uri(run: str, step: int) -> str:
    return storage.join(run, "checkpoints", f"step-{step:010d}")


def _torch_bytes(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
