"""The verification tables of configs/README.md, over seeds: SimCLR, SSPS in several ways, its bound, supervised
training, the second stage; other bases with SSPS.

    python -m tests.bench.verification_table [--here] [--seeds 0 1 2] [--rows simclr ssps supervised dino ssps_dino ...]
    python -m tests.bench.verification_table --dev --seeds 0 --rows ssps --set method.clusters=640 --into runs/gsc/k640

Trains and evaluates what is missing, by the commands a user would type, and prints one Markdown row for each; a run
that was interrupted resumes. Needs the corpora of `configs/gsc_prepare.yaml`. ``--here`` trains without Ray, in one
process of one thread, so that two of these commands may run side by side on two cores.

``--dev`` takes the development part of `configs/gsc_dev_prepare.yaml` in place of the test: settings are chosen on it.
Name the settings behind ``--set``, and another folder behind ``--into`` for each of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from rayssl import storage
from rayssl.training import checkpoint
from tests.bench.table_runs import cell, result


@dataclass(frozen=True)
class Row:
    """One line of the table: a checkpoint of the run that ``config`` with ``overrides`` makes.

    ``after``: the run whose encoder it begins with, of the same seed.
    """

    title: str
    run: str
    config: str
    overrides: tuple[str, ...] = ()
    which: str = "last"
    after: str | None = None


PLAIN = ("method.whiten=false", "method.references=rolling", "method.kmeans=exact")
MERGED = ("method.clusters=320", "method.merged_from=1260")
KMEANS = ("method.clusters=500", "method.merged_from=0")
NEAREST = ("method.sampling=nn", "method.neighbours=3")
BOUND = (*PLAIN, "method.sampling=speaker")
LONG = ("training.epochs=48", "training.optimiser.schedule.every_epochs=16", "training.checkpoints.milestones=[]")
DEV = (
    *("corpus.uri=runs/gsc/dev/train", "evaluation.corpus=runs/gsc/dev/test"),
    "evaluation.trials=runs/gsc/dev/trials.txt",
)
BASES = {"dino": "DINO", "moco": "MoCo", "swav": "SwAV", "vicreg": "VICReg", "sdpn": "SDPN"}


def published(clusters: int, neighbours: int) -> tuple[str, ...]:
    """SSPS with the published settings around K and M: rolling references, exact k-means, a queue of K utterances."""
    return (
        *PLAIN,
        "method.merged_from=0",
        f"method.clusters={clusters}",
        f"method.queue={clusters}",
        f"method.neighbours={neighbours}",
    )


ROWS = (
    Row("SimCLR, half of the epochs", "simclr", "gsc_simclr.yaml", which="epoch-12"),
    Row("SimCLR, as many epochs more", "simclr", "gsc_simclr.yaml"),
    Row("SimCLR + SSPS", "merged", "gsc_ssps_simclr.yaml", MERGED),
    Row("SimCLR + SSPS, k-means alone, K = 500", "ssps", "gsc_ssps_simclr.yaml", KMEANS),
    Row("SimCLR, 48 epochs", "simclr48", "gsc_simclr.yaml", LONG),
    Row("SimCLR 12 + SSPS 36", "merged48", "gsc_ssps_simclr.yaml", (*MERGED, *LONG)),
    Row("SimCLR 12 + SSPS 36, k-means alone, K = 500", "ssps48", "gsc_ssps_simclr.yaml", (*KMEANS, *LONG)),
    Row("SimCLR + SSPS-NN, M = 3", "nn", "gsc_ssps_simclr.yaml", NEAREST),
    Row("SimCLR + SSPS as published, K = 320, M = 0", "k320", "gsc_ssps_simclr.yaml", published(320, 0)),
    Row("SimCLR + SSPS as published, K = 1340, M = 1", "k1340", "gsc_ssps_simclr.yaml", published(1340, 1)),
    Row("SimCLR + positives of true speakers (bound)", "bound", "gsc_ssps_simclr.yaml", BOUND),
    Row("SimCLR 12 + positives of true speakers 36 (bound)", "bound48", "gsc_ssps_simclr.yaml", (*BOUND, *LONG)),
    Row("supervised (AAM-softmax)", "supervised", "gsc_supervised.yaml"),
    Row("SimCLR + SSPS, then the second stage", "second_merged", "gsc_pseudo_speakers.yaml", after="merged"),
    Row("the same, k-means alone", "second", "gsc_pseudo_speakers.yaml", ("method.merged_from=0",), after="ssps"),
    Row("SimCLR 12 + SSPS 36, then the second stage", "second_merged48", "gsc_pseudo_speakers.yaml", after="merged48"),
    Row("the same, k-means alone", "second48", "gsc_pseudo_speakers.yaml", ("method.merged_from=0",), after="ssps48"),
    *(
        row
        for name, title in BASES.items()
        for row in (
            Row(title, name, f"gsc_{name}.yaml"),
            Row(f"{title} + SSPS, merged clusters", f"merged_{name}", f"gsc_ssps_{name}.yaml", MERGED),
            Row(f"{title} + SSPS, k-means alone", f"ssps_{name}", f"gsc_ssps_{name}.yaml", KMEANS),
        )
    ),
)


def measure(row: Row, seed: int, into: str, more: Sequence[str] = (), *, here: bool) -> dict[str, float]:
    """The row's figures for one seed, with ``more`` overrides; trained and evaluated where that has not been done."""
    run = storage.join(into, f"{row.run}-seed{seed}")
    begins = () if row.after is None else (f"encoder.start_from={storage.join(into, f'{row.after}-seed{seed}')}",)
    figures = result(run, row.config, seed, (*row.overrides, *begins, *more), row.which, here=here)
    return {**checkpoint.read_meta(checkpoint.locate(run, row.which)).metrics, **figures}


def line(row: Row, measured: list[dict[str, float]]) -> str:
    """The row as Markdown: mean and standard deviation over seeds, percentages where a rate is meant."""
    columns = [("eer", 100, 2), ("min_dcf_001", 1, 3), ("min_dcf_005", 1, 3)]
    columns += [(name, 100, 0) for name in ("coverage", "speaker_accuracy", "recording_accuracy")]
    cells = [cell((figures.get(name) for figures in measured), scale, digits) for name, scale, digits in columns]
    return f"| {row.title} | {' | '.join(cells)} |"


def main() -> None:
    """Measures seed after seed, so that an early stop leaves whole seeds behind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", default=sorted({row.run for row in ROWS}))
    parser.add_argument("--into", help="default: runs/gsc/table, with --dev runs/gsc/dev/table")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="more overrides, for every run")
    parser.add_argument("--dev", action="store_true", help="the development part in place of the test")
    parser.add_argument("--here", action="store_true")
    arguments = parser.parse_args()
    into = arguments.into or ("runs/gsc/dev/table" if arguments.dev else "runs/gsc/table")
    more = (*(DEV if arguments.dev else ()), *arguments.set)
    rows = [row for row in ROWS if row.run in arguments.rows]
    measured: dict[Row, list[dict[str, float]]] = {row: [] for row in rows}
    for seed in arguments.seeds:
        for row in rows:
            measured[row].append(measure(row, seed, into, more, here=arguments.here))
            print(f"seed {seed}: {line(row, measured[row][-1:])}", flush=True)
    print("| run | EER % | minDCF(0.01) | minDCF(0.05) | coverage % | right speaker % | same recording % |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(line(row, measured[row]))


if __name__ == "__main__":
    main()
