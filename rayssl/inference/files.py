"""Embeds plain audio files, without a prepared corpus: into a Parquet file or a ``.npz`` file, a row for each file.

    id         0, 1, ... in the order of the names
    name       the file as it was given, or its place in the folder that was given
    seconds    the length of its audio
    embedding  float32 [D], not normalised

The Parquet file's metadata and the array ``about`` of the ``.npz`` file say in JSON what made the rows.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayssl import __version__, storage
from rayssl.data.sources.files import AUDIO_SUFFIXES
from rayssl.errors import AudioError, ConfigError, StorageError
from rayssl.inference.model import Model
from rayssl.training.ahead import made_ahead

SUFFIXES = (".parquet", ".npz")
_ABOUT = b"rayssl"
_SAY_EVERY_S = 10.0


@dataclass(frozen=True)
class FileEmbeddings:
    """N files: their ``names``, the ``seconds`` of their audio ``[N]``, and ``rows`` float32 ``[N, D]``."""

    names: list[str]
    seconds: NDArray[np.float64]
    rows: NDArray[np.float32]


def audio_files(places: Sequence[str]) -> list[str]:
    """The audio files that ``places`` name: files, and folders of which all audio files below are taken, sorted.

    Raises `StorageError` if a place does not exist, and `ConfigError` if a folder has no audio file.
    """
    found = []
    for place in places:
        if storage.is_file(place):
            found.append(place)
            continue
        if not storage.exists(place) and not storage.list_files(place):  # an object store has no folders of their own
            raise StorageError(f"{place}: no such file or folder")
        below = storage.list_files(place, AUDIO_SUFFIXES)
        if not below:
            raise ConfigError(f"{place}: no audio files in this folder ({', '.join(AUDIO_SUFFIXES[:6])}, ...)")
        found += below
    return list(dict.fromkeys(found))


def embed_files(
    model: Model,
    names: Sequence[str],
    say: Callable[[str], None] = lambda line: None,
    refused: Callable[[str], None] | None = None,
) -> FileEmbeddings:
    """The embeddings of the audio files ``names``, one after another; each is embedded as a whole.

    The next file is read and decoded while one is embedded, so two are in RAM.

    ``say`` gets a line of progress now and then. ``refused`` gets a line for each file that cannot be embedded, which
    is left out; without it, such a file raises `AudioError` or `StorageError`.
    """
    kept, seconds, rows = list[str](), list[float](), list[NDArray[np.float32]]()

    def read(name: str) -> NDArray[np.float32] | AudioError | StorageError:
        try:
            return model.read_file(name)
        except (AudioError, StorageError) as error:  # in its turn, see below: the next files are read all the same
            return error

    began = said = time.monotonic()
    for number, (name, samples) in enumerate(zip(names, made_ahead(read, names, 1), strict=True)):
        try:
            if isinstance(samples, Exception):
                raise samples
            row = model.embed_samples(samples[None], name)[0].numpy()
        except (AudioError, StorageError) as error:
            if refused is None:
                raise
            refused(str(error))
            continue
        kept.append(name)
        seconds.append(len(samples) / model.rate)
        rows.append(row)
        now = time.monotonic()
        if now - said >= _SAY_EVERY_S:
            said = now
            say(f"{number + 1} of {len(names)} files, {(number + 1) / (now - began):.1f} files/s")
    whole = np.stack(rows) if rows else np.zeros((0, model.dim), np.float32)
    return FileEmbeddings(kept, np.array(seconds), whole)


def check_out(out: str) -> None:
    """Raises `ConfigError` if ``out`` is no file that `write` can write, or `StorageError`: before long work."""
    if not out.endswith(SUFFIXES):
        raise ConfigError(f"--out {out}: name a file that ends in {' or '.join(SUFFIXES)}")
    storage.check_writable(storage.absolute(out).rpartition("/")[0] or "/")


def write(out: str, found: FileEmbeddings, model: Model) -> None:
    """Writes ``found`` to the file ``out``: Parquet, or NumPy's arrays without pickle if it ends in ``.npz``."""
    about = json.dumps(_about(model))
    sink = io.BytesIO()
    ids = np.arange(len(found.names), dtype=np.int64)
    if out.endswith(".npz"):
        names = np.array(found.names, dtype=np.str_)
        arrays = {"id": ids, "name": names, "seconds": found.seconds, "embedding": found.rows}
        np.savez(sink, about=np.array(about), **arrays)  # type: ignore[arg-type, unused-ignore]
    else:
        values = pa.FixedSizeListArray.from_arrays(pa.array(found.rows.ravel()), found.rows.shape[1])
        table = pa.table({"id": ids, "name": found.names, "seconds": found.seconds, "embedding": values})
        pq.write_table(table.replace_schema_metadata({_ABOUT: about.encode()}), sink, compression="zstd")
    storage.write_bytes(out, sink.getvalue())


def _about(model: Model) -> dict[str, Any]:
    source = model.source
    return {
        "rayssl": __version__,
        "run": source.run,
        "checkpoint": source.checkpoint,
        "weights_sha256": source.digest,
        "rate": model.rate,
        "normalised": False,
    }
