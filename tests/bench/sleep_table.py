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
SSC = "method.ssc={weight: 0.1, threshold: 0.5}"
# Twice the steps of nights_sleep.yaml: after 1,200 one of three seeds had never predicted REM
WHOLE = ("training.epochs=16",)
# A term begins with the weights of the supervised run of its seed, as HomeSleepNet does: from the first step on, L_SC
# and SSC kept the network where all epochs look alike
LATER = ("training.epochs=2", "training.optimiser.lr=0.001")


@dataclass(frozen=True)
class Row:
    """One run of the table. ``unlabelled``: whether it uses unlabelled nights, so that odd ones matter.

    ``later``: whether it goes on from the supervised run of the same seed.
    """

    title: str
    overrides: tuple[str, ...] = ()
    unlabelled: bool = False
    later: bool = False


ROWS = {
    "epoch": Row("one epoch: CNN", (*WHOLE, "encoder.backbone.context=epoch")),
    "soundsleepnet": Row("SoundSleepNet, supervised", WHOLE),
    "fc": Row("SleepFormer fc, supervised", (*WHOLE, f"{FORMER[:-1]}, head: fc}}")),
    "vit": Row("SleepFormer vit, supervised", (*WHOLE, FORMER)),
    "bound": Row("SoundSleepNet, supervised by nights at home (bound)", (*WHOLE, "labels.split=bound")),
    "longer": Row("supervised, 300 steps more", (), later=True),
    "noise": Row("+ noise consistency", ("method.noise={weight: 1, nights: both}",), True, True),
    "fixmatch": Row("+ FixMatch", ("method.fixmatch.weight=1",), True, True),
    "sequential": Row("+ L_SC", ("method.sequential.weight=100",), True, True),
    "ccssl": Row("+ CCSSL", ("method.ccssl.weight=0.1",), True, True),
    "ssc": Row("+ SSC", (SSC,), True, True),
    "both": Row("+ L_SC + SSC", ("method.sequential.weight=100", SSC), True, True),
}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--splits", nargs="+", default=["clean", "odd"])
    parser.add_argument("--base", default="soundsleepnet", choices=["soundsleepnet", "fc", "vit"])
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
            found = [run(name, split, seed, arguments) for seed in arguments.seeds]
            cells = [cell((each[key] for each in found), 100, 1) for key in ("macro_f1", "accuracy")]
            kappa = cell((each["kappa"] for each in found), 1, 3)
            seeds = len(arguments.seeds)
            print(f"| {row.title} | {split} | {cells[0]} | {kappa} | {cells[1]} | {seeds} |", flush=True)


def run(name: str, split: str, seed: int, arguments: argparse.Namespace) -> dict[str, float]:
    """The figures of one run. What is missing is trained, the run it goes on from first."""
    row, where = ROWS[name], [f"labels.split={'clean' if split == 'none' else split}"]
    if arguments.dev:
        where.append("evaluation.corpus=runs/nights/dev")
    if row.later:
        run(arguments.base, "none", seed, arguments)
        where += [
            *ROWS[arguments.base].overrides,
            *LATER,
            f"method.start_from={place(arguments.base, 'none', seed, arguments)}",
        ]
    overrides = (*where, *row.overrides, *arguments.set)
    return result(place(name, split, seed, arguments), CONFIG, seed, overrides, here=arguments.here)


def place(name: str, split: str, seed: int, arguments: argparse.Namespace) -> str:
    """Where a run lies."""
    on = f"-on-{arguments.base}" if ROWS[name].later else ""
    return storage.join(arguments.into, f"{name}{on}-{split}-seed{seed}{'-dev' if arguments.dev else ''}")


if __name__ == "__main__":
    main()
