"""The tables of few labels in configs/README.md, over seeds: generated words of `configs/synthetic_words_prepare.yaml`
and recorded ones of `configs/words_prepare.yaml`, and for CLAR spoken digits of `configs/digits_prepare.yaml`.

    python -m tests.bench.few_labels_table imbalance [--corpus synthetic_words] [--seeds 0 1 2] [--splits same ...]
        [--repeats 0 1]
    python -m tests.bench.few_labels_table clar [--seeds 0 1 2] [--encoders tf raw cross]
    python -m tests.bench.few_labels_table clar_time [--seeds 0 1 2] [--encoders tf raw cross]
    python -m tests.bench.few_labels_table augmentations [--seeds 0]

Trains and evaluates what is missing, by the commands a user would type, and prints one Markdown row for each; a run
that was interrupted resumes. Each seed has its own draw of the split. ``--repeats`` trains a draw several times, with
other seeds of the training alone. ``--here`` trains without Ray, in one process of one thread, so that two of these
commands may run side by side on two cores.

Rows of ``clar`` are like with like: each has 600 steps, 64 labelled views in each of them if it learns from labels, the
same labelled clips (also those of the probes), and no averaged weights. ``clar_time`` gives the balanced accuracy of
the same runs at their milestones: by their own classifier, and of CLAR without labels by the linear probe.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayssl import storage
from rayssl.training.metrics import read_metrics
from tests.bench.table_runs import cell, result

ADJUSTED = "method.adjust=1.0"
# DASO's settings for 250,000 steps, of which 5,000 are the warm-up: about the same share of ours. The average stays
# that of all rows: with the published 0.999 it would be the plain mean of the weights of all steps, the first included
PUBLISHED = (
    *("method.threshold=0.95", "method.queue=256", "method.window=100"),
    *("method.prototype_temperature=0.05", "method.align=1.0", "method.warmup_steps=20"),
)
# USADTM's rule and settings in the public code; its warm-up has the same share of the steps
AS_IN_CODE = ("method.rule=cosine", "method.threshold=0.85", "method.features=current", "method.warmup_steps=2")
# another rule; the file of the generated words has the one in the code
OUR_RULE = (
    *("method.rule=softmax", "method.threshold=0.9", "method.temperature=0.1"),
    *("method.features=average", "method.warmup_steps=0"),
)
# T_dist as published: 0.3 where the unlabelled classes are distributed otherwise than the labelled ones. For generated
# words another one was chosen on the development part, which is in the file of the row
BLENDED = {"same": "method.blend_temperature=1.5"}
OTHERWISE = "method.blend_temperature=0.3"
FEW = 3  # classes of the tail
APART = 100  # between the seeds of two trainings of a draw
RECORDED, GENERATED = "words", "synthetic_words"


@dataclass(frozen=True)
class Row:
    """One line of a table. ``config``: a file of `configs`; in the imbalance table, what follows the corpus's name.

    ``by_rule_on``: the corpora on which T_dist is the published one of the split, not that of the file.
    """

    title: str
    config: str
    overrides: tuple[str, ...] = ()
    by_rule_on: tuple[str, ...] = ()


ALONE = "supervised"
IMBALANCE = {
    ALONE: Row("supervised", "classifier.yaml"),
    "fixmatch": Row("FixMatch", "fixmatch.yaml"),
    "usadtm": Row("USADTM, rule softmax", "usadtm.yaml", OUR_RULE),
    "usadtm_published": Row("USADTM, its settings as published", "usadtm.yaml", AS_IN_CODE),
    "daso": Row("FixMatch + DASO", "daso.yaml", by_rule_on=(RECORDED,)),
    "daso_published": Row("FixMatch + DASO, its settings as published", "daso.yaml", PUBLISHED, (RECORDED, GENERATED)),
    "fixmatch_la": Row("FixMatch + LA", "fixmatch.yaml", (ADJUSTED,)),
    "daso_la": Row("FixMatch + LA + DASO", "daso.yaml", (ADJUSTED,), (RECORDED,)),
}
ENCODERS = {
    "tf": ("time-frequency", "digits_clar.yaml"),
    "raw": ("waveform", "digits_clar_raw.yaml"),
    "cross": ("cross", "digits_clar_cross.yaml"),
}
SHARES = {"hundredth": "1 %", "tenth": "10 %", "fifth": "20 %", "all": "100 %"}  # by split
# 64 labelled views a step: two each of 64 / ratio clips, or one each of 64
# the sum over both views, as in the public code: better than the mean on a held-out quarter of the training clips
STREAMED = ("method.labels=cross_entropy", "method.labels_from=stream", "method.cross_entropy_over=sum")
CLASSIFIED = ("method={name: classifier, recipe: strong, ema: 0, evaluate: online}", "training.epoch_steps=15")
FROZEN = ("linear", "knn", "finetune")


@dataclass(frozen=True)
class ClarRow:
    """One line of CLAR's tables: a kind of training with an encoder of `ENCODERS`, judged with the labels of a split.

    ``learns``: the overrides with which it learns from these labels; empty for CLAR without labels, which is one run
    for all splits, judged by probes.
    """

    title: str
    encoder: str
    split: str
    learns: tuple[str, ...] = ()

    def run(self, into: str, name: str, seed: int) -> str:
        return storage.join(into, f"clar_{name if self.learns else f'self_{self.encoder}'}-seed{seed}")

    def labels(self, seed: int) -> str:
        """The split of ``seed``; all clips are the same ones for every seed."""
        drawn = f"{self.split}_{seed}" if seed and self.split != "all" else self.split
        return f"labels={{split: {drawn}, ratio: 2}}"

    def trained(self, run: str, seed: int, arguments: argparse.Namespace) -> Any:
        """The figures after training, of the own classifier, or of some probe that does not matter."""
        judged = "evaluation.probes=[]" if self.learns else "evaluation.probes=[knn]"
        given = (self.labels(seed), *self.learns) if self.learns else ()
        how = (judged, "evaluation.shares=[1.0]", *given, *arguments.set)
        return result(run, ENCODERS[self.encoder][1], seed, how, here=arguments.here)


def _clar_rows(encoders: Iterable[str] = ENCODERS) -> dict[str, ClarRow]:
    """CLAR without labels, with a stream of them, the same with negatives of other classes, and training on the
    labelled clips alone; by encoder and share.
    """
    kinds = {
        "self": ("CLAR", ()),
        "stream": ("CLAR + labels", STREAMED),
        "others": ("CLAR + labels, negatives of other classes", (*STREAMED, "method.negatives=other_classes")),
        "alone": ("supervised", CLASSIFIED),
    }
    return {
        f"{kind}_{split}_{encoder}": ClarRow(title, encoder, split, learns)
        for encoder in encoders
        for split in SHARES
        for kind, (title, learns) in kinds.items()
    }


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
            each_run = [(draw, repeat) for draw in arguments.seeds for repeat in arguments.repeats]
            measured = [_imbalance(name, row, split, draw, repeat, arguments) for draw, repeat in each_run]
            cells = [cell((each.get(key) for each in measured), 100, 1) for key in ("ba", "gm", "few", "pseudo")]
            print(f"| {'any' if name == ALONE else split} | {row.title} | {' | '.join(cells)} |", flush=True)


def _imbalance(
    name: str, row: Row, split: str, draw: int, repeat: int, arguments: argparse.Namespace
) -> dict[str, float | None]:
    drawn = f"{split}_{draw}" if draw else split
    again, seed = f"-again{repeat}" if repeat else "", draw + APART * repeat
    run = storage.join(arguments.into, arguments.corpus, f"{name}-{split}-seed{draw}{again}")
    config = f"{arguments.corpus}_{row.config}"
    blended = (BLENDED.get(split, OTHERWISE),) if arguments.corpus in row.by_rule_on else ()
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
    """Balanced accuracy by encoder, share of the labels and kind of training, of probes and of own classifiers."""
    heads = ("encoder", "labels", "training", "linear probe", "nearest neighbours", "fine-tuned", "own classifier")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}", flush=True)
    for name, row in _chosen(arguments).items():
        found = [_clar_figures(name, row, seed, arguments) for seed in arguments.seeds]
        cells = [cell((each.get(key) for each in found), 100, 1) for key in (*FROZEN, "model")]
        print(f"{_clar_beginning(row)} | {' | '.join(cells)} |", flush=True)


def clar_time(arguments: argparse.Namespace) -> None:
    """Balanced accuracy after so many epochs of 15 steps, and the seconds of training of all of them.

    The epochs are those that every run keeps: a best checkpoint may lie between two milestones.
    """
    rows = _chosen(arguments)
    found = {
        name: [_clar_milestones(name, row, seed, arguments) for seed in arguments.seeds] for name, row in rows.items()
    }
    kept = [{line["epoch"] for line in lines} for each in found.values() for lines in each]
    epochs = sorted(set.intersection(*kept))
    heads = ("encoder", "labels", "training", *(f"epoch {epoch}" for epoch in epochs), "seconds of training")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}", flush=True)
    for name, row in rows.items():
        by_epoch = [{line["epoch"]: line["balanced_accuracy"] for line in lines} for lines in found[name]]
        cells = [cell((each[epoch] for each in by_epoch), 100, 1) for epoch in epochs]
        seconds = cell(lines[-1]["seconds"] for lines in found[name])
        print(f"{_clar_beginning(row)} | {' | '.join(cells)} | {seconds} |", flush=True)


def _chosen(arguments: argparse.Namespace) -> dict[str, ClarRow]:
    rows = _clar_rows(arguments.encoders)
    return {name: rows[name] for name in arguments.rows or rows}


def _clar_beginning(row: ClarRow) -> str:
    return f"| {ENCODERS[row.encoder][0]} | {SHARES[row.split]} | {row.title}"


def _clar_figures(name: str, row: ClarRow, seed: int, arguments: argparse.Namespace) -> dict[str, float]:
    """The balanced accuracies of a run by classifier; for one without labels, of the probes with those of the split."""
    run = row.run(arguments.into, name, seed)
    results = row.trained(run, seed, arguments)
    if not row.learns:
        probes = (f"evaluation.probes=[{', '.join(FROZEN)}]", "evaluation.shares=[1.0]", row.labels(seed))
        text = _evaluated(run, "last", "result.json", row.split, probes, here=arguments.here)
        results = json.loads(text)
    return {each["head"]: each["balanced_accuracy"] for each in results}


def _clar_milestones(name: str, row: ClarRow, seed: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The lines that `rayssl evaluate RUN --checkpoint every` writes, by epoch."""
    run = row.run(arguments.into, name, seed)
    row.trained(run, seed, arguments)
    linear = ("evaluation.probes=[linear]", "evaluation.shares=[1.0]", row.labels(seed))
    probes = ("evaluation.probes=[]",) if row.learns else linear
    text = _evaluated(run, "every", "over_time.jsonl", row.split, probes, here=arguments.here)
    return [json.loads(line) for line in text.splitlines()]


def _evaluated(run: str, which: str, file: str, split: str, overrides: Sequence[str], *, here: bool) -> str:
    """What an evaluation writes into ``file`` with these overrides, kept for each split: another one overwrites it."""
    kept = storage.join(run, "evaluation", f"{split}_{file}")
    if not storage.exists(kept):
        say, how = str(Path(sys.executable).with_name("rayssl")), ["--local"] if here else []
        env = {**os.environ, "OMP_NUM_THREADS": "1"} if here else None
        subprocess.run([say, "evaluate", run, "--checkpoint", which, *overrides, *how], check=True, env=env)
        storage.write_text(kept, storage.read_text(storage.join(run, "evaluation", file)))
    return storage.read_text(kept)


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
    tables = {"imbalance": imbalance, "clar": clar, "clar_time": clar_time, "augmentations": augmentations}
    parser.add_argument("table", choices=tables)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--repeats", type=int, nargs="+", default=[0], help="of imbalance: trainings of a draw, by number"
    )
    parser.add_argument("--splits", nargs="+", default=["same", "uniform", "reversed"])
    parser.add_argument("--corpus", default="words", choices=["words", "synthetic_words"])
    parser.add_argument(
        "--encoders", nargs="+", default=list(ENCODERS), choices=list(ENCODERS), help="of clar's tables"
    )
    rows = f"of imbalance: {', '.join(IMBALANCE)}; of clar: {', '.join(_clar_rows())}"
    parser.add_argument("--rows", nargs="+", help=rows)
    parser.add_argument("--into", default="runs/few_labels")
    more = "for each run of clar's tables, for example training.epochs=80; give another --into too"
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help=more)
    parser.add_argument("--here", action="store_true")
    arguments = parser.parse_args()
    tables[arguments.table](arguments)


if __name__ == "__main__":
    main()
