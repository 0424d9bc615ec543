"""Compares several runs on one self-contained HTML page, and in a few lines for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from rayssl import storage
from rayssl.reports.comparison import markup, pictures, reading
from rayssl.reports.comparison.reading import ABSENT, CLASSIFICATION, STAGING, VERIFICATION, Comparison, Group
from rayssl.reports.document import document
from rayssl.reports.drawing import framed
from rayssl.reports.run.reading import Record, Run, is_number

_WIDE = 8  # the most groups whose settings are in columns; with more groups and few keys the table is transposed
_LONG = 40  # the table of differing keys is closed at first if it has more keys
_EXTRA = {"n": "Test rows", "nights": "Nights", "norm": "Score norm.", "checkpoint": "Checkpoint", "trials": "Trials"}
_UNPAIRED = "* No common seed: the difference of the means."
_TERMINAL = 44  # the most characters of a name
_CAPTIONS = {
    "learning_curves": "Metrics that several runs have, as running means. Left: over steps. Right: over the time since "
    "the run's start, without pauses between restarts. Curves with the same colour and line differ only in the seed. "
    "Losses of different methods, temperatures or batches cannot be compared. Same speaker and same recording are "
    "shares of sampled positives; useful positives are of the same speaker in another recording.",
    "verification": "Points are final figures. Bars are the 95 % interval of the EER, resampled over the test set's "
    "speakers; it does not include the effect of the seed. A dotted line is the mean of runs that differ only in the "
    "seed. Further left is better.",
    "staging": "Points are final figures. Bars are 95 % intervals, resampled over the test set's subjects; they do not "
    "include the effect of the seed. A dotted line is the mean of runs that differ only in the seed. Further "
    "right is better.",
    "classification": "Points are final figures. Bars are the 95 % interval of the balanced accuracy, resampled over "
    "the test set; it does not include the effect of the seed. A dotted line is the mean of runs that differ only in "
    "the seed. Further right is better.",
    "recall": "The share of each class's test rows that were found, in percent, as the mean over seeds. If the numbers "
    "of labelled training rows are known, the class with the most is on the left.",
}


def write_comparison(uris: Sequence[str], out: str) -> str:
    """Writes the page about the runs at ``uris`` to the file or URI ``out``. Returns a summary for the terminal.

    Raises `StorageError` for a folder that is not a run, or if the page cannot be written.
    """
    comparison = reading.read_comparison(uris)
    storage.write_text(out, render(comparison))
    return f"{summary(comparison)}\n{out}"


def render(comparison: Comparison) -> str:
    """The whole page as HTML text. All text that comes from the runs is escaped."""
    title = f"{len(comparison.runs)} runs compared"
    groups = len(comparison.groups)
    said = f"in {groups} groups; runs of a group differ only in the seed" if groups < len(comparison.runs) else ""
    sections = [
        f"<h1>{title}</h1>" + (f'<p class="soft">{said}</p>' if said else ""),
        _runs(comparison),
        _missing(comparison),
        _verification(comparison),
        _staging(comparison),
        _classification(comparison),
        _differences(comparison),
        _learning_curves(comparison),
    ]
    return document(f"{title} - rayssl report", sections)


def summary(comparison: Comparison) -> str:
    """The final figures, and what is missing, as lines of plain text."""
    lines = []
    for title, figures, of in _final_tables(comparison):
        groups = [group for group in comparison.groups if any(of(run) for run in group.runs)]
        rows = [["", *(text for text, _ in figures.values()), "seeds", "- first" if len(groups) > 1 else ""]]
        for group in groups:
            had = [run for run in group.runs if of(run)]
            cells = []
            for key, (_, scale) in figures.items():
                found = reading.spread(group, _value(of, key, scale))
                interval = _interval(of(had[0]), key, scale) if len(had) == 1 else ""
                cells.append("-" if found is None else found.text(_decimals(key)) + interval)
            lead, (_, scale) = next(iter(figures.items()))
            gap = reading.difference(group, groups[0], _value(of, lead, scale))
            said = "" if gap is None or group is groups[0] else gap.difference(_decimals(lead))
            rows.append([f"{group.number} {_cut(group.label)}", *cells, str(len(had)), said])
        lines += [title, *_aligned(rows)]
        if any(row[-1].endswith("*") for row in rows):
            lines.append(f"  {_UNPAIRED}")
    for text, command in reading.missing(comparison):
        lines.append(f"{text}: {command}" if command else text)
    return "\n".join(lines)


def _runs(comparison: Comparison) -> str:
    names = comparison.names()
    rows = []
    commits, versions = set(), set()
    for group in comparison.groups:
        for run in group.runs:
            known = reading.facts(run)
            commits.add(known["commit"])
            versions.add(str(sorted((run.origin.get("versions") or {"": ""}).items())))
            cells = [known["seed"], _commit(known["commit"]), known["world_size"], _progress(known)]
            cells += [known["step"], _duration(known["seconds"])]
            cells += [None if known["loss"] is None else f"{known['loss']:.3f}"]
            head = f'<td class="value">{markup.swatch(group)}{escape(names[run.uri])}</td>'
            rows.append([head, *(markup.number("-" if cell is None else str(cell)) for cell in cells)])
    heads = ["Run", "Seed", "Commit", "Ranks", "Epochs", "Steps", "Time", "Loss at the end"]
    notes = []
    if len(commits) > 1:
        notes.append(f"They come from {len(commits)} commits: the code differs too.")
    if any(str(commit).endswith("+changes") for commit in commits):
        notes.append("A commit with + had uncommitted changes.")
    if len(versions) > 1:
        notes.append("Versions of packages differ between them (origin.json).")
    table = markup.table([markup.text(heads[0]), *map(markup.number, heads[1:])], rows)
    return f"<h2>Runs</h2>\n{table}{markup.note(notes)}"


def _missing(comparison: Comparison) -> str:
    items = [
        f"<li>{escape(text)}" + (f": <code>{escape(command)}</code>" if command else "") + "</li>"
        for text, command in reading.missing(comparison)
    ]
    return f'<div class="problem"><p>Missing:</p><ul>{"".join(items)}</ul></div>' if items else ""


def _verification(comparison: Comparison) -> str:
    if not any(run.verified for run in comparison.runs):
        return ""
    parts = ["<h2>Speaker verification</h2>"]
    trials = {
        (result.get("trials"), result.get("targets"), str(_evaluated_on(run)))
        for run in comparison.runs
        if (result := reading.verification(run))
    }
    if len(trials) > 1:
        parts.append('<p class="problem">Not all runs were scored on the same trials.</p>')
    parts += _final(comparison, VERIFICATION, reading.verification, ("checkpoint", "norm", "trials"))
    picture = pictures.verification_picture(comparison)
    return "\n".join([*parts, framed(picture, _CAPTIONS["verification"]) if picture else ""])


def _staging(comparison: Comparison) -> str:
    results = [result for run in comparison.runs if (result := reading.staging(run))]
    if not results:
        return ""
    parts = ["<h2>Sleep staging</h2>"]
    if len({(result.get("n"), result.get("nights")) for result in results}) > 1:
        parts.append('<p class="problem">Not all runs were tested on the same nights.</p>')
    parts += _final(comparison, STAGING, reading.staging, ("checkpoint", "n", "nights"))
    said = [result["majority"] for result in results if isinstance(result.get("majority"), dict)]
    known = {tuple(each[key] for key in STAGING if is_number(each.get(key))) for each in said}
    values = zip(STAGING.items(), known.pop() if len(known) == 1 else (), strict=False)
    text = ", ".join(f"{name} {scale * value:.{_decimals(key)}f}" for (key, (name, scale)), value in values)
    parts.append(markup.note([f"Majority baseline: {text}."]) if text else "")
    picture = pictures.staging_picture(comparison)
    return "\n".join([*parts, framed(picture, _CAPTIONS["staging"]) if picture else ""])


def _classification(comparison: Comparison) -> str:
    every = reading.classifiers(comparison)
    if not every:
        return ""
    parts = ["<h2>Classification</h2>"]
    sizes = {result.get("n") for run in comparison.runs for result in run.classified}
    if len(sizes) > 1:
        parts.append('<p class="problem">Not all runs were tested on the same number of rows.</p>')
    chosen = reading.chosen_classifiers(comparison)
    for which in chosen:
        parts.append(f"<h3>{escape(reading.classifier_name(which))}</h3>")
        parts += _final(comparison, CLASSIFICATION, _of(which), ("checkpoint", "n"))
        drawn = {
            "classification": pictures.classification_picture(comparison, which),
            "recall": pictures.recall_picture(comparison, which),
        }
        parts += [framed(picture, _CAPTIONS[name]) for name, picture in drawn.items() if picture]
    if len(every) > len(chosen):
        parts.append(_every_classifier(comparison, every))
    return "\n".join(parts)


def _every_classifier(comparison: Comparison, every: list[tuple[str, float | None]]) -> str:
    """The balanced accuracy of all classifiers, with a row for each group."""
    heads = [markup.text("Group"), *(markup.number(reading.classifier_name(which)) for which in every)]
    rows = []
    for group in comparison.groups:
        found = [reading.spread(group, _value(_of(which), "balanced_accuracy", 100)) for which in every]
        if any(found):
            cells = [markup.number("-" if each is None else each.text(1)) for each in found]
            rows.append([f'<td class="value">{markup.swatch(group)}{escape(group.label)}</td>', *cells])
    title = "<p>Balanced accuracy in % of every classifier, mean ± standard deviation over seeds:</p>"
    return title + markup.table(heads, rows)


def _final(comparison: Comparison, figures: dict[str, Any], of: Any, extra: tuple[str, ...]) -> list[str]:
    """The table of runs, with differences from the first. If some group has several runs, a second table has them."""
    names, rows = comparison.names(), []
    groups = [group for group in comparison.groups if any(of(run) for run in group.runs)]
    single = 1 < len(groups) == sum(len(group.runs) for group in groups)
    lead, (title, scale_of_lead) = next(iter(figures.items()))
    found = {key: {_plain(of(run).get(key)) for run in comparison.runs if of(run)} for key in extra}
    extra = tuple(key for key in extra if len(found[key]) > 1)
    same = [f"{_EXTRA[key]}: {found[key].copy().pop()}." for key in found if key not in extra]
    for group in groups:
        for run in (run for run in group.runs if of(run)):
            result = of(run)
            cells = [_figure_cell(result, key, scale) for key, (_, scale) in figures.items()]
            if single:
                gap = reading.difference(group, groups[0], _value(of, lead, scale_of_lead))
                cells.append(
                    markup.number("" if gap is None or group is groups[0] else gap.difference(_decimals(lead)))
                )
            cells += [markup.number(_plain(result.get(key))) for key in extra]
            rows.append([f'<td class="value">{markup.swatch(group)}{escape(names[run.uri])}</td>', *cells])
    heads = [markup.text("Run"), *(markup.number(text) for text, _ in figures.values())]
    heads += [markup.number(f"{title.removesuffix(' %')} - first")] if single else []
    heads += [markup.number(_EXTRA[key]) for key in extra]
    tables = [markup.table(heads, rows), markup.note(same)]
    if single and any(" *<" in cell for row in rows for cell in row):
        tables.append(markup.note([_UNPAIRED]))
    if any(len(group.runs) > 1 for group in groups):
        tables.append(_group_table(groups, figures, of))
    return tables


def _group_table(groups: list[Group], figures: dict[str, Any], of: Any) -> str:
    heads = [markup.text("Group"), markup.number("Runs")]
    for text, _ in figures.values():
        heads += [markup.number(text), markup.number("- first")]
    rows, unpaired = [], False
    for group in groups:
        evaluated = sum(bool(of(run)) for run in group.runs)
        cells = [markup.number(str(evaluated))]
        for key, (_, scale) in figures.items():
            found = reading.spread(group, _value(of, key, scale))
            gap = None if group is groups[0] else reading.difference(group, groups[0], _value(of, key, scale))
            cells.append(markup.number("-" if found is None else found.text(_decimals(key))))
            unpaired = unpaired or (gap is not None and not gap.paired)
            cells.append(markup.number("" if gap is None else gap.difference(_decimals(key))))
        rows.append([f'<td class="value">{markup.swatch(group)}{escape(group.label)}</td>', *cells])
    notes = ["Mean ± standard deviation over seeds. Differences from the first group are over n pairs of equal seed."]
    if unpaired:
        notes.append(_UNPAIRED)
    return markup.table(heads, rows) + markup.note(notes)


def _differences(comparison: Comparison) -> str:
    found = reading.differences(comparison.groups)
    title = "<h2>Configuration: what differs</h2>"
    if not found:
        return f"{title}\n<p>Nothing but seeds.</p>" if len(comparison.runs) > 1 else ""
    said = '<p class="soft">Seeds and the runs\' folders are left out. - means that the key does not exist.</p>'
    turned = len(comparison.groups) > _WIDE and len(found) < len(comparison.groups)
    heads = [f'<th class="group">{markup.swatch(group)}{escape(group.label)}</th>' for group in comparison.groups]
    if turned:
        rows = [
            [
                head.replace('<th class="group"', "<td").replace("</th>", "</td>"),
                *(_setting(values[index]) for values in found.values()),
            ]
            for index, head in enumerate(heads)
        ]
        return f"{title}\n{said}{markup.table([markup.text('Group'), *(markup.text(key) for key in found)], rows)}"
    rows, section = [], ""
    for key, values in found.items():
        if key.partition(".")[0] != section:
            section = key.partition(".")[0]
            rows.append([f'<td class="section" colspan="{len(heads) + 1}">{escape(section)}</td>'])
        rows.append([f"<td>{escape(key)}</td>", *(_setting(value) for value in values)])
    table = markup.table([markup.text("Key"), *heads], rows)
    if len(found) > _LONG:
        table = f"<details><summary>{len(found)} keys differ</summary>{table}</details>"
    return f"{title}\n{said}{table}"


def _learning_curves(comparison: Comparison) -> str:
    picture = pictures.learning_curves(comparison)
    shown = framed(picture, _CAPTIONS["learning_curves"]) if picture else "<p>No two runs have a metric in common.</p>"
    return f"<h2>Training</h2>\n{shown}"


def _final_tables(comparison: Comparison) -> list[tuple[str, dict[str, Any], Callable[[Run], Record]]]:
    """The title, the figures and a function that finds a run's results, for verification and each chosen classifier."""
    tables: list[tuple[str, dict[str, Any], Callable[[Run], Record]]] = []
    if any(run.verified for run in comparison.runs):
        tables.append(("Speaker verification", VERIFICATION, reading.verification))
    if any(run.staged for run in comparison.runs):
        tables.append(("Sleep staging", STAGING, reading.staging))
    shown = {key: figure for key, figure in CLASSIFICATION.items() if key != "accuracy"}
    for which in reading.chosen_classifiers(comparison):
        tables.append((f"Classification: {reading.classifier_name(which)}", shown, _of(which)))
    return tables


def _of(which: tuple[str, float | None]) -> Callable[[Run], Record]:
    return lambda run: reading.classification(run, which)


def _value(of: Callable[[Run], Record], key: str, scale: float) -> Callable[[Run], float | None]:
    def value(run: Run) -> float | None:
        found: Any = of(run).get(key)
        return scale * found if is_number(found) else None

    return value


def _figure_cell(result: Record, key: str, scale: float) -> str:
    if not is_number(result.get(key)):
        return markup.number("-")
    return markup.number(f"{scale * result[key]:.{_decimals(key)}f}{_interval(result, key, scale)}")


def _interval(result: Record, key: str, scale: float) -> str:
    low, high = (result.get(f"{key}_{end}") for end in ("low", "high"))
    if low is None or high is None or not is_number(low) or not is_number(high):
        return ""
    return f" [{scale * low:.{_decimals(key)}f}, {scale * high:.{_decimals(key)}f}]"


def _decimals(key: str) -> int:
    return 3 if key.startswith("min_dcf") or key == "kappa" else 2 if key == "eer" else 1


def _evaluated_on(run: Run) -> Any:
    given = (run.config or {}).get("evaluation")
    return (given.get("corpus"), given.get("trials")) if isinstance(given, dict) else None


def _setting(value: Any) -> str:
    if value is ABSENT:
        return '<td class="value soft">-</td>'
    said = str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
    return f'<td class="value">{escape(said)}</td>'


def _commit(commit: Any) -> str | None:
    if commit is None:
        return None
    name, plus, _ = str(commit).partition("+")
    return name[:8] + ("+" if plus else "")


def _progress(known: Record) -> str | None:
    if known["epoch"] is None:
        return None
    return f"{known['epoch']}" + (f" of {known['epochs']}" if known["epochs"] not in (None, known["epoch"]) else "")


def _duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    if seconds < 180:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _plain(value: Any) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _cut(name: str) -> str:
    return name if len(name) <= _TERMINAL else f"{name[: _TERMINAL // 2 - 1]}…{name[-_TERMINAL // 2 :]}"


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(["", row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
