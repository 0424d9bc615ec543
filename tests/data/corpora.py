"""Small source corpora that the data tests prepare: three speakers, two recordings each, short sine clips."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from rayssl.data import corpus, decode, shards, units
from rayssl.data import labels as split_labels
from rayssl.data.corpus import PreparedCorpusConfig
from rayssl.data.labels import SplitConfig
from rayssl.data.shards import Manifest
from rayssl.data.sources.base import Reference, SourceConfig
from rayssl.data.sources.checked import CheckedSource
from rayssl.data.sources.folder import FolderConfig

RATE = 16000


def sine(number: int, seconds: float = 0.5, rate: int = RATE) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(number).normal(0, 0.01, len(time))
    return (0.3 * np.sin(2 * np.pi * (150 + 40 * number) * time) + noise).astype(np.float32)


def encoded(samples: np.ndarray, format: str = "FLAC", subtype: str = "PCM_16", rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format, subtype=subtype)
    return buffer.getvalue()


def clips(count: int = 12, seconds: float = 0.5) -> dict[str, bytes]:
    """``spk<s>/rec<r>/<k>.flac`` to bytes; clip k belongs to speaker k % 3 and recording (k // 3) % 2."""
    return {f"spk{k % 3}/rec{k // 3 % 2}/{k:02d}.flac": encoded(sine(k, seconds)) for k in range(count)}


def write_folder(folder: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return str(folder)


def write_parquet(path: Path, files: dict[str, bytes], structs: bool = False) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    audio = [{"bytes": data, "path": None} for data in files.values()] if structs else list(files.values())
    columns = {"id": list(files), "audio": audio, "speaker": [name.split("/")[0] for name in files]}
    columns |= {"session": [name.split("/")[1] for name in files], "digit": list(range(len(files)))}
    pq.write_table(pa.table(columns), path, row_group_size=5)
    return str(path.parent)


def write_tar(path: Path, files: dict[str, bytes]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            speaker, recording, _ = name.split("/")
            facts = json.dumps({"speaker": speaker, "recording": recording}).encode()
            for member, content in ((name, data), (name.replace(".flac", ".json"), facts)):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return str(path.parent)


def folder_config(
    folder: Path, out: Path | str, files: dict[str, bytes] | None = None, **changes: object
) -> PreparedCorpusConfig:
    """A folder source of `clips` (or ``files``) written below ``folder``, in shards of five utterances."""
    uri = write_folder(folder, clips() if files is None else files)
    source = FolderConfig(uri=uri, layout=["speaker", "recording"])
    return PreparedCorpusConfig.model_validate({"source": source, "out": str(out), "shard_utterances": 5, **changes})


def listed(config: SourceConfig) -> list[Reference]:
    """All utterances of a source."""
    source = CheckedSource(config)
    return [reference for part in source.parts() for reference in source.list_part(part)]


def read(config: SourceConfig, references: Sequence[Reference]) -> dict[str, Any]:
    """The audio of some utterances by their names."""
    return {references[position].name: audio for position, audio in CheckedSource(config).read(references)}


def prepare(settings: PreparedCorpusConfig, seed: int = 0, reverse: bool = False) -> Manifest:
    """What ``rayssl prepare`` does, without Ray, unit after unit."""
    plan = corpus.plan(settings, seed)
    todo = plan.units[::-1] if reverse else plan.units
    return corpus.finish(settings, plan, [units.process(plan.work, unit) for unit in todo])


def files_below(folder: Path | str) -> dict[str, bytes]:
    root = Path(folder)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def write_labelled(
    uri: str,
    labels: Sequence[int],
    names: Sequence[str],
    splits: Mapping[str, Mapping[str, object]],
    shard_rows: Sequence[int] | None = None,
    order: Sequence[int] | None = None,
) -> Manifest:
    """Utterances ``u0000``, ... of 0.05 s with label indices ``labels``, prepared with ``splits``, without a source.

    ``shard_rows``: the rows of each shard, otherwise one shard; ``order``: which utterance is in which row.
    """
    order, sizes = list(order if order is not None else range(len(labels))), list(shard_rows or [len(labels)])
    parts, first = [], 0
    for index, size in enumerate(sizes):
        held = order[first : first + size]
        columns: dict[str, list[Any]] = {"name": [f"u{k:04d}" for k in held], "samples": [800] * size}
        columns["audio"] = [decode.encode(decode.quantise(sine(k, 0.05)), "pcm16") for k in held]
        columns |= {"speaker": [-1] * size, "recording": [-1] * size, "label": [labels[k] for k in held]}
        parts.append(shards.write_shard(uri, (index,), columns))
        first += size
    known = {"speaker": [], "recording": [], "label": list(names)}
    shards.write_labels(uri, known)
    shards.write_rejects(uri, [])
    wanted = {name: SplitConfig.model_validate(config) for name, config in splits.items()}
    made = split_labels.make(wanted, uri, shards.number(parts), list(names))
    return shards.write_manifest(uri, parts, format="pcm16", names=known, rejected=0, settings={}, splits=made)
