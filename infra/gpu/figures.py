#!/usr/bin/env python3
"""Collects the figures of `run.sh` from its folder into figures.json, and prints them: ``figures.py FOLDER``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def last(log: Path) -> dict[str, Any]:
    """The last line of JSON, from a part that was cut off too; the end of the log where there is none."""
    lines = log.read_text(errors="replace").strip().splitlines()
    for line in reversed(lines):
        if line.startswith("{"):
            try:
                found: dict[str, Any] = json.loads(line)
            except ValueError:
                continue  # cut off in the middle of the line
            return found
    return {"error": "\n".join(lines[-3:])[-400:]}


def waiting(metrics: Path) -> list[dict[str, float]]:
    """Of each epoch but the first: utterances/s, the shares of the time it waited for data and for the memory."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    wanted = ("epoch", "utterances_per_s", "data_wait", "memory_wait")
    return [{k: line[k] for k in wanted if k in line} for line in lines if line.get("kind") == "epoch"][1:]


def main(folder: Path) -> None:
    """Writes and prints what there is."""
    found: dict[str, Any] = {}
    for log in sorted(folder.glob("*.*.log")):
        part, tree = log.name.split(".")[:2]
        found.setdefault(part, {})[tree] = last(log).get(part) or last(log)
    if (folder / "metrics.jsonl").exists():
        found["train"] = waiting(folder / "metrics.jsonl")
    if (folder / "tests.log").exists():
        found["tests"] = (folder / "tests.log").read_text(errors="replace").strip().splitlines()[-1:]
    (folder / "figures.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
