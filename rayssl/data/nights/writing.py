"""One night becomes shards of its epochs: encoded or as pictures, in order, a shard at a time."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from pydantic import Field

from rayssl import storage
from rayssl.data import decode, mel, shards
from rayssl.data.mel import MelConfig
from rayssl.data.nights.runs import NightRun
from rayssl.data.shards import Reject, Shard
from rayssl.data.sources.base import Reference
from rayssl.data.sources.checked import CheckedSource
from rayssl.data.sources.nights import EPOCH_S, STAGES, UNSCORED_NAME, Dropped, Epoch
from rayssl.schema import Config

GROUP_ROWS = 8  # epochs in a row group: a sequence reads little that it does not use
_SHARD_BYTES = 64 << 20  # a shard of audio ends here, so that a task needs little memory
SILENT = "silent"


class NightsConfig(Config):
    """How nights become epochs of a corpus."""

    mel: MelConfig = MelConfig()
    """Bands and frames of the stored pictures, if ``format`` is ``mel``."""
    shard_epochs: int = Field(default=240, ge=1)
    """The most epochs of a night in one shard. A training sequence does not go beyond a shard, so keep it well above
    ``encoder.backbone.sequence``.
    """
    min_hours: float = Field(default=0.0, ge=0)
    """A night with fewer hours of audio is a reject. The package that seems to be the authors' has 6."""
    max_zero_share: float = Field(default=1.0, ge=0, le=1)
    """A night is a reject if a larger share of its samples is exactly zero, or if all are. The package that seems to be
    the authors' has 0.15.
    """


class NightDone(Config):
    """What a night became: its shards with their runs, its epochs of each stage, and what is missing, by reason.

    ``recording`` and ``subject``: the indices of both. ``rejects``: the night, if it cannot be used; else what was left
    out of it.
    """

    recording: int
    subject: int
    shards: list[Shard] = []
    runs: list[list[NightRun]] = []
    stages: dict[str, int] = {}
    dropped: dict[str, int] = {}
    rejects: list[Reject] = []


class NightWriter:
    """Writes the shards of one night below ``out``.

    ``number``: of the night among all nights; it begins the names of the shards. ``speaker`` and ``recording`` are the
    indices of its subject and its night.
    """

    def __init__(
        self, out: str, number: int, config: NightsConfig, format: decode.Format, speaker: int, recording: int
    ) -> None:
        self._out, self._number, self._config, self._format = out, number, config, format
        self._facts = {"speaker": speaker, "recording": recording}
        self._columns: dict[str, list[Any]] = {field.name: [] for field in shards.SCHEMA}
        self._runs: list[NightRun] = []
        self._bytes = self._zeros = self._samples = 0
        self._stages: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self.done = NightDone(recording=recording, subject=speaker)

    def write(self, source: CheckedSource, reference: Reference) -> NightDone:
        """Reads the night and writes it. A night that cannot be used leaves no shards, but a reject."""
        reason = None
        try:
            for item in source.epochs(reference):
                if isinstance(item, Dropped):
                    self._drop(source, reference, item)
                else:
                    self._add(reference.name, item)
        except decode.DecodeError as error:
            reason = str(error)
        self._flush()
        unusable = self._unusable() if self._samples else self._empty(reason)
        if unusable is not None:
            for shard in self.done.shards:
                storage.remove(storage.join(self._out, shard.path))
            text = unusable if reason in (None, unusable) else f"{unusable}; {reason}"
            only = [self._reject(source, reference, text)]
            self.done = NightDone(recording=self.done.recording, subject=self.done.subject, rejects=only)
            return self.done
        if reason is not None:  # what came before is kept, and the rest is told
            self.done.rejects.append(self._reject(source, reference, reason))
        self.done = self.done.model_copy(update={"stages": dict(self._stages), "dropped": dict(self._dropped)})
        return self.done

    def _add(self, night: str, epoch: Epoch) -> None:
        if not np.isfinite(epoch.samples).all():
            self._dropped["not finite"] += 1
            return
        zeros = int(np.count_nonzero(epoch.samples == 0))
        self._samples += len(epoch.samples)
        self._zeros += zeros
        if self._format == "mel":
            picture = mel.picture(epoch.samples, self._config.mel, decode.RATE)
            audio, size = picture.tobytes(), picture.size
        else:
            pcm = decode.quantise(epoch.samples)
            audio, size = decode.encode(pcm, self._format), len(pcm)
        rows = len(self._columns["name"])
        if self._runs and self._runs[-1].index + self._runs[-1].epochs == epoch.index:
            run = self._runs[-1]
            self._runs[-1] = run.model_copy(update={"epochs": run.epochs + 1})
        else:
            self._runs.append(NightRun(row=rows, epochs=1, index=epoch.index))
        row = {"name": f"{night}/{epoch.index:04d}", "audio": audio, "samples": size, "label": epoch.stage}
        for name, value in (row | self._facts).items():
            self._columns[name].append(value)
        self._stages[STAGES[epoch.stage] if epoch.stage >= 0 else UNSCORED_NAME] += 1
        self._bytes += len(audio)
        if rows + 1 == self._config.shard_epochs or self._bytes >= _SHARD_BYTES:
            self._flush()

    def _flush(self) -> None:
        rows = len(self._columns["name"])
        if not rows:
            return
        place = (self._number, len(self.done.shards))
        shard = shards.write_shard(
            self._out, place, self._columns, group_rows=GROUP_ROWS, seconds=float(rows * EPOCH_S)
        )
        self.done.shards.append(shard)
        self.done.runs.append(self._runs)
        self._columns = {name: [] for name in self._columns}
        self._runs, self._bytes = [], 0

    def _drop(self, source: CheckedSource, reference: Reference, item: Dropped) -> None:
        kind = item.reason.partition(":")[0]
        if item.epochs:
            self._dropped[kind] += item.epochs
        self.done.rejects.append(self._reject(source, reference, item.reason))

    def _empty(self, reason: str | None) -> str:
        """Why there is no epoch: ``reason``, if the night ended with an error, or what was dropped."""
        dropped = ", ".join(f"{count} {kind}" for kind, count in sorted(self._dropped.items()))
        return reason or "empty: no epoch of the night can be used" + (f" (dropped: {dropped})" if dropped else "")

    def _unusable(self) -> str | None:
        hours = self._samples / decode.RATE / 3600
        if hours < self._config.min_hours:
            return f"too short: {hours:.2f} h, nights.min_hours is {self._config.min_hours:g}"
        share = self._zeros / self._samples
        if share == 1:
            return f"{SILENT}: every sample is zero"
        most = self._config.max_zero_share
        if share > most:
            return f"{SILENT}: {share:.1%} of the samples are zero, nights.max_zero_share is {most:g}"
        return None

    def _reject(self, source: CheckedSource, reference: Reference, reason: str) -> Reject:
        return Reject(name=reference.name, source=source.place(reference), reason=reason)
