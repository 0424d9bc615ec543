"""A night of EDF parts that is written a second at a time, and the peak memory of a process that reads its epochs."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np

from tests.data.nights.edf_files import START, Signal, edf_bytes

ROOT = Path(__file__).parents[3]
_READER = """
import json, sys
from rayssl.data.sources.night_files import NightFilesConfig
from rayssl.data.sources.nights import Epoch
def peak():  # ru_maxrss would begin with the peak of the process that started this one
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024
def read(folder):
    source = NightFilesConfig(uri=folder).build()
    (reference,) = source.list()
    count, loud = 0, 0.0
    for one in source.epochs(reference):
        assert isinstance(one, Epoch), one
        assert one.index == count
        count, loud = count + 1, max(loud, float(abs(one.samples).max()))
    return count, loud
read(sys.argv[2])  # the libraries that reading brings, and its buffers, are there before the measure
before = peak()
count, loud = read(sys.argv[1])
print(json.dumps({"epochs": count, "before": before, "peak": peak(), "loud": loud, "torch": "torch" in sys.modules}))
"""


def write_night(folder: Path, parts: int, seconds: int, rate: int = 48000) -> int:
    """``parts`` EDF files, each of ``seconds`` s of the same noise in records of 1 s; returns their size in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).normal(0, 3000, rate).astype(np.int16)
    size = 0
    for part in range(parts):
        start = START + timedelta(seconds=part * seconds)
        data = edf_bytes([Signal("Mic", noise, rate)], start=start, promised=seconds)
        path = folder / f"0001-100507[{part + 1:03d}].edf"
        with path.open("wb") as file:
            file.write(data[: -2 * rate])
            for _ in range(seconds):
                file.write(data[-2 * rate :])
        size += path.stat().st_size
    return size


def read_elsewhere(folder: Path) -> dict[str, float]:
    """Reads all epochs in a process that has read a night of one minute before.

    Returns their number, and the peak of the process's memory after the short night and after this one, in MB: what
    the libraries take differs by machine and version, and is in both.
    """
    short = folder.with_name(folder.name + "-short")
    write_night(short, parts=1, seconds=60)
    command = [sys.executable, "-c", _READER, str(folder), str(short)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, float] = json.loads(done.stdout)
    return result
