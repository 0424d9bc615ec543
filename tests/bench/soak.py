"""Whether a long training needs more and more memory: ``python -m tests.bench.soak --minutes 60 --json``.

A training of SSPS on two workers, with a clustering an epoch and a checkpoint every few steps, runs on a local cluster
of its own for so long. The anonymous resident bytes of each of its processes are read every few seconds: what a process
has allocated itself, without files and shared memory that are merely mapped. The first third is warm-up.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults.places import Place
from tests.faults.work import Training

_WARM = 1 / 3  # of the time
_STEPS_S = 40  # more steps a second than any machine does: the time ends the training, not its epochs


def main() -> int:
    """Runs it; prints a table, or JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=5.0, metavar="S", help="seconds between two samples (default 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON document, with all samples")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rayssl-soak-") as folder:
        steps, samples = soak(Path(folder), 60 * arguments.minutes, arguments.every)
    end = max(sample["seconds"][-1] for sample in samples.values())
    rows = [row for row in (judged(sample, end) for sample in samples.values()) if row is not None]
    rows.sort(key=lambda row: -row["growth_mb"])
    if arguments.json:
        print(json.dumps({"minutes": arguments.minutes, "steps": steps, "processes": rows}, indent=1))
        return 0
    print(f"{steps} steps in {arguments.minutes:g} min")
    print(f"{'process':44} {'at first':>9} {'at last':>9} {'growth':>8} {'an hour':>8}   (MB, after warm-up)")
    for row in rows:
        figures = f"{row['first_mb']:9.1f} {row['last_mb']:9.1f} {row['growth_mb']:8.1f} {row['mb_an_hour']:8.1f}"
        print(f"{row['title'][:44]:44} {figures}")
    return 0


def soak(folder: Path, seconds: float, every_s: float) -> tuple[int, dict[int, dict[str, Any]]]:
    """Trains for ``seconds``. How many steps were done, and of each process its title, seconds and bytes."""
    work = Training("soak", epochs=int(seconds * _STEPS_S / 12) + 1, every_steps=20)
    place, samples = Place(folder), dict[int, dict[str, Any]]()
    try:
        work.write(place.home)
        run, began = f"{place.home}/run", time.monotonic()
        process = place.start(work.command(place.home, run), folder / "out.txt")
        while time.monotonic() - began < seconds:
            if process.poll() is not None:
                raise SystemExit(
                    f"the training ended, status {process.returncode}:\n{(folder / 'out.txt').read_text()}"
                )
            at = time.monotonic() - began
            for each in place.processes():
                size = anonymous_bytes(each.pid)
                if size is not None:
                    known = samples.setdefault(each.pid, {"title": each.title, "seconds": [], "bytes": []})
                    known["title"] = each.title
                    known["seconds"].append(at)
                    known["bytes"].append(size)
            sys.stderr.write(f"soak: {at:.0f} s, {work.done(run)} steps saved\n")
            time.sleep(every_s)
        process.send_signal(signal.SIGTERM)
        process.wait(120)
        return work.done(run), samples
    finally:
        place.down()


def anonymous_bytes(pid: int) -> int | None:
    """The anonymous resident bytes of a process; None if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("RssAnon")]
    return int(found[0]) << 10 if found else None


def judged(sample: dict[str, Any], end: float) -> dict[str, Any] | None:
    """Of a process that lived from the warm-up to the ``end``: MB at first and at last, and the slope of a line.

    At first and at last are medians over a tenth of the time after the warm-up.
    """
    seconds, sizes = np.array(sample["seconds"]), np.array(sample["bytes"]) / 2**20
    warm = seconds >= _WARM * end
    if seconds[0] > _WARM * end or seconds[-1] < 0.9 * end or warm.sum() < 10:
        return None
    seconds, sizes = seconds[warm], sizes[warm]
    tenth = max(1, len(sizes) // 10)
    first, last = float(np.median(sizes[:tenth])), float(np.median(sizes[-tenth:]))
    slope = float(np.polyfit(seconds, sizes, 1)[0]) * 3600
    title = sample["title"].replace(sys.executable, "python")
    return {
        "title": title,
        "first_mb": round(first, 2),
        "last_mb": round(last, 2),
        "growth_mb": round(last - first, 2),
        "mb_an_hour": round(slope, 2),
        "samples_mb": [round(each, 2) for each in sizes[:: max(1, len(sizes) // 60)].tolist()],
    }


if __name__ == "__main__":
    sys.exit(main())
