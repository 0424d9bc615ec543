"""Another checkout against this one, in turn: are the bits of a training the same, and when does its first step come?

``python -m tests.bench.before_after CHECKOUT CONFIG [key.path=value ...] --rounds 2`` trains the configuration with the
code of both, in this environment, and prints for each run the seconds from the command to the first logged step, the
SHA-256 of the weights and of the logged losses. The status is 1 if the bits differ. Each runs in its own folder, so
give absolute paths. Keep the trainings short: ``training.epochs=1``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

HERE = Path(__file__).parents[2]


def trained(code: Path, config: str, overrides: list[str]) -> tuple[float, str, str]:
    """Seconds to the first step, and the hashes of weights and losses, of one training with ``code``."""
    with tempfile.TemporaryDirectory(prefix="rayssl-bits-") as folder:
        arguments = [os.path.abspath(config), *overrides, f"run={folder}/run", "training.log_every=1"]
        environment = {**os.environ, "PYTHONPATH": str(code)}
        began = time.time()
        command = [sys.executable, "jobs/train.py", *arguments]
        # in its folder: Ray's workers look there for modules, too
        done = subprocess.run(command, cwd=code, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{code}: {done.stderr.strip().splitlines()[-1]}")
        lines = [json.loads(line) for line in Path(folder, "run/metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if line["kind"] == "step"]
        state = sorted(Path(folder, "run/checkpoints").glob("step-*/state.pt"))[-1]
        weights = torch.load(state, map_location="cpu", weights_only=True)["method"]
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].contiguous().numpy().tobytes())
    losses = hashlib.sha256(json.dumps([step["loss"] for step in steps]).encode())
    return steps[0]["time"] - began, digest.hexdigest(), losses.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path, help="folder of the other code")
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    seconds: dict[Path, list[float]] = {arguments.checkout.resolve(): [], HERE: []}
    bits = set()
    for _ in range(arguments.rounds):
        for code, found in seconds.items():
            first, weights, losses = trained(code, arguments.config, arguments.overrides)
            found.append(first)
            bits.add((weights, losses))
            print(f"{code}: first step after {first:.1f} s, weights {weights[:16]}, losses {losses[:16]}", flush=True)
    before, after = (sum(found) / len(found) for found in seconds.values())
    print(f"{'the same bits' if len(bits) == 1 else 'OTHER BITS'}; first step {before:.1f} s -> {after:.1f} s")
    sys.exit(len(bits) > 1)


if __name__ == "__main__":
    main()
