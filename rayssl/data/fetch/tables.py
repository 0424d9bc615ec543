"""Tables of chosen clips: Parquet files with the audio as it stands in the archive, or copied from a mirror."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rayssl.data import listed, trials
from rayssl.data.fetch.archives import members, stripped
from rayssl.data.fetch.chosen import Clip, ClipSelection
from rayssl.errors import CorpusError

COLUMNS = ("id", "audio", "speaker", "label", "session")
TRIALS = "trials_test.txt"
_GROUP_ROWS = 128


def write(archives: list[Path], strip: int, choice: ClipSelection, folder: Path, say: Callable[[str], None]) -> None:
    """Reads the chosen clips out of the archives, without unpacking the others, into ``PART-00000-of-00001.parquet``.

    Says what is missing. Raises `CorpusError` if a part has no clip.
    """
    parts: dict[str, list[tuple[Clip, bytes]]] = {part: [] for part in choice.counts}
    for archive in archives:
        for member in members(archive):
            clip = choice.clip(stripped(member.name, strip))
            if clip is not None:
                parts[clip.part].append((clip, member.content()))
    for part, found in parts.items():
        if not found:
            raise CorpusError(f"{archives[0]}: holds no clip of the part '{part}'; it is another archive")
        if len(found) != choice.counts[part]:
            say(f"  {part}: {len(found)} clips, and not {choice.counts[part]}; figures of configs/ may not be reached")
        found.sort(key=lambda each: each[0].id)
        facts = {name: [getattr(clip, name) for clip, _ in found] for name in COLUMNS if name != "audio"}
        table = pa.table({**facts, "audio": pa.array([audio for _, audio in found], pa.binary())}).select(COLUMNS)
        pq.write_table(table, folder / f"{part}-00000-of-00001.parquet", row_group_size=_GROUP_ROWS)
    if choice.trials is not None:
        trials.write(str(folder / TRIALS), choice.trials([clip for clip, _ in parts["test"]]))


def mirrored(mirror: Path, choice: ClipSelection) -> list[Path]:
    """The Parquet files and lists of trials of a mirror. Raises `CorpusError` if one lacks a column or a part."""
    found = sorted(mirror.glob("*.parquet"))
    for path in found:
        names = listed.parquet_file(str(path)).schema_arrow.names
        missing = [name for name in COLUMNS if name not in names]
        if missing:
            raise CorpusError(f"{path}: no column {', '.join(missing)}; a mirror has the columns {', '.join(COLUMNS)}")
    for part in choice.counts if found else ():
        if part != "all" and not any(path.name.startswith(f"{part}-") for path in found):
            raise CorpusError(f"{mirror}: no {part}-*.parquet; it is not a mirror of this set")
    lists = [mirror / TRIALS] if choice.trials is not None else []
    for path in lists if found else ():
        if not path.is_file():
            raise CorpusError(f"{mirror}: no {TRIALS}; it is not a mirror of this set")
    return [*found, *lists] if found else []


def copy(files: list[Path], folder: Path) -> None:
    """Copies the files of a mirror into ``folder``."""
    for path in files:
        shutil.copyfile(path, folder / path.name)
