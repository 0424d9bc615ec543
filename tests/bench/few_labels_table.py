"""The tables of few labels in configs/README.md, over seeds: generated words of `configs/synthetic_words_prepare.yaml`
and recorded ones of `configs/words_prepare.yaml`, and for CLAR spoken digits of `configs/digits_prepare.yaml`.

    python -m tests.bench.few_labels_table imbalance [--corpus synthetic_words] [--seeds 0 1 2] [--splits same ...]
    python -m tests.bench.few_labels_table clar [--seeds 0 1 2]
    python -m tests.bench.few_labels_table augmentations [--seeds 0]

Trains and evaluates what is missing, by the commands a user would type, and prints one Markdown row for each; a run
that was interrupted resumes. Each seed of the first table has its own draw of the split. ``--here``
trains without Ray, in one process of one thread, so that two of these commands may run side by side on two cores.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from rayssl import storage
from rayssl.training.metrics import read_metrics
from tests.bench.table_runs import cell, result

ADJUSTED = "method.adjust=1.0"
# DASO's settings for 250,000 steps, of which 5,000 are the warm-up: the same share of 600
PUBLISHED = (
    *("method.threshold=0.95", "method.ema=0.999", "method.queue=256", "method.window=100"),
    *("method.prototype_temperature=0.05", "method.align=1.0", "method.warmup_steps=12"),
)
# T_dist as published: 0.3 where the unlabelled classes are distributed otherwise than the labelled ones
BLENDED = {"same": "method.blend_temperature=1.5"}
OTHERWISE = "method.blend_temperature=0.3"
FEW = 3  # classes of the tail


@dataclass(frozen=True)
class Row:
    """One line of a table. ``config``: a file of `configs`; in the imbalance table, what follows the corpus's name."""

    title: str
    config: str
    overrides: tuple[str, ...] = ()


ALONE = "supervised"
IMBALANCE = {
    ALONE: Row("supervised", "classifier.yaml"),
    "fixmatch": Row("FixMatch", "fixmatch.yaml"),
    "usadtm": Row("USADTM", "usadtm.yaml"),
    "daso": Row("FixMatch + DASO", "daso.yaml"),
    "daso_published": Row("FixMatch + DASO, its settings as published", "daso.yaml", PUBLISHED),
    "fixmatch_la": Row("FixMatch + LA", "fixmatch.yaml", (ADJUSTED,)),
    "daso_la": Row("FixMatch + LA + DASO", "daso.yaml", (ADJUSTED,)),
}
ENCODERS = {
    "tf": ("time-frequency", "digits_clar.yaml"),
    "raw": ("waveform", "digits_clar_raw.yaml"),
    "cross": ("cross", "digits_clar_cross.yaml"),
}
# as many steps of as many clips as a pass of CLAR makes: 1,000 by 64
CLASSIFIED = ("method={name: classifier, recipe: strong, ema: 0.99}", "training.epoch_steps=15")


def _clar_rows() -> dict[str, Row]:
    """CLAR without labels, with a tenth and with all of them, and training on these alone, for each kind of encoder."""
    rows = {}
    for name, (title, config) in ENCODERS.items():
        rows[f"self_{name}"] = Row(f"CLAR, {title}", config)
        for split, share in (("tenth", "10 %"), ("all", "100 %")):
            labels = (f"labels={{split: {split}}}", "evaluation.probes=[]")
            semi = ("method.labels=cross_entropy",)
            rows[f"semi_{split}_{name}"] = Row(f"CLAR with {share} of the labels, {title}", config, (*labels, *semi))
            alone = Row(f"supervised, {share}, {title}", config, (*labels, *CLASSIFIED))
            rows[f"supervised_{split}_{name}"] = alone
    return rows


NOTHING = "none"  # views that differ by their crop alone
AUGMENTATIONS = (
    NOTHING,
    "fade",
    "time_mask",
    "time_shift",
    "white_noise",
    "mixed_noise",
    "pitch_shift",
    "time_stretch",
)


def imbalance(arguments: argparse.Namespace) -> None:
    """Balanced accuracy, geometric mean, and recall of the tail's pseudo-labels, by method and split."""
    rows = [(name, IMBALANCE[name]) for name in arguments.rows or IMBALANCE]
    print(
        "| split | method | balanced accuracy % | geometric mean % | few % | recall of few pseudo-labels % |",
        flush=True,
    )
    print("|---|---|---|---|---|---|", flush=True)
    for split in arguments.splits:
        for name, row in rows:
            if name == ALONE and split != arguments.splits[0]:
                continue  # the labelled clips of a seed are those of each of its splits
            measured = [_imbalance(name, row, split, seed, arguments) for seed in arguments.seeds]
            cells = [cell((each.get(key) for each in measured), 100, 1) for key in ("ba", "gm", "few", "pseudo")]
            print(f"| {'any' if name == ALONE else split} | {row.title} | {' | '.join(cells)} |", flush=True)


def _imbalance(name: str, row: Row, split: str, seed: int, arguments: argparse.Namespace) -> dict[str, float | None]:
    drawn = f"{split}_{seed}" if seed else split
    run = storage.join(arguments.into, arguments.corpus, f"{name}-{split}-seed{seed}")
    config = f"{arguments.corpus}_{row.config}"
    blended = (BLENDED.get(split, OTHERWISE),) if "daso" in name else ()
    model = result(run, config, seed, (f"labels.split={drawn}", *row.overrides, *blended), here=arguments.here)[0]
    return {
        "ba": model["balanced_accuracy"],
        "gm": model["geometric_mean"],
        "few": model["few"],
        "pseudo": _tail_recall(run, model),
    }


def _tail_recall(run: str, model: dict[str, Any]) -> float | None:
    """Right pseudo-labels of the least labelled classes in the last epoch, by how many there should be."""
    lines = [line for line in read_metrics(storage.join(run, "metrics.jsonl")) if line["kind"] == "classes"]
    if not lines:
        return None
    known = {each["name"]: each["train_count"] for each in model["per_class"]}
    tail = sorted(range(len(known)), key=lambda k: known[lines[-1]["names"][k]])[:FEW]
    recalls = [lines[-1]["right"][k] / max(1, lines[-1]["truth"][k]) for k in tail]
    return sum(recalls) / len(recalls)


def clar(arguments: argparse.Namespace) -> None:
    """Balanced accuracy of linear probes by share of the labels, and of classifiers that were trained along."""
    heads = ("run", "linear, 10 % of the labels", "linear, 100 %", "nearest neighbours, 100 %", "own classifier")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}", flush=True)
    rows = _clar_rows()
    for name in arguments.rows or rows:
        row = rows[name]
        found = [
            {(each["head"], each["share"]): each["balanced_accuracy"] for each in results}
            for results in (
                result(
                    storage.join(arguments.into, f"clar_{name}-seed{seed}"),
                    row.config,
                    seed,
                    row.overrides,
                    here=arguments.here,
                )
                for seed in arguments.seeds
            )
        ]
        keys = [("linear", 0.1), ("linear", 1.0), ("knn", 1.0), ("model", 1.0)]
        cells = [cell((each.get(key) for each in found), 100, 1) for key in keys]
        print(f"| {row.title} | {' | '.join(cells)} |", flush=True)


def augmentations(arguments: argparse.Namespace) -> None:
    """Each augmentation alone, at the configuration's own settings or the defaults, over the time-frequency encoder."""
    print("| augmentation | linear, 100 % of the labels |\n|---|---|", flush=True)
    for chosen in AUGMENTATIONS:
        only = "views.strong={}" if chosen == NOTHING else "views.strong={" + chosen + ": {p: 0.5}}"
        overrides = (only, "evaluation.probes=[linear]", "evaluation.shares=[1.0]")
        runs = (storage.join(arguments.into, f"only-{chosen}-seed{seed}") for seed in arguments.seeds)
        found = [
            result(run, "digits_clar.yaml", seed, overrides, here=arguments.here)[0]["balanced_accuracy"]
            for run, seed in zip(runs, arguments.seeds, strict=True)
        ]
        print(f"| {chosen} | {cell(found, 100, 1)} |", flush=True)


def main() -> None:
    """Prints the table that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = {"imbalance": imbalance, "clar": clar, "augmentations": augmentations}
    parser.add_argument("table", choices=tables)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--splits", nargs="+", default=["same", "uniform", "reversed"])
    parser.add_argument("--corpus", default="words", choices=["words", "synthetic_words"])
    rows = f"of imbalance: {', '.join(IMBALANCE)}; of clar: {', '.join(_clar_rows())}"
    parser.add_argument("--rows", nargs="+", help=rows)
    parser.add_argument("--into", default="runs/few_labels")
    parser.add_argument("--here", action="store_true")
    arguments = parser.parse_args()
    tables[arguments.table](arguments)


if __name__ == "__main__":
    main()
