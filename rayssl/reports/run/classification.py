"""The section of a report about classification: cards, the table of results, and pictures with captions."""

from __future__ import annotations

from typing import Any

from rayssl.reports.content import Block, Column, Figure, Grid, Picture, Row, Section, Table, text
from rayssl.reports.run.classes import (
    accuracy_over_time,
    class_bars,
    confusion_picture,
    efficiency_curve,
    train_counts,
)
from rayssl.reports.run.pseudo_labels import bias_picture, pseudo_curves, pseudo_map, sorted_classes, source_curves
from rayssl.reports.run.reading import HEADS, Record, Run, is_number, is_staging
from rayssl.reports.run.unevaluated import not_evaluated

_CAPTIONS = {
    "classes": "Every class of the test set; classes with the most labelled training rows (grey, logarithmic) are on "
    "the left. Recall is the share of a class's rows that were found. Precision is the share of its predictions that "
    "are right. A model that follows the imbalance has high recall and low precision on the left, and the opposite on "
    "the right. A cross means that there is no value: the recall of a class without test rows, or the precision of a "
    "class that has no test rows and is never predicted. Dotted lines separate the head, middle and tail third.",
    "confusion": "Each row is a true class and sums to 100 %. A stronger colour is a larger share that was predicted "
    "as the column's class (the colour follows the square root). The blue diagonal should be strong and everything "
    "else empty. A column with much vermilion is a class that takes the rows of others. Classes are in the order of "
    "their labelled training rows: vermilion in the lower left means that rare classes are taken for frequent ones.",
    "efficiency": "Balanced accuracy with only a share of the training labels, with 95 % intervals. A good "
    "representation is already high on the left. Where curves meet on the right, more labels make up the difference.",
    "over_time": "Probes during training, over its wall time. A method that converges quickly rises steeply on the "
    "left. If balanced accuracy is below accuracy, rare classes are recognised less well than frequent ones.",
    "pseudo": "Pseudo-labels of the unlabelled rows in each epoch. Thick lines are means over the third of classes "
    "with many, medium and few labels; faint lines are single classes. Precision: of the rows that got the class as "
    "pseudo-label, the share that belongs to it. Recall: of the rows of a class, the share that got it. Above the "
    "threshold: of the rows that got the class, the share that is confident enough for training. If few labels are far "
    "below many, the pseudo-labels are biased.",
    "sources": "The recall of the labels in use, and the recall that the linear classifier alone, or the similarity to "
    "prototypes alone, would have. Blending helps a third of classes if prototypes are above linear there. If they are "
    "below, change method.blend_temperature, align and queue, or use fixmatch.",
    "pseudo_map": "The same by class, with the most labelled class on top and epochs from left to right. Blank is 0, "
    "full colour is 100 %, and the number on the right is the last epoch's. Grey: no row got this class, so it has no "
    "precision. More than 60 classes are pooled with their neighbours and numbered by their place.",
    "bias": "How often each class is given as pseudo-label, and how often it occurs (grey bars). Classes with the most "
    "labels are on the left. Below is the ratio of the two: at 1 the pseudo-labels are unbiased. Above 1 a class is "
    "given too often, below 1 too rarely; at the lowest edge (1/32 or less) almost never. Later epochs should be "
    "closer to 1.",
}
_BARE = (
    "How often each class is given as pseudo-label. Classes with the most labels are on the left. The truth is not "
    "known."
)


def is_classification(run: Run) -> bool:
    """Whether the run has classification results or logged figures of classes, or is evaluated without trials.

    For a run that stages nights, only classification results count: it also logs figures, those of its stages.
    """
    settings = (run.config or {}).get("evaluation")
    if run.classified or is_staging(run):
        return bool(run.classified)
    without_trials = isinstance(settings, dict) and not settings.get("trials")
    logged = any(record.get("kind") in ("classes", "probe") for record in run.metrics)
    return logged or without_trials


def class_pictures(run: Run) -> dict[str, Picture]:
    """The pictures of classification for which the run's folder has data, by name."""
    main: Record = run.classified[0] if run.classified else {}
    drawn: dict[str, Picture | None] = {"classes": class_bars(main), "confusion": confusion_picture(main)}
    drawn |= {"efficiency": efficiency_curve(run.classified), "over_time": accuracy_over_time(run)}
    if is_staging(run) and not run.classified:
        drawn = {}
    pseudo = run.pseudo_labels()
    if pseudo is not None:
        pseudo = sorted_classes(pseudo, train_counts(main))
        drawn |= {"pseudo": pseudo_curves(pseudo), "sources": source_curves(pseudo)}
        drawn |= {"pseudo_map": pseudo_map(pseudo), "bias": bias_picture(pseudo)}
    return {name: picture for name, picture in drawn.items() if picture}


def cards(run: Run) -> list[tuple[str, str]]:
    """The value and text of each main figure, from the first result."""
    if not run.classified:
        return []
    result = run.classified[0]
    found = []
    if is_number(result["balanced_accuracy"]):
        bounds = _interval(result)
        over = f", 95 % interval {bounds} %" if bounds else ""
        found.append((f"{_percent(result, 'balanced_accuracy')} %", f"balanced accuracy ({_head(result)}){over}"))
    if is_number(result.get("geometric_mean")):
        found.append((f"{_percent(result, 'geometric_mean')} %", "geometric mean of the recalls of all classes"))
    if is_number(result.get("macro_f1")):
        found.append((f"{_percent(result, 'macro_f1')} %", "macro F1"))
    return found


def sections(run: Run, drawn: dict[str, Picture]) -> list[Section]:
    """The sections about classification and about pseudo-labels; empty for a run that has neither."""
    pseudo = Section("Pseudo-labels", _figures(("pseudo", "sources", "pseudo_map", "bias"), drawn))
    if not is_classification(run):
        return [pseudo]
    blocks: list[Block] = []
    if run.classified:
        blocks.append(_results_table(run.classified))
        if len(run.classified) > 1 and {"classes", "confusion"} & drawn.keys():
            blocks.append(text(f"The next pictures show the first row: {_head(run.classified[0])}."))
    elif not run.results:
        blocks.append(not_evaluated(run))
    blocks += _figures(("classes", "confusion"), drawn)
    pair = _figures(("efficiency", "over_time"), drawn)
    blocks += [Grid(pair)] if pair else []
    return [Section("Classification", blocks), pseudo]


def _figures(names: tuple[str, ...], drawn: dict[str, Picture]) -> list[Figure]:
    return [
        Figure(drawn[name], _CAPTIONS[name] if name != "bias" or "Given / true" in drawn[name].wide else _BARE)
        for name in names
        if name in drawn
    ]


def _results_table(results: list[Record]) -> Table:
    """The table of results, without columns that have no information."""
    thirds = any(is_number(result.get(name)) for result in results for name in ("many", "medium", "few"))
    several = len({str(result.get("checkpoint")) for result in results}) > 1
    keys = ["geometric_mean", "macro_f1", "accuracy", *(("many", "medium", "few") if thirds else ())]
    rows = []
    for result in results:
        share: Any = result.get("share")
        texts = [HEADS.get(str(result.get("head")), str(result.get("head") or "-"))]
        texts += [str(result.get("checkpoint") or "-")] if several else []
        numbers = [
            f"{100 * share:g} %" if is_number(share) else "-",
            _percent(result, "balanced_accuracy"),
            _interval(result) or "-",
            *(_percent(result, key) for key in keys),
            f"{int(result['n']):,}" if is_number(result.get("n")) else "-",
        ]
        rows.append(Row([*texts, *numbers]))
    heads = ["Labels used", "Balanced accuracy", "95 % interval", "Geometric mean", "Macro F1", "Accuracy"]
    heads += [*(("Many", "Medium", "Few") if thirds else ()), "Test rows"]
    columns = [Column("Classifier"), *([Column("Checkpoint")] if several else [])]
    columns += [Column(head, "number") for head in heads]
    notes = ["All figures in percent."]
    if thirds:
        notes.append("Many, medium, few: mean recall of the third of classes with the most, medium, and fewest labels.")
    if not several and results[0].get("checkpoint"):
        notes.append(f"Checkpoint {results[0]['checkpoint']}.")
    return Table("Results of classification", columns, rows, notes)


def _head(result: Record) -> str:
    """The name of the classifier, and its share of the labels."""
    name = str(result.get("head") or "unknown classifier")
    share: Any = result.get("share")
    text = HEADS.get(name, name).lower() if name != "model" else "the model's own classifier"
    return f"{text}, {100 * share:g} % of the labels" if is_number(share) else text


def _percent(result: Record, key: str) -> str:
    return f"{100 * result[key]:.1f}" if is_number(result.get(key)) else "-"


def _interval(result: Record) -> str:
    low, high = (_percent(result, f"balanced_accuracy_{end}") for end in ("low", "high"))
    return "" if "-" in (low, high) else f"{low} to {high}"
