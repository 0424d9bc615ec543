"""Trains a configuration in this process: the steps of `rayssl train` with one worker, at half the cost on few cores.

    python -m tests.bench.train_here CONFIG [KEY=VALUE ...]

What Ray does besides training takes about as much of a small machine as one worker does. The run's folder is the same,
and any verb reads it.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from rayssl.experiment.config import Experiment, located
from rayssl.runs.origin import origins, record
from rayssl.schema import load_yaml, override, parse
from rayssl.training import checkpoint
from tests import runs


def main() -> None:
    """Trains to the last epoch; a run that has been there is left alone."""
    config, *overrides = sys.argv[1:]
    tree = override(load_yaml(Path(config).read_text(encoding="utf-8"), config), overrides)
    experiment = parse(Experiment, tree, config)
    record(experiment, origins(tree, overrides, experiment))
    experiment, began = located(experiment), time.perf_counter()
    if checkpoint.steps(experiment.run):
        last = checkpoint.read_meta(checkpoint.locate(experiment.run, "last"))
        if last.epoch >= experiment.training.epochs:
            return
    torch.set_num_threads(1)
    runs.fit(experiment)
    print(f"{experiment.run}: trained here in {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
