"""The thread that writes checkpoints: it has ended, and its tensors are freed, when the training goes on to its end."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from rayssl.training import checkpoint, saving


class SlowToFree:
    """Stands for the tensors of a large model."""

    def __del__(self) -> None:
        time.sleep(0.5)


@pytest.mark.parametrize("failing", [False, True])
def test_no_thread_frees_tensors_after_a_save(monkeypatch: pytest.MonkeyPatch, failing: bool) -> None:
    """A process that exits while torch frees a tensor in a thread is aborted (exit status 134)."""

    begun = threading.Event()

    def save(*_: Any) -> None:
        assert begun.wait(10)
        if failing:
            raise OSError("the disk is full")

    monkeypatch.setattr(checkpoint, "save", save)
    monkeypatch.setattr(checkpoint, "prune", lambda *_: None)
    saver: Any = saving.Saver("run", None, None)  # type: ignore[arg-type]
    saver.start(None, {"weights": SlowToFree()}, None)
    begun.set()  # only the thread has the weights now
    if failing:
        assert saver.idle(10)
        saver.leave()
    else:
        while not saver.idle(0.05):
            pass
        saver.check()
    assert "checkpoint" not in {thread.name for thread in threading.enumerate()}
