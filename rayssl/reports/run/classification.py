"""The part of a report that is about classification: cards, the table of results, pictures and how to read them."""

from __future__ import annotations

import shlex
from html import escape
from typing import Any

from rayssl.reports.drawing import WIDTH, framed
from rayssl.reports.run.classes import (
    accuracy_over_time,
    class_bars,
    confusion_picture,
    efficiency_curve,
    train_counts,
)
from rayssl.reports.run.pseudo_labels import bias_picture, pseudo_curves, pseudo_map, sorted_classes, source_curves
from rayssl.reports.run.reading import HEADS, Record, Run, is_number

_CAPTIONS = {
    "classes": "Every class of the test set, those with most labelled training rows (grey, logarithmic) on the left. "
    "Recall is the share of a class's rows that were found, precision the share of its predictions that are right. "
    "A model that follows the imbalance has high recall and low precision on the left and the reverse on the right. "
    "A cross marks what has no value: the recall of a class without test rows, or the precision of one that was "
    "neither there nor predicted. Dotted lines part the head, middle and tail third.",
    "confusion": "Each row is a true class and sums to 100 %: the deeper the colour (it goes with the root), the "
    "larger the share that was predicted as the column's class. The blue diagonal should be deep and everything else "
    "empty. Vermilion in a column is a class that takes the rows of others; classes are in the order of their labelled "
    "training rows, so vermilion in the lower left is rare classes taken for frequent ones.",
    "efficiency": "Balanced accuracy when only a share of the training labels may be used, with 95 % intervals. A good "
    "representation is already high on the left; where curves meet on the right, labels make up for it.",
    "over_time": "Probes made during training, over its wall time. A method that converges quickly rises steeply at "
    "the left. Balanced accuracy below accuracy means that rare classes fare worse than frequent ones.",
    "pseudo": "Pseudo-labels of the unlabelled rows in each epoch; thick lines are means over the third of classes "
    "with many, medium and few labels, faint lines single classes. Precision: of the rows given a class, the share "
    "that are of it. Recall: of the rows of a class, the share that were given it. Above the threshold: of the rows "
    "given a class, the share confident enough to be trained on. Few labels far below many is the bias to be mended.",
    "sources": "The same recall had the linear classifier, or the similarity to prototypes, been believed alone, and "
    "of the labels in use. Blending pays for the third of classes where prototypes lie above linear; where they lie "
    "below, method.blend_temperature, align and queue are to be changed, or fixmatch is the better method here.",
    "pseudo_map": "The same by class, most labelled on top, epochs from left to right: blank is 0, full colour 100 %, "
    "the number beside is the last epoch's. Grey: no row was given this class, so that there is no precision. More "
    "than 60 classes are pooled with their neighbours and numbered by their place.",
    "bias": "How often each class is given as pseudo-label, against how often it is there (grey bars), classes with "
    "most labels on the left. Below, the ratio of the two: on the line at 1 the pseudo-labels are unbiased, above it a "
    "class is given too often, below it too rarely, at the lowest edge (1/32 or less) hardly ever. Later epochs should "
    "be nearer to 1.",
}
_BARE = "How often each class is given as pseudo-label, classes with most labels on the left; the truth is not known."


def is_classification(run: Run) -> bool:
    """Whether the run has figures of classes, logged ones of them, or is evaluated without trials."""
    settings = (run.config or {}).get("evaluation")
    without_trials = isinstance(settings, dict) and not settings.get("trials")
    logged = any(record.get("kind") in ("classes", "probe") for record in run.metrics)
    return bool(run.classified) or logged or without_trials


def class_pictures(run: Run) -> dict[str, str]:
    """Every picture of classification that the run's folder has the data for, by name."""
    main: Record = run.classified[0] if run.classified else {}
    drawn: dict[str, str | None] = {"classes": class_bars(main), "confusion": confusion_picture(main)}
    pair = {"efficiency": efficiency_curve(run.classified), "over_time": accuracy_over_time(run)}
    if all(pair.values()):  # then they stand side by side
        width = WIDTH / 2
        pair = {"efficiency": efficiency_curve(run.classified, width), "over_time": accuracy_over_time(run, width)}
    drawn |= pair
    pseudo = run.pseudo_labels()
    if pseudo is not None:
        pseudo = sorted_classes(pseudo, train_counts(main))
        drawn |= {"pseudo": pseudo_curves(pseudo), "sources": source_curves(pseudo)}
        drawn |= {"pseudo_map": pseudo_map(pseudo), "bias": bias_picture(pseudo)}
    return {name: picture for name, picture in drawn.items() if picture}


def cards(run: Run) -> list[tuple[str, str]]:
    """Value and text of the figures that the run is judged by; those of the first result."""
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


def section(run: Run, drawn: dict[str, str]) -> str:
    """The section as HTML; empty for a run that is about something else."""
    if not is_classification(run):
        return ""
    parts = ["<h2>Classification</h2>"]
    if run.classified:
        parts.append(_results_table(run.classified))
        if len(run.classified) > 1 and {"classes", "confusion"} & drawn.keys():
            parts.append(f"<p>The next pictures show the first row: {escape(_head(run.classified[0]))}.</p>")
    elif not run.results:
        command = escape(f"rayssl evaluate {shlex.quote(run.uri)}")
        parts.append(f"<p>This run has not been evaluated yet; <code>{command}</code> does it.</p>")
    parts += [_figure(name, drawn) for name in ("classes", "confusion") if name in drawn]
    pair = [_figure(name, drawn) for name in ("efficiency", "over_time") if name in drawn]
    parts.append(f'<div class="pair">{"".join(pair)}</div>' if len(pair) == 2 else "".join(pair))
    labels = [_figure(name, drawn) for name in ("pseudo", "sources", "pseudo_map", "bias") if name in drawn]
    if labels:
        parts += ["<h2>Pseudo-labels</h2>", *labels]
    return "\n".join(part for part in parts if part)


def _figure(name: str, drawn: dict[str, str]) -> str:
    known = name != "bias" or "Given / true" in drawn[name]
    return framed(drawn[name], _CAPTIONS[name] if known else _BARE)


def _results_table(results: list[Record]) -> str:
    """The table, without columns that tell nothing."""
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
        cells = "".join(f"<td>{escape(text)}</td>" for text in texts)
        cells += "".join(f'<td class="number">{escape(number)}</td>' for number in numbers)
        rows.append(f"<tr>{cells}</tr>")
    heads = ["Labels<br>used", "Balanced<br>accuracy", "95 %<br>interval", "Geometric<br>mean", "Macro<br>F1"]
    heads += ["Accuracy", *(("Many", "Medium", "Few") if thirds else ()), "Test<br>rows"]
    head = "<th>Classifier</th>" + ("<th>Checkpoint</th>" if several else "")
    head += "".join(f'<th class="number">{h}</th>' for h in heads)
    # figures that break within a line cannot be compared; a narrow page scrolls
    opening = '<div class="scroll"><table style="white-space: nowrap">'
    notes = ["All figures in percent."]
    if thirds:
        notes.append("Many, medium and few: mean recall of the third of classes with most, middling and fewest labels.")
    if not several and results[0].get("checkpoint"):
        notes.append(f"Checkpoint {results[0]['checkpoint']}.")
    note = f'<p class="soft">{escape(" ".join(notes))}</p>'
    return f"{opening}<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>\n{note}"


def _head(result: Record) -> str:
    """Whose predictions, and from which share of the labels."""
    name = str(result.get("head") or "unknown classifier")
    share: Any = result.get("share")
    text = HEADS.get(name, name).lower() if name != "model" else "the model's own classifier"
    return f"{text}, {100 * share:g} % of the labels" if is_number(share) else text


def _percent(result: Record, key: str) -> str:
    return f"{100 * result[key]:.1f}" if is_number(result.get(key)) else "-"


def _interval(result: Record) -> str:
    low, high = (_percent(result, f"balanced_accuracy_{end}") for end in ("low", "high"))
    return "" if "-" in (low, high) else f"{low} to {high}"
