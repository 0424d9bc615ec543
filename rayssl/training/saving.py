"""Saving beside training: the state is kept as it is, and a thread writes it while the next steps run.

What the state of a model takes in RAM is held a second time until it is written; a memory holds only the rows that
change meanwhile (`rayssl.memory.snapshots`). One checkpoint is written at a time. It counts once its ``meta.json`` is
there: a crash before leaves the one before as the last.
"""

from __future__ import annotations

from concurrent import futures
from concurrent.futures import Future
from threading import Thread
from typing import Any

import torch

from rayssl.training import checkpoint
from rayssl.training.checkpoint import Best, CheckpointConfig, Meta
from rayssl.training.context import Checkpointable

_LEAVE_S = 60.0  # how long a training that has failed waits for the checkpoint that is being written


class Saver:
    """Writes the checkpoints of a run, and prunes them. Only rank 0 uses it."""

    def __init__(self, run: str, config: CheckpointConfig, best: Best) -> None:
        self._run, self._config, self._best = run, config, best
        self._running: Future[None] | None = None
        self._thread: Thread | None = None

    def start(self, meta: Meta, state: dict[str, Any], memory: Checkpointable | None) -> None:
        """Keeps ``state`` and the memory as they are now and begins to write them. Call it when the saver is `idle`."""
        self.check()
        assert self._running is None, "the checkpoint before is still being written"
        kept = _kept(state)
        written = None if memory is None else memory.snapshot()
        running: Future[None] = Future()

        def run() -> None:
            try:
                checkpoint.save(self._run, meta, kept, written)
                self.prune()
                running.set_result(None)
            except BaseException as error:
                running.set_exception(error)

        self._running = running
        self._thread = Thread(target=run, name="checkpoint", daemon=True)
        self._thread.start()

    def prune(self) -> None:
        """Removes the checkpoints that need not stay. Not while one is being written."""
        checkpoint.prune(self._run, self._config, self._best)

    def idle(self, seconds: float = 0.0) -> bool:
        """Whether nothing is being written, or it ends within ``seconds``."""
        return self._running is None or not futures.wait([self._running], seconds).not_done

    def check(self) -> None:
        """Raises what the last checkpoint has raised."""
        if self._running is not None and self._running.done():
            self._end()
            running, self._running = self._running, None
            running.result()

    def leave(self) -> None:
        """Gives the checkpoint that is being written a last while. Raises nothing: another error has come before."""
        if self.idle(_LEAVE_S):
            self._end()

    def _end(self) -> None:
        """Waits until the thread has freed its tensors: torch aborts the process if it exits meanwhile."""
        if self._thread is not None:
            self._thread.join()


def _kept(value: Any) -> Any:
    """``value`` with its tensors copied to the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {name: _kept(each) for name, each in value.items()}
    return [_kept(each) for each in value] if isinstance(value, list) else value
