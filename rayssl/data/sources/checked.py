"""A source as the rest of rayssl calls it: its results are checked, and its errors become one line.

An error in a source from outside becomes a line that says what was raised, and where. A defect in a built-in source
keeps its traceback, like every defect of rayssl.
"""

from __future__ import annotations

import io
import itertools
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from operator import itemgetter
from typing import Any, BinaryIO, cast

import numpy as np

from rayssl.data.decode import DecodeError
from rayssl.data.sources.base import Audio, Reference, SourceConfig
from rayssl.data.sources.nights import EPOCH_SAMPLES, Epoch, EpochOrDropped, NightSource
from rayssl.errors import CorpusError, UserError

_CHUNK = 1 << 12  # utterances: their tuples fit into a cache of the processor


class CheckedSource:
    """The source of ``config``. Every method raises a `CorpusError` of one line if the source breaks the rules."""

    def __init__(self, config: SourceConfig) -> None:
        self.config = config
        with self._faults("cannot be opened"):
            self._source = config.build()

    def parts(self) -> list[str]:
        """Names of the parts that can be listed in parallel; at least one."""
        with self._faults("parts() failed"):
            found: Any = list(self._source.parts())
        if not found or not all(isinstance(part, str) for part in found):
            raise self._broken("parts() must give a list of strings; give [''] for one part with everything")
        return [*found]

    def list_part(self, part: str) -> list[Reference]:
        """The utterances of one of the `parts`, without their audio."""
        return [reference for chunk in self.list_chunks(part) for reference in chunk]

    def list_chunks(self, part: str) -> Iterator[list[Reference]]:
        """What `list_part` gives, a chunk at a time, so that a large part needs little memory."""
        what = "listing failed" + (f" in '{part}'" if part else "")
        with self._faults(what):
            found: Any = iter(self._source.list_part(part))
        while True:
            with self._faults(what):
                chunk = list(itertools.islice(found, _CHUNK))
            if not chunk:
                return
            for fault in filter(None, map(_fault, () if _sound(chunk) else chunk)):
                raise self._broken(f"lists {fault}")
            yield chunk

    def read(self, references: Sequence[Reference]) -> Iterator[tuple[int, Audio | DecodeError]]:
        """Yields (position, audio) for each of the ``references``, in any order.

        The audio is encoded bytes, or float32 ``[T]`` at 16 kHz, or a `DecodeError` that says why it cannot be used.
        """
        missing = set(range(len(references)))
        read = self._read_many(references, missing)
        while True:
            with self._faults("reading failed", references, missing):
                position, audio = next(read, (None, b""))
            if position is None:
                break
            missing.discard(position)
            yield position, audio
        if missing:
            name = references[min(missing)].name
            raise self._broken(f"reading gives nothing for '{name}' ({len(missing)} of {len(references)} missing)")

    def open(self, reference: Reference) -> BinaryIO | np.ndarray:
        """The audio of one utterance as an open file, or float32 ``[T]`` at 16 kHz. Raises `DecodeError`."""
        with self._faults("reading failed", [reference], {0}):
            audio: Any = self._source.open(reference)
        if hasattr(audio, "seek"):
            return cast(BinaryIO, audio)
        checked = self._audio(reference, audio)
        if isinstance(checked, DecodeError):
            raise checked
        return io.BytesIO(checked) if isinstance(checked, bytes) else checked

    def epochs(self, reference: Reference) -> Iterator[EpochOrDropped]:
        """The epochs of a night and what is missing, see `NightSource.epochs`. Raises `DecodeError` as it does."""
        with self._faults("reading failed", [reference], {0}):
            assert isinstance(self._source, NightSource)
            found: Any = iter(self._source.epochs(reference))
        last = -1
        while True:
            with self._faults("reading failed", [reference], {0}):
                item = next(found, None)
            if item is None:
                return
            if isinstance(item, Epoch):
                if item.index <= last or np.shape(item.samples) != (EPOCH_SAMPLES,):
                    given = f"epoch {item.index} after epoch {last} with samples {list(np.shape(item.samples))}"
                    wanted = f"rising indices, with {EPOCH_SAMPLES} samples each"
                    raise self._broken(f"reading '{reference.name}' gives {given}; give {wanted}")
                last = item.index
            yield item

    def begins(self, reference: Reference) -> datetime | None:
        """When epoch 0 of a night begins, see `NightSource.begins`."""
        with self._faults("reading failed", [reference], {0}):
            assert isinstance(self._source, NightSource)
            return self._source.begins(reference)

    def passed_over(self) -> dict[str, int]:
        """See `Source.passed_over`."""
        with self._faults("passed_over() failed"):
            return {str(kind): int(count) for kind, count in self._source.passed_over().items()}

    def place(self, reference: Reference) -> str:
        """Where the utterance was read from, for the list of rejects."""
        with self._faults(f"place() failed for '{reference.name}'"):
            return str(self._source.place(reference))

    def _read_many(self, references: Sequence[Reference], missing: set[int]) -> Iterator[tuple[Any, Any]]:
        for item in self._source.read_many(references):
            if not isinstance(item, tuple) or len(item) != 2 or item[0] not in missing:
                given = item[0] if isinstance(item, tuple) and item else item
                allowed = f"give each position of 0 to {len(references) - 1} once, with its audio"
                raise self._broken(f"reading gives the position {given!r}, which is unknown or given twice; {allowed}")
            yield item[0], self._audio(references[item[0]], item[1])

    def _audio(self, reference: Reference, audio: Any) -> Audio | DecodeError:
        if isinstance(audio, (bytes, bytearray, memoryview)):
            return bytes(audio)
        if isinstance(audio, DecodeError):
            return audio
        if not isinstance(audio, np.ndarray):
            raise self._broken(f"reading '{reference.name}' gives {type(audio).__name__}, not bytes or a numpy array")
        if audio.ndim != 1 or audio.dtype.kind != "f":
            given = f"{audio.dtype} {list(audio.shape)}"
            message = f"reading '{reference.name}' gives samples of {given}, not float32 [T] in [-1, 1] at 16 kHz"
            raise self._broken(message)
        if not np.isfinite(audio).all():
            return DecodeError("not finite: the samples contain NaN or infinity")
        return audio.astype(np.float32, copy=False)

    def _broken(self, text: str) -> CorpusError:
        return CorpusError(f"{self.config.describe()}: {text}")

    @contextmanager
    def _faults(
        self, what: str, references: Sequence[Reference] = (), missing: set[int] | None = None
    ) -> Iterator[None]:
        """Turns an error of a source from outside into one line. It names the first missing one of ``references``."""
        try:
            yield
        except Exception as error:
            module = type(self.config).__module__
            if isinstance(error, (UserError, DecodeError)) or module.startswith("rayssl."):
                raise
            at = f" at '{references[min(missing)].name}'" if missing else ""
            raise self._broken(f"{what}{at}: {described(error, module)}") from error


def others_found(passed_over: Mapping[str, int]) -> str:
    """What was passed over, for the end of a message that nothing was found; empty if there was nothing else."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(passed_over.items()))
    return f", {kinds} passed over" if kinds else ""


def described(error: Exception, module: str = "") -> str:
    """The error's type and text in one line, with the line of ``module``'s file if the error came from there."""
    file = getattr(sys.modules.get(module), "__file__", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    where = f" (line {lines[-1]} of {os.path.basename(str(file))})" if lines else ""
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}{where}"


def _sound(chunk: list[Any]) -> bool:
    """Whether nothing is wrong with ``chunk``, in a tenth of the time of `_fault`. False: perhaps something is."""
    if set(map(type, chunk)) != {Reference}:
        return False
    names, *facts, locators = (list(map(itemgetter(place), chunk)) for place in range(len(Reference._fields)))
    if set(map(type, names)) != {str} or not all(names) or set(map(type, locators)) != {tuple}:
        return False
    values = set(map(type, itertools.chain.from_iterable(locators)))
    return values <= {str, int} and set(map(type, itertools.chain(*facts))) <= {str, type(None)}


def _fault(item: Any) -> str:
    """What is wrong with an item of a listing; empty if nothing is wrong."""
    if not isinstance(item, Reference):
        return f"{item!r:.80}, which is not a Reference"
    name, *facts, locator = item
    if not isinstance(name, str) or not name:
        return f"a name that is not text: {name!r:.80}"
    if not all(fact is None or isinstance(fact, str) for fact in facts):
        return f"'{name}' with a speaker, recording or label that is not text: {facts!r:.80}"
    if not isinstance(locator, tuple) or not all(type(value) in (str, int) for value in locator):
        kinds = type(locator).__name__ if not isinstance(locator, tuple) else locator
        return f"'{name}' with a locator that is not a tuple of str and int: {kinds!r:.80}"
    return ""
