"""Why the audio of one utterance is refused, for everything that reads audio."""

from __future__ import annotations


class DecodeError(Exception):
    """Audio that cannot be part of a corpus. ``str(error)`` is the reason that the list of rejects records."""


class CutError(DecodeError):
    """A file that ends earlier than its header says: after ``have`` of ``size`` bytes."""

    def __init__(self, have: int, size: int) -> None:
        super().__init__(f"unreadable: truncated after {have} of {size} bytes")
        self.have, self.size = have, size
