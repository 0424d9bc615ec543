"""A small writer of EDF, EDF+C and EDF+D, and of RML: written from the specifications, it shares nothing with rayssl.

The audio of `seconds_signal` says at every sample at which second it was recorded: tests read time from the samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np

START = datetime(2019, 3, 1, 22, 15, 0)
RATE = 16000


class Signal(NamedTuple):
    """``samples`` int16 ``[T]``, ``rate`` Hz."""

    label: str
    samples: np.ndarray
    rate: float
    digital: tuple[int, int] = (-32768, 32767)
    physical: tuple[float, float] = (-1.0, 1.0)


class Tal(NamedTuple):
    onset: float
    duration: float | None
    text: str

    def encoded(self) -> bytes:
        duration = "" if self.duration is None else f"\x15{self.duration:g}"
        return f"{self.onset:+g}{duration}\x14{self.text}\x14\x00".encode()


def edf_bytes(
    signals: Sequence[Signal],
    start: datetime = START,
    record_s: float = 1.0,
    plus: str = "",
    onsets: Sequence[float] | None = None,
    annotations: Sequence[Tal] = (),
    promised: int | None = None,
    recording: str = "",
) -> bytes:
    """A file. ``plus``: "EDF+C" or "EDF+D"; then every record has its time stamp, and record 0 all ``annotations``."""
    per = [round(signal.rate * record_s) for signal in signals]
    records = min(len(signal.samples) // count for signal, count in zip(signals, per, strict=True))
    labels = [signal.label for signal in signals]
    digital, physical = [s.digital for s in signals], [s.physical for s in signals]
    lists: list[bytes] = []
    if plus:
        times = list(onsets) if onsets is not None else [k * record_s for k in range(records)]
        lists = [Tal(at, None, "").encoded() for at in times[:records]]
        lists[0] += b"".join(one.encoded() for one in annotations)
        width = max(map(len, lists))
        width += width % 2
        lists = [each.ljust(width, b"\x00") for each in lists]
        labels, per = [*labels, "EDF Annotations"], [*per, width // 2]
        digital, physical = [*digital, (-32768, 32767)], [*physical, (-1.0, 1.0)]
    count = len(labels)

    def texts(values: Sequence[object], width: int) -> bytes:
        return b"".join(str(value).encode().ljust(width)[:width] for value in values)

    header = texts(["0"], 8) + texts(["X X X X"], 80) + texts([recording], 80)
    header += start.strftime("%d.%m.%y%H.%M.%S").encode() + texts([256 * (count + 1)], 8) + texts([plus], 44)
    header += texts([records if promised is None else promised, f"{record_s:g}"], 8) + texts([count], 4)
    header += texts(labels, 16) + texts([""] * count, 80) + texts(["V"] * count, 8)
    header += texts([f"{low:g}" for low, _ in physical], 8) + texts([f"{high:g}" for _, high in physical], 8)
    header += texts([low for low, _ in digital], 8) + texts([high for _, high in digital], 8)
    header += texts([""] * count, 80) + texts(per, 8) + texts([""] * count, 32)
    assert len(header) == 256 * (count + 1)
    body = []
    for record in range(records):
        for signal, size in zip(signals, per, strict=False):
            body.append(signal.samples[record * size : (record + 1) * size].astype("<i2").tobytes())
        body += lists[record : record + 1]
    return header + b"".join(body)


def seconds_signal(first: float, seconds: float, rate: int = RATE, label: str = "Mic") -> Signal:
    """Each sample is its second of the night, from ``first`` on."""
    return Signal(label, np.floor(first + np.arange(round(seconds * rate)) / rate).astype(np.int16), rate)


def heard_seconds(samples: np.ndarray) -> np.ndarray:
    """The second of each sample of `seconds_signal` that was not resampled."""
    return np.rint((samples.astype(np.float64) + 1) * 65535 / 2 - 32768).astype(int)


def write_part(path: Path, first: float, seconds: float, start: datetime = START, **given: object) -> None:
    """A part with a channel "Mic", recorded from second ``first`` after ``start``, and another channel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    other = Signal("Flow", np.zeros(round(seconds * 100), np.int16), 100)
    signals = [other, seconds_signal(first, seconds)]
    path.write_bytes(edf_bytes(signals, start=start + timedelta(seconds=int(first)), **given))  # type: ignore[arg-type]


def rml(
    stages: Sequence[tuple[float, str]] = ((0, "Wake"), (60, "NonREM2"), (120, "NonREM3"), (180, "REM")),
    start: datetime = START,
    seconds: float = 300,
    machine: Sequence[tuple[float, str]] = (),
) -> str:
    """An RML file as PSG-Audio has: stages as change points."""

    def staging(kind: str, points: Sequence[tuple[float, str]]) -> str:
        rows = "".join(f'<Stage Type="{name}" Start="{at:g}" />' for at, name in points)
        return f"<{kind}><NeuroAdultAASMStaging>{rows}</NeuroAdultAASMStaging></{kind}>" if points else ""

    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<PatientStudy xmlns="http://www.respironics.com/PatientStudy.xsd">\n'
        f"<Acquisition><Sessions><Session><RecordingStart>{start.isoformat()}</RecordingStart>"
        f"<Duration>{seconds:g}</Duration></Session></Sessions></Acquisition>\n<ScoringData>"
        '<Events><Event Family="Respiratory" Type="Hypopnea" Start="30" Duration="12" /></Events>\n'
        f"<StagingData>{staging('MachineStaging', machine)}{staging('UserStaging', stages)}</StagingData>"
        "</ScoringData></PatientStudy>"
    )
