"""One pass over each recording: its segments, what is in none of them, and fingerprints to find copies.

The result of a few recordings is a record under ``<out>/.work/cuts``, so that an interrupted preparation goes on.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence

import numpy as np
from pydantic import TypeAdapter

from rayssl import storage
from rayssl.data import decode, recordings
from rayssl.data.segments import cutting, detectors
from rayssl.data.segments.fingerprints import Codes
from rayssl.data.segments.settings import SegmentsConfig
from rayssl.data.sources.base import Reference
from rayssl.data.sources.checked import CheckedSource
from rayssl.data.units import WORK, PrepareWork
from rayssl.errors import StorageError
from rayssl.schema import Config

CUTS = f"{WORK}/cuts"
_RECIPE = 1  # raise it if the same settings begin to give other segments
_BLOCK = 16000 * 30  # samples of a source that gives arrays


class Examination(Config):
    """What a recording becomes. Lengths are in samples at 16 kHz.

    ``segments``: (start, stop) of each. ``pauses``: samples without speech. ``short``: the number of segments that were
    too short, and their samples. ``sha256``: of all samples. ``prints``: the fingerprint of each segment, if they are
    to be compared. ``reason``: why the recording cannot be used, or None.
    """

    name: str
    samples: int = 0
    segments: list[tuple[int, int]] = []
    pauses: int = 0
    short: tuple[int, int] = (0, 0)
    sha256: str = ""
    prints: list[str] = []
    reason: str | None = None


_CUTS = TypeAdapter(list[Examination])


def examine(work: PrepareWork, references: Sequence[Reference]) -> list[Examination]:
    """The recordings of ``references``, in order. A record of the same ones is read instead, unless one was unusable.

    Raises:
        ConfigError: a package of the detector is not installed on this node.
    """
    config = work.settings.segments
    assert config is not None
    detectors.check(config)
    record = storage.join(work.out, CUTS, f"{_digest(work, references)}.json")
    kept = _read(record)
    if kept is not None and len(kept) == len(references) and not any(cut.reason for cut in kept):
        return kept
    source = CheckedSource(work.settings.source)
    made = [_examined(source, reference, config, work.settings.channels) for reference in references]
    storage.write_bytes(record, _CUTS.dump_json(made))
    return made


def _examined(
    source: CheckedSource, reference: Reference, config: SegmentsConfig, channels: decode.Channels
) -> Examination:
    found = detectors.detector(config)
    codes = Codes() if config.duplicates == "near" else None
    digest, probabilities, total, loud = hashlib.sha256(), array("f"), 0, False
    left = np.zeros(0, np.float32)
    try:
        for block in blocks(source, reference, channels):
            pcm = decode.quantise(block)
            digest.update(pcm.tobytes())
            total, loud = total + len(block), loud or bool(pcm.any())
            if codes is not None:
                codes.add(block)
            joined = np.concatenate([left, block])
            whole = len(joined) // found.window * found.window
            probabilities.extend(found(joined[:whole].reshape(-1, found.window)))
            left = joined[whole:]
        if len(left):
            probabilities.extend(found(np.pad(left, (0, found.window - len(left)))[None]))
        if not loud:
            raise decode.DecodeError("silent: every sample is zero" if total else "empty: the file has no samples")
    except decode.DecodeError as error:
        return Examination(name=reference.name, reason=str(error))
    made = cutting.segments(np.array(probabilities), found.window, total, config)
    return Examination(
        name=reference.name,
        samples=total,
        segments=made.kept,
        pauses=made.pauses,
        short=made.short,
        sha256=digest.hexdigest(),
        prints=[] if codes is None else [codes.of(*bounds).text() for bounds in made.kept],
    )


def blocks(source: CheckedSource, reference: Reference, channels: decode.Channels) -> Iterator[np.ndarray]:
    """The audio of a recording in blocks of mono float32 ``[T]`` at 16 kHz. Raises `DecodeError`."""
    audio = source.open(reference)
    if isinstance(audio, np.ndarray):
        yield from (audio[at : at + _BLOCK] for at in range(0, len(audio), _BLOCK))
        return
    with audio:
        yield from recordings.stream(audio, channels)


def _digest(work: PrepareWork, references: Sequence[Reference]) -> str:
    settings = work.settings.model_dump(mode="json", include={"source", "channels", "segments"})
    text = json.dumps([_RECIPE, decode.RESAMPLER, settings, [list(each) for each in references]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _read(record: str) -> list[Examination] | None:
    try:
        return _CUTS.validate_json(storage.read_bytes(record))
    except StorageError as error:
        if error.errno in storage.ABSENT:
            return None
        raise
    except ValueError:
        return None
