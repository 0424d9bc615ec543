"""What a user can mend: one sentence that names the key, URI or file, and the way out.

The command line prints these without a traceback and exits with status 2. Everything else that escapes is a defect of
rayssl and keeps its traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """A mistake in what the user gave; ``str(error)`` is one readable line."""


class Stopped(BaseException):
    """Not a mistake: a signal has ended the work in order. ``status`` is what a shell says of that signal."""

    def __init__(self, text: str, signal: int) -> None:
        super().__init__(text)
        self.status = 128 + signal


class ConfigError(UserError, ValueError):
    """A configuration that cannot be used: unknown key, wrong type, a value out of range, a bad override."""


class StorageError(UserError, OSError):
    """Object storage or a folder that cannot be used: missing bucket, wrong credentials, absent or damaged file."""


class CorpusError(UserError, ValueError):
    """A corpus that does not hold what it should: absent manifest, hash mismatch, too many rejects, unknown trials."""


class AudioError(UserError, ValueError):
    """Audio that cannot be embedded: a file that does not decode, too few samples, samples that are not finite."""


class CheckpointError(UserError, ValueError):
    """A checkpoint that does not fit the run: another architecture, an incomplete or damaged file."""
