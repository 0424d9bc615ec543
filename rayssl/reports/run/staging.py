"""The section of a report about sleep staging: cards, tables of figures, nights, and pictures with captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rayssl.data.sources.nights import STAGES
from rayssl.reports.content import Block, Column, Details, Figure, Heading, Picture, Row, Section, Table, text
from rayssl.reports.nights import night_picture
from rayssl.reports.run.classes import accuracy_over_time, confusion_picture
from rayssl.reports.run.reading import Record, Run, is_number, is_staging, night_rows, shown_nights
from rayssl.reports.run.stages import VARIABLES, kappa_picture, variables_picture
from rayssl.reports.run.unevaluated import not_evaluated

_LISTED = 300  # the most nights in the table
_OVER_TIME = {"macro_f1": "Macro F1", "kappa": "Cohen's kappa", "accuracy": "Accuracy"}
_CAPTIONS = {
    "confusion": "Each row is a scored stage and sums to 100 %. A stronger colour is a larger share that was predicted "
    "as the column's stage (the colour follows the square root). The blue diagonal should be strong and everything "
    "else empty.",
    "kappa": "Kappa is the agreement beyond that of chance: 1 is perfect, and a classifier that always says one stage "
    "has 0. Two people who score the same night reach about 0.76. A few bad nights on the left often have a cause of "
    "their own, such as a bad recording.",
    "night": "From the top: the stages as scored by people, the epochs in which the prediction differs, the predicted "
    "stages, and the model's probabilities. Bands that change slowly and reach 100 % show a model that is sure.",
    "variables": "Each point is a night. On the grey line the model finds the same as the people who scored. Points "
    "above it: the model says more. One wrong epoch at the beginning of a night is enough to make a latency 0.",
    "over_time": "Figures of the evaluated checkpoints over the time of training.",
}


def staging_pictures(run: Run) -> dict[str, Picture]:
    """The pictures of staging for which the run's folder has data, by name; nights are ``night 1`` and so on."""
    if not is_staging(run):
        return {}
    result: Record = run.staged[0] if run.staged else {}
    drawn: dict[str, Picture | None] = {
        "confusion": confusion_picture(_in_order(result), "Confusion of stages"),
        "kappa": kappa_picture(result),
        "variables": variables_picture(result),
        "over_time": accuracy_over_time(run, figures=_OVER_TIME, label="Macro F1, kappa or accuracy"),
    }
    rows = {str(row["night"]): row for row in night_rows(result)}
    what = shown_nights(result)
    given: Any = result.get("names")
    for number, night in enumerate(run.nights, 1):
        classes = night.probabilities.shape[1]
        names = [str(name) for name in given] if isinstance(given, list) and len(given) == classes else list(STAGES)
        if len(night.index) and len(names) == classes:
            drawn[f"night {number}"] = night_picture(
                night, names, _night_title(night.name, what.get(night.name, "Night"), rows.get(night.name, {}))
            )
    return {name: picture for name, picture in drawn.items() if picture}


def cards(run: Run) -> list[tuple[str, str]]:
    """The value and text of each main figure, from the first result."""
    if not run.staged:
        return []
    result = run.staged[0]
    majority = result["majority"] if isinstance(result.get("majority"), dict) else {}
    found = []
    f1 = _percent(result, "macro_f1")
    over = f", 95 % interval {bounds} %" if (bounds := _interval(result, "macro_f1", 100, 1)) else ""
    base = f"; majority baseline {_percent(majority, 'macro_f1')} %" if is_number(majority.get("macro_f1")) else ""
    found.append((f"{f1} %" if f1 != "-" else "invalid", f"macro F1{over}{base}"))
    if is_number(result.get("kappa")):
        bounds = _interval(result, "kappa", 1, 3)
        found.append((f"{result['kappa']:.3f}", "Cohen's kappa" + (f", 95 % interval {bounds}" if bounds else "")))
    if is_number(result.get("accuracy")):
        base = f"; majority baseline {_percent(majority, 'accuracy')} %" if is_number(majority.get("accuracy")) else ""
        found.append((f"{_percent(result, 'accuracy')} %", f"accuracy{base}"))
    if is_number(result.get("n")):
        found.append((f"{result['n']:,}", f"epochs of {_count(result, 'nights')} nights, "
                      f"{_count(result, 'subjects')} subjects"))  # fmt: skip
    return found


def sections(run: Run, drawn: dict[str, Picture]) -> list[Section]:
    """The sections about staging; empty for a run that does not stage nights."""
    if not is_staging(run):
        return []
    title = "Sleep staging"
    if not run.staged:
        asked = [not_evaluated(run)] if not run.results else []
        return [Section(title, [*asked, *_framed("over_time", drawn)])]
    result = run.staged[0]
    figures: list[Block] = []
    if result.get("invalid"):
        figures.append(text(f"Macro F1 is invalid: {result['invalid']}.", "problem"))
    figures += [_figures_table(result), *_stages_table(result), *_framed("confusion", drawn)]
    pictures = [drawn[name] for name in drawn if name.startswith("night ")]
    nights: list[Block] = [*_framed("kappa", drawn)]
    nights += [Figure(each, _CAPTIONS["night"] if each is pictures[0] else "As above.") for each in pictures]
    if not pictures:
        nights.append(text("There is no night to draw (evaluation/stages.parquet)."))
    nights += _nights_table(result)
    variables = [*_framed("variables", drawn), *_variables_table(result), *_framed("over_time", drawn)]
    return [Section(title, figures), Section("Nights", nights), Section("Sleep variables", variables)]


def _figures_table(result: Record) -> Table:
    """The figures with four, three and two stages, each with the majority baseline below."""
    rows = []
    for source in (result, result.get("three_class"), result.get("two_class")):
        if not isinstance(source, dict):
            continue
        names = ", ".join(map(str, source["names"])) if isinstance(source.get("names"), list) else "-"
        for who, each in (("Model", source), ("Majority", source.get("majority"))):
            if isinstance(each, dict):
                rows.append(
                    [names, who, _percent(each, "macro_f1"),
                     _interval(each, "macro_f1", 100, 1) or "-", _decimal(each, "kappa"),
                     _interval(each, "kappa", 1, 3) or "-", _percent(each, "accuracy"),
                     _percent(each, "balanced_accuracy")]
                )  # fmt: skip
    heads = ["Stages", "Classifier", "Macro F1 %", "95 % interval", "Kappa", "95 % interval", "Accuracy %",
             "Balanced accuracy %"]  # fmt: skip
    notes = []
    if result.get("no_interval"):
        notes.append(f"No interval: {result['no_interval']}.")
    else:
        notes.append("Intervals resample subjects.")
    absent = result.get("interval_absent")
    if is_number(absent) and absent:
        notes.append(f"{100 * absent:.0f} % of the resamples lack a stage, and do not count for macro F1.")
    of = {"training": "the training corpus", "test": "the test nights themselves"}.get(str(result.get("majority_of")))
    notes.append(f"Majority: always says the most frequent stage of {of}." if of else "")
    unscored, blind = result.get("unscored"), result.get("unscored_nights")
    if is_number(unscored) and unscored:
        more = f" ({blind:,} nights have no other)" if is_number(blind) and blind else ""
        notes.append(f"{unscored:,} unscored epochs are left out{more}.")
    notes.append(f"Checkpoint {result['checkpoint']}." if result.get("checkpoint") else "")
    return _table("Figures with four, three and two stages", heads, rows, notes, texts=2)


def _stages_table(result: Record) -> list[Block]:
    found: Any = result.get("per_class")
    usable = isinstance(found, list) and all(isinstance(row, dict) for row in found)
    if not usable or not found:
        return []
    trained = any(is_number(row.get("train_count")) for row in found)
    total = sum(row["support"] for row in found if is_number(row.get("support")))
    rows = []
    for row in found:
        share = f"{100 * row['support'] / total:.1f}" if is_number(row.get("support")) and total else "-"
        rows.append(
            [str(row.get("name")), *([_count(row, "train_count")] if trained else []), _count(row, "support"), share,
             _count(row, "predicted"), _percent(row, "recall"), _percent(row, "precision"), _percent(row, "f1")]
        )  # fmt: skip
    heads = ["Stage", *(["Training epochs"] if trained else []), "Scored epochs", "Share %", "Predicted epochs"]
    return [Heading("By stage"), _table("Figures by stage", [*heads, "Recall %", "Precision %", "F1 %"], rows)]


def _variables_table(result: Record) -> list[Block]:
    found: Any = result.get("variables")
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        return []
    rows = []
    for row in found:
        name = str(row.get("name"))
        share = name == "efficiency"
        numbers = [
            (f"{100 * row[key]:.1f} %" if share else f"{row[key]:.1f}") if is_number(row.get(key)) else "-"
            for key in ("scored_mean", "predicted_mean", "bias", "mae")
        ]
        label = VARIABLES[name][0].removesuffix(" (h)").removesuffix(" (min)") if name in VARIABLES else name
        rows.append([label, _count(row, "nights"), *numbers, _count(row, "only_scored"), _count(row, "only_predicted")])
    heads = ["Variable (minutes)", "Nights", "Scored, mean", "Predicted, mean", "Bias", "Mean absolute error",
             "Only scored", "Only predicted"]  # fmt: skip
    notes = [
        "Bias: the mean of predicted - scored. Only scored, only predicted: nights in which only one of the two "
        "hypnograms has the variable; a night without REM has no REM latency. Wake after onset counts until the end "
        "of the recording. Both hypnograms are taken over the scored epochs."
    ]
    return [_table("Sleep variables", heads, rows, notes)]


def _nights_table(result: Record) -> list[Block]:
    rows = []
    every = sorted(night_rows(result), key=lambda row: -row["kappa"] if is_number(row.get("kappa")) else 2.0)
    for row in every[:_LISTED]:
        sides = [side if isinstance(side := row.get(key), dict) else {} for key in ("scored", "predicted")]
        rows.append(
            [str(row["night"]), str(row.get("subject")), _count(row, "n"), _decimal(row, "kappa"),
             _percent(row, "accuracy"), _percent(row, "macro_f1"),
             *(_both(sides, name, 100 if name == "efficiency" else 1) for name in VARIABLES)]
        )  # fmt: skip
    if not rows:
        return []
    heads = ["Night", "Subject", "Epochs", "Kappa", "Accuracy %", "Macro F1 %", "Sleep min", "Efficiency %",
             "Latency min", "Wake after onset min", "REM latency min"]  # fmt: skip
    left = f" The first {_LISTED} of {len(every):,}." if len(every) > _LISTED else ""
    notes = [f"Scored / predicted. Macro F1 needs a night that has every stage.{left}"]
    return [Details(f"{len(every):,} nights", [_table("Nights by falling kappa", heads, rows, notes, texts=2)])]


def _night_title(name: str, what: str, row: Record) -> str:
    said = [f"kappa {row['kappa']:.3f}"] if is_number(row.get("kappa")) else []
    said += [f"accuracy {_percent(row, 'accuracy')} %"] if is_number(row.get("accuracy")) else []
    return f"{what}: {name if len(name) <= 60 else name[:59] + '…'}" + (f" ({', '.join(said)})" if said else "")


def _in_order(result: Record) -> Record:
    """The result without training counts: the confusion then has its stages in their order, not by count."""
    rows: Any = result.get("per_class")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return result
    return {**result, "per_class": [{**row, "train_count": None} for row in rows]}


def _framed(name: str, drawn: dict[str, Picture]) -> list[Figure]:
    return [Figure(drawn[name], _CAPTIONS[name])] if name in drawn else []


def _table(
    caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = (), texts: int = 1
) -> Table:
    """A table whose first ``texts`` columns are texts and whose others are numbers."""
    columns = [Column(head, "text" if place < texts else "number") for place, head in enumerate(heads)]
    return Table(caption, columns, [Row(row) for row in rows], [note for note in notes if note])


def _both(sides: list[Record], key: str, scale: float) -> str:
    return " / ".join(f"{scale * side[key]:.0f}" if is_number(side.get(key)) else "-" for side in sides)


def _percent(result: Record, key: str) -> str:
    return f"{100 * result[key]:.1f}" if is_number(result.get(key)) else "-"


def _decimal(result: Record, key: str) -> str:
    return f"{result[key]:.3f}" if is_number(result.get(key)) else "-"


def _count(result: Record, key: str) -> str:
    return f"{int(result[key]):,}" if is_number(result.get(key)) else "-"


def _interval(result: Record, key: str, scale: float, decimals: int) -> str:
    bounds = [result.get(f"{key}_{end}") for end in ("low", "high")]
    if not all(is_number(bound) for bound in bounds):
        return ""
    return " to ".join(f"{scale * float(bound):.{decimals}f}" for bound in bounds if bound is not None)
