"""Stages nights with a trained run: pictures of a night's epochs to the probabilities of their stages."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayssl import storage
from rayssl.data import decode, mel
from rayssl.data.decode import DecodeError
from rayssl.data.nights.scores import NightScores
from rayssl.data.nights.timeline import shown
from rayssl.data.sources.base import Reference
from rayssl.data.sources.checked import CheckedSource
from rayssl.data.sources.nights import EPOCH_S, STAGES, Dropped, NightSourceConfig
from rayssl.errors import AudioError, CheckpointError
from rayssl.evaluation.embeddings import embed_windows, encode_epochs
from rayssl.evaluation.hypnogram import sleep_variables
from rayssl.experiment.config import Experiment
from rayssl.inference.encoder import encoder_of
from rayssl.models.encoder import Encoder, NightEncoder
from rayssl.models.layout import placed
from rayssl.models.nightmel import NightMel
from rayssl.training import weights

# epochs that a CPU encodes at once where a whole night is read: 40 take 35 MB more and a seventh less of time
_TOGETHER = 4


class Stager:
    """An encoder of nights and the classifier behind it.

    ``names``: the C stages. ``head``: weight ``[C, D]`` and bias ``[C]``. ``stride``: see
    `rayssl.evaluation.settings.StagingConfig`. ``batch``: windows of one forward pass; 0: eight on a GPU, and one on a
    CPU, where more only take memory.
    """

    def __init__(
        self,
        encoder: NightEncoder,
        head: tuple[Tensor, Tensor],
        device: str | torch.device = "cpu",
        *,
        stride: int = 20,
        batch: int = 0,
    ) -> None:
        assert isinstance(encoder.frontend, NightMel)
        self.device = torch.device(device)
        self.encoder = placed(encoder, self.device)
        self._weight, self._bias = (each.to(device) for each in head)
        self.names, self.stride = STAGES, stride
        self.batch = batch or (1 if self.device.type == "cpu" else 8)
        self.mel = encoder.frontend.config.mel

    @classmethod
    def load(
        cls,
        experiment: Experiment,
        checkpoint_uri: str,
        device: str | torch.device = "cpu",
        *,
        stride: int = 20,
        batch: int = 0,
    ) -> Stager:
        """The stager of a checkpoint. Raises `CheckpointError` if the run does not stage nights."""
        found = weights.of_run(checkpoint_uri)
        encoder = encoder_of(experiment, found, decode.RATE)
        return cls(*staging_parts(experiment, checkpoint_uri, encoder, found.head), device, stride=stride, batch=batch)

    def encode(self, pictures: Iterable[NDArray[np.float16]], together: int | None = None) -> Tensor:
        """What `probabilities` needs of a night's epochs, see `rayssl.evaluation.embeddings.encode_epochs`."""
        return encode_epochs(self.encoder, pictures, self.device, together)

    def probabilities(self, index: NDArray[np.int64], encoded: Tensor) -> NDArray[np.float32]:
        """The probabilities ``[n, C]`` of a night's epochs.

        ``index [n]``: their positions in the night, rising. ``encoded``: what `encode` gives of them. Raises
        `AudioError` if a result is not finite.
        """
        how = {"stride": self.stride, "batch": self.batch}
        try:
            return embed_windows(self.encoder, index, encoded, self.device, head=self._head, **how)
        except ValueError:
            raise AudioError("the predictions are not finite; use another checkpoint") from None

    def _head(self, z: Tensor) -> Tensor:
        return torch.softmax(z @ self._weight.T + self._bias, dim=-1)


def staging_parts(
    experiment: Experiment, checkpoint_uri: str, encoder: Encoder, head: tuple[Tensor, Tensor] | None
) -> tuple[NightEncoder, tuple[Tensor, Tensor]]:
    """``encoder`` and ``head``, if they stage nights. Raises `CheckpointError` if they do not."""
    if head is None or not isinstance(encoder, NightEncoder):
        raise CheckpointError(
            f"{checkpoint_uri}: a run of method.name={experiment.method.name} does not stage nights; give one of "
            "method sleep"
        )
    return encoder, head


@dataclass(frozen=True)
class StagedNight:
    """A night with its ``scores``, and ``notes``: what was missing in its files, a line each.

    ``begins``: the local time at which epoch 0 begins, None if the files do not say it; year 1 stands for an unknown
    day.
    """

    scores: NightScores
    notes: list[str]
    begins: datetime | None = None


def stage_nights(stager: Stager, source: NightSourceConfig, say: Callable[[str], None]) -> Iterator[StagedNight]:
    """The nights of ``source`` one after the other. An epoch is encoded once it is read, and its sound is not kept.

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
    index, truth, notes = list[int](), list[int](), list[str]()

    def pictures() -> Iterator[NDArray[np.float16]]:
        try:
            for item in source.epochs(reference):
                if isinstance(item, Dropped):
                    notes.append(item.reason)
                    continue
                index.append(item.index)
                truth.append(item.stage)
                yield mel.picture(item.samples, stager.mel, decode.RATE)
        except DecodeError as error:
            if not index:
                raise
            notes.append(str(error))
        if not index:
            raise AudioError(notes[0] if notes else "too short: it has no whole epoch of 30 s")

    encoded = stager.encode(pictures(), _TOGETHER if stager.device.type == "cpu" else None)
    places = np.array(index, np.int64)
    found = stager.probabilities(places, encoded)
    scores = NightScores(reference.name, reference.speaker or reference.name, places, np.array(truth, np.int64), found)
    return StagedNight(scores, notes, source.begins(reference))


def write_night(folder: str, staged: StagedNight, names: tuple[str, ...] = STAGES) -> str:
    """Writes ``<night>.csv``, ``<night>.json`` and ``<night>.png`` below ``folder``; returns the path of the picture.

    The CSV has a row for each epoch: epoch, seconds from the beginning of epoch 0, the clock if it is known, stage, and
    the probability of each stage. The JSON has the sleep variables (minutes; efficiency as a share), the minutes of
    each stage, and how many epochs are missing between the first and the last one.
    """
    from rayssl.reports.nights import night_file  # imports matplotlib, 30 MB, which reading and staging need not hold

    scores, predicted = staged.scores, staged.scores.predicted
    stem = storage.join(folder, scores.name)
    clocks = [] if staged.begins is None else [shown(staged.begins, EPOCH_S * place) for place in scores.index.tolist()]
    lines = io.StringIO()
    table = csv.writer(lines, lineterminator="\n")
    table.writerow(["epoch", "seconds", *(["clock"] if clocks else []), "stage", *(name.lower() for name in names)])
    for row, (place, stage) in enumerate(zip(scores.index.tolist(), predicted.tolist(), strict=True)):
        values = (f"{value:.4f}" for value in scores.probabilities[row])
        table.writerow([place, place * EPOCH_S, *clocks[row : row + 1], names[stage], *values])
    summary: dict[str, Any] = {
        "night": scores.name,
        "begins": None if staged.begins is None else shown(staged.begins, 0),
        "epochs": len(predicted),
        "missing": int(scores.index[-1] - scores.index[0]) + 1 - len(predicted),
        **sleep_variables(predicted, scores.index, names).model_dump(),
        "minutes": {name: float((predicted == k).sum() * EPOCH_S / 60) for k, name in enumerate(names)},
        "notes": staged.notes,
    }
    storage.write_text(f"{stem}.csv", lines.getvalue())
    storage.write_text(f"{stem}.json", json.dumps(summary, indent=1) + "\n")
    storage.write_bytes(f"{stem}.png", night_file(scores, names))
    return f"{stem}.png"
