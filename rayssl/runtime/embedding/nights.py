"""The epochs of nights in a corpus, as pictures: what staging and embedding read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayssl import storage
from rayssl.data import mel, shards
from rayssl.data.decode import pcm
from rayssl.data.mel import MelConfig
from rayssl.data.shards import Manifest, Shard
from rayssl.errors import CorpusError
from rayssl.evaluation.settings import StagingConfig
from rayssl.experiment.config import Experiment
from rayssl.models.nightmel import NightMelConfig

_PICTURE, _BANDS = "picture", b"bands"


class ShardEpochs(NamedTuple):
    """n epochs of one night: their ``table`` without audio, and their ``pictures``, ``[F, frames]`` each."""

    table: pa.Table
    pictures: list[NDArray[np.float16]]

    @property
    def night(self) -> str:
        """The name of the night."""
        return str(self.table["name"][0].as_py().rpartition("/")[0])

    @property
    def places(self) -> NDArray[np.int64]:
        """The positions of the epochs in the night, rising: int64 ``[n]``."""
        return np.array([int(name.rpartition("/")[2]) for name in self.table["name"].to_pylist()], np.int64)

    def packed(self) -> pa.Table:
        """``table`` with a column of the pictures, to send it to another process."""
        cells = pa.array([picture.tobytes() for picture in self.pictures], pa.large_binary())
        shape = {_BANDS: str(len(self.pictures[0])).encode()}
        return self.table.append_column(pa.field(_PICTURE, cells.type, metadata=shape), cells)

    @classmethod
    def unpacked(cls, table: pa.Table) -> ShardEpochs:
        """The epochs of a `packed` table."""
        bands = int(table.schema.field(_PICTURE).metadata[_BANDS])
        pictures = [np.frombuffer(cell.as_buffer(), np.float16).reshape(bands, -1) for cell in table[_PICTURE]]
        return cls(table.drop_columns([_PICTURE]), pictures)

    @classmethod
    def joined(cls, parts: Sequence[ShardEpochs]) -> ShardEpochs:
        """The epochs of all ``parts``, in their order."""
        tables = [part.table for part in parts]
        return cls(pa.concat_tables(tables), [picture for part in parts for picture in part.pictures])


def night_windows_of(experiment: Experiment) -> tuple[int, int]:
    """The stride of windows over a night, and the windows of one forward pass; the run's if it is evaluated so."""
    given = experiment.evaluation
    settings = given if isinstance(given, StagingConfig) else StagingConfig(task="staging", corpus="")
    return settings.stride, settings.batch


def check_pictures(experiment: Experiment, corpus: str, manifest: Manifest) -> None:
    """Raises `CorpusError` if the corpus holds pictures that the run's encoder does not take."""
    frontend = experiment.encoder.frontend
    if manifest.mel is None:
        return
    if not isinstance(frontend, NightMelConfig):
        raise CorpusError(
            f"{corpus}: holds pictures of epochs of sleep, and encoder.frontend.name={frontend.name} needs audio; "
            "prepare it with format flac"
        )
    if manifest.mel != frontend.mel:
        mine, theirs = frontend.mel.model_dump(), manifest.mel.model_dump()
        odd = next(key for key in mine if mine[key] != theirs[key])
        raise CorpusError(
            f"{corpus}: its pictures were made with other settings than encoder.frontend.mel ({odd} is {theirs[odd]}, "
            f"not {mine[odd]}); prepare it with those of the run"
        )


def read_epochs(corpus: str, manifest: Manifest, shard: Shard, config: MelConfig) -> ShardEpochs:
    """The epochs of a shard of a corpus of nights; ``config``: how pictures are made if the corpus holds audio.

    Raises `CorpusError` naming the epoch whose audio is damaged.
    """
    table = shards.read_shard(corpus, shard, ["name", "audio", *shards.KINDS])
    names = table["name"].to_pylist()
    pictures = []
    for name, audio in zip(names, table["audio"], strict=True):
        try:
            values = pcm(audio.as_buffer(), manifest.format)
        except CorpusError as error:
            raise CorpusError(f"{storage.join(corpus, shard.path)}: epoch '{name}': {error}") from None
        if manifest.mel is None:
            pictures.append(mel.picture(values * np.float32(1 / 32768), config, manifest.rate))
        else:
            pictures.append(values.view(np.float16).reshape(manifest.epoch_shape))
    return ShardEpochs(table.drop_columns(["audio"]), pictures)
