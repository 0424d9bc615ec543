"""A sweep's folder as `rayssl sweep` leaves it, made from a seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

SPACE = {
    "method.clusters": {"choices": [160, 320, 500, 800]},
    "method.neighbours": {"choices": [0, 1, 3]},
    "method.over.temperature": {"low": 0.03, "high": 0.3, "log": True, "integer": False},
    "training.precision": {"choices": ["fp32", "bf16"]},
}


def trials(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Temperature and clusters matter; a third continues after epochs 2 and 5 of 12, one trial fails."""
    draw = np.random.default_rng(seed)
    made = []
    for index in range(count):
        point = {
            "method.clusters": int(draw.choice([160, 320, 500, 800])),
            "method.neighbours": int(draw.choice([0, 1, 3])),
            "method.over.temperature": float(f"{0.03 * 10 ** draw.uniform():.4g}"),
            "training.precision": str(draw.choice(["fp32", "bf16"])),
        }
        start = 0.25 + 0.1 * abs(np.log(point["method.over.temperature"] / 0.08)) + 3e-5 * point["method.clusters"]
        depth = (2, 5, 12)[: 1 + (index % 3 == 0) + (index % 6 == 0)]
        rungs = [{"epoch": epoch, "value": float(start + 0.06 / epoch + draw.normal(0, 0.004)), "seconds": 60.0,
                  "figures": {}} for epoch in depth]  # fmt: skip
        state = "finished" if len(depth) == 3 else "stopped"
        reason = None if state == "finished" else f"place 3 of {index + 1} after epoch {depth[-1]}"
        made.append({"index": index, "point": point, "state": state, "reason": reason, "rungs": rungs})
    made[1] |= {"state": "failed", "reason": "the loss is <nan> at step 3", "rungs": []}
    for trial in made:
        trial["epochs"] = trial["rungs"][-1]["epoch"] if trial["rungs"] else 0
        trial["value"] = trial["rungs"][-1]["value"] if trial["rungs"] else None
    return sorted(made, key=lambda t: (t["state"] == "failed", -t["epochs"], t["value"] or 1.0))


def write_sweep(folder: Path, count: int = 18, **changes: Any) -> Path:
    """Writes the folder and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    ranked = trials(count)
    results = {
        "kind": "sweep", "sweep": str(folder), "base": "gsc_<b>.yaml", "metric": "eer", "mode": "min",
        "search": "random", "scheduler": {"name": "asha", "reduction": 3.0, "rungs": [2, 5]}, "space": SPACE,
        "trials": ranked, "asked": count, "best": ranked[0]["index"], "commit": "0123abc",
        "argv": ["/opt/venv/bin/rayssl", "sweep", "configs/sweep_ssps.yaml"], **changes,
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "best.yaml").write_text("# The best\nrun: there\nnotes: <script>alert(1)</script>\n")
    return folder
