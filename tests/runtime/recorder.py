"""A screen that keeps the events it is shown."""

from __future__ import annotations

from rayssl.progress import Event


class Recorder:
    """``events``: in the order in which they came."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def show(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None:
        pass
