"""The table of sleep staging in configs/README.md, over seeds: nights of `configs/nights_prepare.yaml`.

    python -m tests.bench.sleep_table [--seeds 0 1 2] [--rows ...] [--splits clean odd] [--dev]

Trains and evaluates what is missing, by the commands a user would type, and prints one Markdown row for each; a run
that was interrupted resumes. ``--dev`` evaluates on the nights of dev, where settings are chosen. ``--here`` trains
without Ray, in one process of one thread, so that two of these commands may run side by side on two cores.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from rayssl import storage
from tests.bench.table_runs import cell, result

CONFIG = "nights_sleep.yaml"
FORMER = "encoder.backbone={name: sleepformer, width: 0.125, bands: 32, frames: 300, blocks: 2, sequence: 20}"


@dataclass(frozen=True)
class Row:
    """One run of the table. ``unlabelled``: whether it uses unlabelled nights, so that odd ones matter."""

    title: str
    overrides: tuple[str, ...]
    unlabelled: bool = True


ROWS = {
    "epoch": Row("one epoch: CNN", ("encoder.backbone.context=epoch",), False),
    "soundsleepnet": Row("SoundSleepNet, supervised", (), False),
    "fc": Row("SleepFormer fc, supervised", (f"{FORMER[:-1]}, head: fc}}",), False),
    "vit": Row("SleepFormer vit, supervised", (FORMER,), False),
    "noise": Row("+ noise consistency, labelled nights", (FORMER, "method.noise.weight=1"), False),
    "fixmatch": Row("+ FixMatch", (FORMER, "method.fixmatch.weight=1")),
    "sequential": Row("+ L_SC", (FORMER, "method.sequential.weight=1")),
    "ccssl": Row("+ CCSSL", (FORMER, "method.ccssl.weight=0.1")),
    "ssc": Row("+ SSC", (FORMER, "method.ssc.weight=0.1")),
    "both": Row("+ L_SC + SSC", (FORMER, "method.sequential.weight=1", "method.ssc.weight=0.1")),
}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--splits", nargs="+", default=["clean", "odd"])
    parser.add_argument("--into", default="runs/nights/table")
    parser.add_argument("--set", nargs="*", default=[], help="more overrides, for every run")
    parser.add_argument("--dev", action="store_true")
    parser.add_argument("--here", action="store_true")
    arguments = parser.parse_args()
    heads = ("run", "unlabelled nights", "macro F1 %", "kappa", "accuracy %", "seeds")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}", flush=True)
    for name in arguments.rows:
        row = ROWS[name]
        for split in arguments.splits if row.unlabelled else ["none"]:
            where = [f"labels.split={'clean' if split == 'none' else split}"]
            where += ["evaluation.corpus=runs/nights/dev"] if arguments.dev else []
            found = [
                result(
                    storage.join(arguments.into, f"{name}-{split}-seed{seed}{'-dev' if arguments.dev else ''}"),
                    CONFIG,
                    seed,
                    (*where, *row.overrides, *arguments.set),
                    here=arguments.here,
                )
                for seed in arguments.seeds
            ]
            cells = [cell((each[key] for each in found), 100, 1) for key in ("macro_f1", "accuracy")]
            kappa = cell((each["kappa"] for each in found), 1, 3)
            seeds = len(arguments.seeds)
            print(f"| {row.title} | {split} | {cells[0]} | {kappa} | {cells[1]} | {seeds} |", flush=True)


if __name__ == "__main__":
    main()
