"""A run's `metrics.jsonl`, with one JSON object a line, and a copy of its numbers for TensorBoard; at any URI.

Every line has ``kind`` ("step", "epoch", "event"), ``step`` and ``time`` (Unix seconds). To a local file each line is
appended. Object stores cannot append: there all lines stay in RAM, and each flush writes the whole object again.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rayssl import storage
from rayssl.errors import StorageError
from rayssl.storage import attempts
from rayssl.training.trackers.base import Tracker

Record = dict[str, Any]

_log = logging.getLogger(__name__)
_EVENT_FILE = re.compile(r"events\.out\.tfevents\.(\d+)\.")
_CLOCKS_DIFFER_S = 5.0  # at most, between the machines that write a run
_REOPEN_S = 30.0  # between two tries to write for TensorBoard again


def read_metrics(uri: str) -> list[Record]:
    """The records of the ``metrics.jsonl`` at ``uri``, in order.

    The last line is left out if it is incomplete: its writer was killed. Raises `StorageError` if there is no such
    file, and names the line if any other line is not a JSON object.
    """
    lines = storage.read_bytes(uri).split(b"\n")
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif number < len(lines):
            raise StorageError(f"{uri}: line {number} is not a JSON object; repair or remove this line")
    return records


class RunLog(Tracker):
    """Writes the metrics of the run at ``uri``. Only one process (rank 0) may do so at a time.

    ``resume_step`` is the step of the checkpoint that the run resumes from: lines of later steps are dropped. None is
    a new run: all lines are dropped. With ``tensorboard`` the numbers are also written as scalars ``<kind>/<name>`` to
    ``<uri>/tensorboard/``. For runs in object storage `flush` uploads. `write` uploads too if the last upload is
    ``upload_every_s`` seconds ago; it only warns if the store cannot be reached, or if the disk is full.
    """

    def __init__(
        self,
        uri: str,
        resume_step: int | None,
        tensorboard: bool = True,
        *,
        upload_every_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        filesystem, path = storage.filesystem(uri)
        protocols = (filesystem.protocol,) if isinstance(filesystem.protocol, str) else filesystem.protocol
        self._local = "file" in protocols
        self._run, self._uri = uri, storage.join(uri, "metrics.jsonl")
        self._upload_every_s, self._clock = upload_every_s, clock
        self._lines = self._kept_lines(resume_step)
        storage.write_bytes(self._uri, b"".join(self._lines))
        self._uploaded_at, self._changed = clock(), False
        self._file: FileIO | None = None
        self._waiting = bytearray()  # lines that a full disk did not take yet
        self._told = False
        if self._local:
            self._file = open(Path(path) / "metrics.jsonl", "ab", buffering=0)  # noqa: SIM115 - held until close()
            self._lines = []
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._path, self._tensorboard, self._lost_at = path, tensorboard, clock()
        self._events: Any = self._open_events(resume_step) if tensorboard else None

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Appends one line. Numbers may be 0-dim tensors: they become Python numbers here, in one transfer.

        NaN and infinities are written as null, since JSON does not have them. Raises `ValueError` for a tensor of more
        than one element and `TypeError` for a value that JSON cannot hold.
        """
        record: Record = {"kind": kind, "step": int(step), "time": round(time.time(), 3), **_plain(values)}
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        if self._file is not None:
            self._waiting += line
            try:
                self._append()
            except OSError as error:
                self._warn(f"{self._uri}: {error.strerror}; the figures wait until there is room")
                return
        else:
            self._lines.append(line)
        self._changed = True
        self._draw(kind, int(step), record)
        if not self._local and self._clock() - self._uploaded_at >= self._upload_every_s:
            try:
                self.flush()
            except StorageError as error:
                # training continues: the lines stay here, and the flush before a checkpoint raises if it fails too
                self._uploaded_at = self._clock()
                _log.warning("metrics not uploaded, will try again: %s", error)

    def flush(self) -> None:
        """Puts everything that was written so far at the URI. Raises `StorageError` if that fails."""
        if self._waiting:
            attempts.attempt(self._uri, self._append)
        if self._events is not None:
            self._try(self._events.flush)
        if self._local or not self._changed:
            return
        storage.write_bytes(self._uri, b"".join(self._lines))
        if self._scratch is not None:
            for file in sorted(Path(self._scratch.name).iterdir()):
                storage.write_bytes(storage.join(self._run, "tensorboard", file.name), file.read_bytes())
        self._uploaded_at, self._changed = self._clock(), False

    def close(self, *, failed: bool = False) -> None:
        """Flushes and closes files. A second call does nothing."""
        try:
            self.flush()
        finally:
            if self._events is not None:
                self._try(self._events.close)
            if self._file is not None and not self._file.closed:
                self._file.close()
            if self._scratch is not None:
                self._scratch.cleanup()
            self._events = self._scratch = None

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _kept_lines(self, resume_step: int | None) -> list[bytes]:
        if resume_step is None or not storage.exists(self._uri):
            return []
        kept = [record for record in read_metrics(self._uri) if record.get("step", 0) <= resume_step]
        return [json.dumps(record).encode() + b"\n" for record in kept]

    def _append(self) -> None:
        """Appends the lines that wait to the file. Raises OSError if the disk takes only some of them, or none."""
        assert self._file is not None
        while self._waiting:
            del self._waiting[: self._file.write(self._waiting)]

    def _draw(self, kind: str, step: int, record: Record) -> None:
        """The numbers for TensorBoard, which needs its files only to draw: training goes on if it cannot write them."""
        if self._events is None and self._tensorboard and self._clock() - self._lost_at >= _REOPEN_S:
            self._events = self._open_events(step - 1)  # a new file, after one that could not be written
        for name, value in record.items():
            if name not in ("step", "time") and isinstance(value, (int, float)) and not isinstance(value, bool):
                if self._events is None:
                    return
                how = {"global_step": step, "walltime": record["time"]}
                self._try(partial(self._events.add_scalar, f"{kind}/{name}", value, **how))

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # whatever has ended the thread of TensorBoard's writer
            self._lose_events(error)

    def _lose_events(self, error: Exception) -> None:
        self._events, self._lost_at = None, self._clock()
        self._warn(f"{self._run}/tensorboard: {error}; figures are missing there, and metrics.jsonl has them")

    def _warn(self, line: str) -> None:
        if not self._told:
            sys.stderr.write(f"{line}\n")
        self._told = True

    def _open_events(self, resume_step: int | None) -> Any:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and needed only here

        _hide_the_end_of_writers()
        before: list[str] = []
        if self._local:
            folder = str(Path(self._path) / "tensorboard")
        elif self._scratch is not None:
            folder = self._scratch.name
        else:
            self._scratch = tempfile.TemporaryDirectory(prefix="rayssl-tensorboard-")
            folder = self._scratch.name
            with suppress(StorageError):  # the names serve to draw, and training goes on without
                before = storage.list_files(storage.join(self._run, "tensorboard"))
        _wait_for_a_later_name([*before, *(str(path) for path in Path(folder).glob("*"))])
        # earlier event files stay; TensorBoard hides their events from step purge_step on
        first = 0 if resume_step is None else resume_step + 1
        try:
            return SummaryWriter(folder, purge_step=first)
        except OSError as error:
            self._lose_events(error)
            return None


def _wait_for_a_later_name(files: Iterable[str]) -> None:
    """TensorBoard reads files in the order of their names: the second, the host, the process and a number.

    Within one second that is not the order of their making, also of files that an earlier process has put into an
    object store. It waits for the next second, or some seconds for a clock that is behind.
    """
    names = (file.rpartition("/")[2] for file in files)
    last = max((int(found[1]) for name in names if (found := _EVENT_FILE.match(name))), default=0)
    until = time.monotonic() + _CLOCKS_DIFFER_S
    while int(time.time()) <= last and time.monotonic() < until:
        time.sleep(0.05)


def _hide_the_end_of_writers() -> None:
    """TensorBoard's thread keeps its error for the next call, and raises it: Python would print a traceback, too."""
    before = threading.excepthook
    if getattr(before, "hides_writers", False):
        return

    def hook(ended: threading.ExceptHookArgs) -> None:
        if type(ended.thread).__name__ != "_AsyncWriterThread":
            before(ended)

    hook.hides_writers = True  # type: ignore[attr-defined]
    threading.excepthook = hook


def _plain(values: Record) -> Record:
    """The values as JSON can hold them. All tensors are fetched from the device at once."""
    plain = dict(values)
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    if tensors:
        device = next(iter(tensors.values())).device
        numbers = [_one(name, tensor).to(device, torch.float64) for name, tensor in tensors.items()]
        plain.update(zip(tensors, torch.stack(numbers).tolist(), strict=True))
    for name, value in plain.items():
        if hasattr(value, "item"):  # a NumPy scalar
            plain[name] = value = value.item()
        if isinstance(value, float) and not math.isfinite(value):
            plain[name] = None
    return plain


def _one(name: str, tensor: Tensor) -> Tensor:
    if tensor.numel() != 1:
        raise ValueError(f"metric '{name}': expected one number, got a tensor of shape {list(tensor.shape)}")
    return tensor.detach().reshape(())
