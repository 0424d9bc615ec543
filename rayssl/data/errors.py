"""Why the audio of one utterance is refused, for everything that reads audio."""

from __future__ import annotations


class DecodeError(Exception):
    """Audio that cannot be part of a corpus. ``str(error)`` is the reason that the list of rejects records."""
