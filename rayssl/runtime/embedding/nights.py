"""The epochs of nights in a corpus, as pictures: what staging and embedding read."""

from __future__ import annotations

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


class ShardEpochs(NamedTuple):
    """The n epochs of a shard, all of one night: ``table`` without audio, and the name of the ``night``.

    ``places`` int64 ``[n]``: the positions of the epochs in the night, rising. ``pictures``: ``[F, frames]`` each.
    """

    table: pa.Table
    night: str
    places: NDArray[np.int64]
    pictures: list[NDArray[np.float16]]


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
    index = np.array([int(name.rpartition("/")[2]) for name in names], np.int64)
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
    return ShardEpochs(table.drop_columns(["audio"]), names[0].rpartition("/")[0], index, pictures)
