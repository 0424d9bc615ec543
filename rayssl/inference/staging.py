"""Stages nights with a trained run: pictures of a night's epochs to the probabilities of their stages."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rayssl import storage
from rayssl.data import decode, mel
from rayssl.data.decode import DecodeError
from rayssl.data.nights.scores import NightScores
from rayssl.data.sources.base import Reference
from rayssl.data.sources.checked import CheckedSource
from rayssl.data.sources.nights import EPOCH_S, STAGES, Dropped, NightSourceConfig
from rayssl.errors import AudioError, CheckpointError
from rayssl.evaluation.embeddings import frozen
from rayssl.evaluation.hypnogram import sleep_variables
from rayssl.evaluation.windows import averaged, night_windows
from rayssl.experiment.config import Experiment
from rayssl.inference.encoder import load_encoder
from rayssl.models.encoder import NightEncoder
from rayssl.models.nightmel import NightMel
from rayssl.reports.nights import night_file
from rayssl.training import checkpoint


class Stager:
    """The encoder and the classifier of a checkpoint of the method ``sleep``.

    ``names``: the C stages. ``stride``: see `rayssl.evaluation.settings.StagingConfig`. ``batch``: windows of one
    forward pass. Raises `CheckpointError` if the run does not stage nights.
    """

    def __init__(
        self,
        experiment: Experiment,
        checkpoint_uri: str,
        device: str | torch.device = "cpu",
        *,
        stride: int = 20,
        batch: int = 8,
    ) -> None:
        loaded = checkpoint.load(checkpoint_uri)
        prefix = loaded.state.get("head_prefix")
        encoder = load_encoder(experiment, checkpoint_uri, decode.RATE)
        if prefix is None or not isinstance(encoder, NightEncoder):
            raise CheckpointError(
                f"{checkpoint_uri}: a run of method.name={experiment.method.name} does not stage nights; give one of "
                "method sleep"
            )
        assert isinstance(encoder.frontend, NightMel)
        self.encoder, self.device = encoder.to(device), torch.device(device)
        weights = (loaded.state["method"][f"{prefix}linear.{name}"].float() for name in ("weight", "bias"))
        self._weight, self._bias = (weight.to(device) for weight in weights)
        self.names, self.stride, self.batch = STAGES, stride, batch
        self.mel = encoder.frontend.config.mel

    def probabilities(self, index: NDArray[np.int64], pictures: NDArray[np.float16]) -> NDArray[np.float32]:
        """The probabilities ``[n, C]`` of a night's epochs.

        ``index [n]``: their positions in the night, rising. ``pictures [n, F, frames]``: see `rayssl.data.mel.picture`.
        Raises `AudioError` if a result is not finite.
        """
        scored = self.encoder.scored
        windows = night_windows(
            index, sequence=self.encoder.window, stride=self.stride, scored=(scored.start, scored.stop)
        )
        found = []
        with frozen(self.encoder):
            for first in range(0, len(windows.source), self.batch):
                rows = windows.source[first : first + self.batch]
                given = torch.from_numpy(pictures[rows]).to(self.device).float()
                z, _ = self.encoder.sequence(given, None)
                found.append(torch.softmax(z @ self._weight.T + self._bias, dim=-1).cpu().numpy())
        made = np.concatenate(found)
        if not np.isfinite(made).all():
            raise AudioError("the predictions are not finite; use another checkpoint")
        return averaged(windows, made, len(index))


@dataclass(frozen=True)
class StagedNight:
    """A night with its ``scores``, and ``notes``: what was missing in its files, a line each."""

    scores: NightScores
    notes: list[str]


def stage_nights(stager: Stager, source: NightSourceConfig, say: Callable[[str], None]) -> Iterator[StagedNight]:
    """The nights of ``source`` one after the other. A night lies in memory as pictures only: 50 MB for 8 h.

    ``say`` gets a line for each night that cannot be used. Raises `UserError` if the source cannot be listed.
    """
    read = CheckedSource(source)
    for part in read.parts():
        for reference in read.list_part(part):
            try:
                yield _staged(stager, read, reference)
            except (DecodeError, AudioError) as error:
                say(f"{read.place(reference)}: {error}")


def _staged(stager: Stager, source: CheckedSource, reference: Reference) -> StagedNight:
    index, truth, pictures, notes = list[int](), list[int](), list[NDArray[np.float16]](), list[str]()
    try:
        for item in source.epochs(reference):
            if isinstance(item, Dropped):
                notes.append(item.reason)
                continue
            index.append(item.index)
            truth.append(item.stage)
            pictures.append(mel.picture(item.samples, stager.mel, decode.RATE))
    except DecodeError as error:
        if not index:
            raise
        notes.append(str(error))
    if not index:
        raise AudioError(notes[0] if notes else "has no whole epoch of 30 s")
    places = np.array(index, np.int64)
    found = stager.probabilities(places, np.stack(pictures))
    scores = NightScores(reference.name, reference.speaker or reference.name, places, np.array(truth, np.int64), found)
    return StagedNight(scores, notes)


def write_night(folder: str, staged: StagedNight, names: tuple[str, ...] = STAGES) -> str:
    """Writes ``<night>.csv``, ``<night>.json`` and ``<night>.png`` into ``folder``; returns the path of the picture.

    The CSV has a row for each epoch: epoch, seconds from the beginning, stage, and the probability of each stage. The
    JSON has the sleep variables (minutes; efficiency as a share) and the minutes of each stage.
    """
    scores = staged.scores
    stem = storage.join(folder, scores.name.replace("/", "_"))
    lines = io.StringIO()
    table = csv.writer(lines, lineterminator="\n")
    table.writerow(["epoch", "seconds", "stage", *(name.lower() for name in names)])
    predicted = scores.predicted
    for place, stage, row in zip(scores.index.tolist(), predicted.tolist(), scores.probabilities, strict=True):
        table.writerow([place, place * EPOCH_S, names[stage], *(f"{value:.4f}" for value in row)])
    summary: dict[str, Any] = {
        "night": scores.name,
        "epochs": len(predicted),
        **sleep_variables(predicted, scores.index, names).model_dump(),
        "minutes": {name: float((predicted == k).sum() * EPOCH_S / 60) for k, name in enumerate(names)},
        "notes": staged.notes,
    }
    storage.write_text(f"{stem}.csv", lines.getvalue())
    storage.write_text(f"{stem}.json", json.dumps(summary, indent=1) + "\n")
    storage.write_bytes(f"{stem}.png", night_file(scores, names))
    return f"{stem}.png"
