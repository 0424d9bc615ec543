"""Errors that a user can fix. The message is one sentence: it names the key, URI or file, and says what to do.

The command line prints these errors without a traceback and exits with status 2. Every other error is a defect of
rayssl and keeps its traceback.
"""

from __future__ import annotations

import os
import traceback


class UserError(Exception):
    """A mistake in what the user gave; ``str(error)`` is one readable line."""


class Stopped(BaseException):
    """Not a mistake: a signal has ended the work cleanly. ``status`` is the exit status that a shell gives it."""

    def __init__(self, text: str, signal: int) -> None:
        super().__init__(text)
        self.status = 128 + signal


class ConfigError(UserError, ValueError):
    """A configuration that cannot be used: unknown key, wrong type, a value out of range, a bad override."""


class StorageError(UserError, OSError):
    """An object store, folder or file that cannot be used: no bucket, wrong credentials, absent or damaged file."""


class StorageOutage(StorageError):
    """A store that gave no answer in the time there was; the same may pass later. A training restarts then."""


class CorpusError(UserError, ValueError):
    """A corpus that cannot be used: the manifest is absent, a hash differs, too many rejects, unknown utterances."""


class AudioError(UserError, ValueError):
    """Audio that cannot be embedded: the file does not decode, has too few samples, or NaN or infinite samples."""


class CheckpointError(UserError, ValueError):
    """A checkpoint that cannot be used: it has another architecture than the run, or it is incomplete or damaged."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint with a file that is not what was written. A training goes back to the one before it."""


def described(error: BaseException) -> str:
    """An error of somebody's code in one line, with the file and the line that raised it."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}"
    text = (str(error).strip().splitlines() or [""])[0]
    frames = traceback.extract_tb(error.__traceback__)
    where = f" on line {frames[-1].lineno} of {os.path.basename(frames[-1].filename)}" if frames else ""
    return f"{type(error).__name__}{where}: {text}"
