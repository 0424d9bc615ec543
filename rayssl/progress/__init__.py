"""What a person sees of a run while it trains: events that any process tells, and the screens that show them."""

from rayssl.progress.events import Event, Filling, Line, Phase, Preparing, Stepped, Trained, decode, encode
from rayssl.progress.screens import Lines, Mode, Screen, busy, open_screen

__all__ = [
    "Event",
    "Filling",
    "Line",
    "Lines",
    "Mode",
    "Phase",
    "Preparing",
    "Screen",
    "Stepped",
    "Trained",
    "busy",
    "decode",
    "encode",
    "open_screen",
]
