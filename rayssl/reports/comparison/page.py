"""Compares several runs on one self-contained HTML page, and in a few lines for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rayssl import storage
from rayssl.reports.comparison import pictures, reading
from rayssl.reports.comparison.markup import group_cell, group_column, interval
from rayssl.reports.comparison.reading import ABSENT, CLASSIFICATION, STAGING, VERIFICATION, Comparison, Group
from rayssl.reports.content import Block, Column, Details, Figure, Heading, Page, Problems, Row, Section, Table, text
from rayssl.reports.document import document
from rayssl.reports.measures import measure
from rayssl.reports.run.clock import duration
from rayssl.reports.run.reading import Record, Run, is_number
from rayssl.reports.run.verification import meaningless

_WIDE = 8  # the most groups whose settings are in columns; with more groups and few keys the table is transposed
_LONG = 40  # the table of differing keys is closed at first if it has more keys
_EXTRA = {"n": "Test rows", "nights": "Nights", "norm": "Score norm.", "checkpoint": "Checkpoint", "trials": "Trials"}
_UNPAIRED = "* No common seed: the difference of the means."
_TERMINAL = 44  # the most characters of a name
_CAPTIONS = {
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

_CURVES = (
    "Metrics that several runs have, as running means: over steps, and over the time since the run's start, without "
    "pauses between restarts. Curves with the same colour and line differ only in the seed. Losses of different "
    "methods, temperatures or batches cannot be compared."
)


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
    said = [f"in {groups} groups; runs of a group differ only in the seed"] if groups < len(comparison.runs) else []
    missing = reading.missing(comparison)
    sections = [
        _runs(comparison),
        _verification(comparison),
        _staging(comparison),
        _classification(comparison),
        _differences(comparison),
        _learning_curves(comparison),
    ]
    notes = [Problems(missing)] if missing else []
    return document(Page(title=f"{title} - rayssl report", heading=title, facts=said, notes=notes, sections=sections))


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
                between = interval(of(had[0]), key, scale, _decimals(key)) if len(had) == 1 else ""
                cells.append("-" if found is None else found.text(_decimals(key)) + between)
            lead, (_, scale) = next(iter(figures.items()))
            gap = reading.difference(group, groups[0], _value(of, lead, scale))
            said = "" if gap is None or group is groups[0] else gap.difference(_decimals(lead))
            rows.append([f"{group.number} {_cut(group.label)}", *cells, str(len(had)), said])
        lines += [title, *_aligned(rows)]
        if any(row[-1].endswith("*") for row in rows):
            lines.append(f"  {_UNPAIRED}")
    for what, command in reading.missing(comparison):
        lines.append(f"{what}: {command}" if command else what)
    return "\n".join(lines)


def _runs(comparison: Comparison) -> Section:
    names = comparison.names()
    rows = []
    commits, versions = set(), set()
    for group in comparison.groups:
        for run in group.runs:
            known = reading.facts(run)
            commits.add(known["commit"])
            versions.add(str(sorted((run.origin.get("versions") or {"": ""}).items())))
            cells = [known["seed"], _commit(known["commit"]), known["world_size"], _parameters(run), _progress(known)]
            cells += [known["step"], None if known["seconds"] is None else duration(known["seconds"])]
            cells += [None if known["loss"] is None else f"{known['loss']:.3f}"]
            rows.append(Row([group_cell(group, names[run.uri]), *("-" if c is None else str(c) for c in cells)]))
    heads = ["Seed", "Commit", "Ranks", "Parameters", "Epochs", "Steps", "Time", "Loss at the end"]
    notes = []
    if len(commits) > 1:
        notes.append(f"They come from {len(commits)} commits: the code differs too.")
    if any(str(commit).endswith("+changes") for commit in commits):
        notes.append("A commit with + had uncommitted changes.")
    if len(versions) > 1:
        notes.append("Versions of packages differ between them (origin.json).")
    columns = [Column("Run", "code"), *(Column(head, "number") for head in heads)]
    return Section("Runs", [Table("The runs", columns, rows, notes)])


def _verification(comparison: Comparison) -> Section:
    title = "Speaker verification"
    if not any(run.verified for run in comparison.runs):
        return Section(title, [])
    blocks: list[Block] = []
    results = {run.uri: result for run in comparison.runs if (result := reading.verification(run))}
    trials = {
        (results[run.uri].get("trials"), results[run.uri].get("targets"), str(_evaluated_on(run)))
        for run in comparison.runs
        if run.uri in results
    }
    if len(trials) > 1:
        blocks.append(text("Not all runs were scored on the same trials.", "problem"))
    blocks += [text(said, "problem") for said in dict.fromkeys(map(meaningless, results.values())) if said]
    blocks += _final(comparison, VERIFICATION, reading.verification, ("checkpoint", "norm", "trials"))
    picture = pictures.verification_picture(comparison)
    return Section(title, [*blocks, *([Figure(picture, _CAPTIONS["verification"])] if picture else [])])


def _staging(comparison: Comparison) -> Section:
    title = "Sleep staging"
    results = [result for run in comparison.runs if (result := reading.staging(run))]
    if not results:
        return Section(title, [])
    blocks: list[Block] = []
    if len({(result.get("n"), result.get("nights")) for result in results}) > 1:
        blocks.append(text("Not all runs were tested on the same nights.", "problem"))
    blocks += _final(comparison, STAGING, reading.staging, ("checkpoint", "n", "nights"))
    said = [result["majority"] for result in results if isinstance(result.get("majority"), dict)]
    known = {tuple(each[key] for key in STAGING if is_number(each.get(key))) for each in said}
    values = zip(STAGING.items(), known.pop() if len(known) == 1 else (), strict=False)
    base = ", ".join(f"{name} {scale * value:.{_decimals(key)}f}" for (key, (name, scale)), value in values)
    blocks += [text(f"Majority baseline: {base}.", "soft")] if base else []
    picture = pictures.staging_picture(comparison)
    return Section(title, [*blocks, *([Figure(picture, _CAPTIONS["staging"])] if picture else [])])


def _classification(comparison: Comparison) -> Section:
    title, every = "Classification", reading.classifiers(comparison)
    blocks: list[Block] = []
    sizes = {result.get("n") for run in comparison.runs for result in run.classified}
    if len(sizes) > 1:
        blocks.append(text("Not all runs were tested on the same number of rows.", "problem"))
    chosen = reading.chosen_classifiers(comparison)
    for which in chosen:
        blocks.append(Heading(reading.classifier_name(which)))
        blocks += _final(comparison, CLASSIFICATION, _of(which), ("checkpoint", "n"))
        drawn = {
            "classification": pictures.classification_picture(comparison, which),
            "recall": pictures.recall_picture(comparison, which),
        }
        blocks += [Figure(picture, _CAPTIONS[name]) for name, picture in drawn.items() if picture]
    if len(every) > len(chosen):
        blocks += _every_classifier(comparison, every)
    return Section(title, blocks)


def _every_classifier(comparison: Comparison, every: list[tuple[str, float | None]]) -> list[Block]:
    """The balanced accuracy of all classifiers, with a row for each group."""
    rows = []
    for group in comparison.groups:
        found = [reading.spread(group, _value(_of(which), "balanced_accuracy", 100)) for which in every]
        if any(found):
            cells = ["-" if each is None else each.text(1) for each in found]
            rows.append(Row([group_cell(group, group.label), *cells]))
    columns = [Column("Group", "code"), *(Column(reading.classifier_name(which), "number") for which in every)]
    said = "Balanced accuracy in % of every classifier, mean ± standard deviation over seeds"
    return [text(f"{said}:"), Table(said, columns, rows)]


def _final(comparison: Comparison, figures: dict[str, Any], of: Any, extra: tuple[str, ...]) -> list[Block]:
    """The table of runs, with differences from the first. If some group has several runs, a second table has them."""
    names, rows = comparison.names(), []
    groups = [group for group in comparison.groups if any(of(run) for run in group.runs)]
    single = 1 < len(groups) == sum(len(group.runs) for group in groups)
    lead, (title, scale_of_lead) = next(iter(figures.items()))
    found = {key: {_plain(of(run).get(key)) for run in comparison.runs if of(run)} for key in extra}
    extra = tuple(key for key in extra if len(found[key]) > 1)
    notes = [f"{_EXTRA[key]}: {found[key].copy().pop()}." for key in found if key not in extra]
    unpaired = False
    for group in groups:
        for run in (run for run in group.runs if of(run)):
            result = of(run)
            cells = [_figure(result, key, scale) for key, (_, scale) in figures.items()]
            if single:
                gap = reading.difference(group, groups[0], _value(of, lead, scale_of_lead))
                cells.append("" if gap is None or group is groups[0] else gap.difference(_decimals(lead)))
                unpaired = unpaired or cells[-1].endswith(" *")
            cells += [_plain(result.get(key)) for key in extra]
            rows.append(Row([group_cell(group, names[run.uri]), *cells]))
    columns = [Column("Run", "code"), *(Column(head, "number") for head, _ in figures.values())]
    columns += [Column(f"{title.removesuffix(' %')} - first", "number")] if single else []
    columns += [Column(_EXTRA[key], "number") for key in extra]
    tables: list[Block] = [
        Table("Final figures of each run", columns, rows, [*notes, *([_UNPAIRED] if unpaired else [])])
    ]
    if any(len(group.runs) > 1 for group in groups):
        tables.append(_group_table(groups, figures, of))
    return tables


def _group_table(groups: list[Group], figures: dict[str, Any], of: Any) -> Table:
    columns = [Column("Group", "code"), Column("Runs", "number")]
    for head, _ in figures.values():
        columns += [Column(head, "number"), Column("- first", "number")]
    rows, unpaired = [], False
    for group in groups:
        cells = [str(sum(bool(of(run)) for run in group.runs))]
        for key, (_, scale) in figures.items():
            found = reading.spread(group, _value(of, key, scale))
            gap = None if group is groups[0] else reading.difference(group, groups[0], _value(of, key, scale))
            cells.append("-" if found is None else found.text(_decimals(key)))
            unpaired = unpaired or (gap is not None and not gap.paired)
            cells.append("" if gap is None else gap.difference(_decimals(key)))
        rows.append(Row([group_cell(group, group.label), *cells]))
    notes = ["Mean ± standard deviation over seeds. Differences from the first group are over n pairs of equal seed."]
    return Table("Final figures of each group", columns, rows, [*notes, *([_UNPAIRED] if unpaired else [])])


def _differences(comparison: Comparison) -> Section:
    found = reading.differences(comparison.groups)
    title = "Configuration: what differs"
    if not found:
        return Section(title, [text("Nothing but seeds.")] if len(comparison.runs) > 1 else [])
    said = text("Seeds and the runs' folders are left out. - means that the key does not exist.", "soft")
    caption = "Keys that differ"
    if len(comparison.groups) > _WIDE and len(found) < len(comparison.groups):
        turned = [
            Row([group_cell(group, group.label), *(_setting(values[index]) for values in found.values())])
            for index, group in enumerate(comparison.groups)
        ]
        return Section(
            title, [said, Table(caption, [Column("Group", "code"), *(Column(k, "code") for k in found)], turned)]
        )
    rows, section = [], ""
    for key, values in found.items():
        if key.partition(".")[0] != section:
            section = key.partition(".")[0]
            rows.append(Row([section], section=True))
        rows.append(Row([key, *(_setting(value) for value in values)]))
    columns = [Column("Key", "code"), *(group_column(group) for group in comparison.groups)]
    table = Table(caption, columns, rows)
    return Section(title, [said, Details(f"{len(found)} keys differ", [table]) if len(found) > _LONG else table])


def _learning_curves(comparison: Comparison) -> Section:
    names = reading.common_metrics(comparison)
    if not names:
        return Section("Training", [text("No two runs have a metric in common.")])
    made = [(pictures.learning_curves(comparison, name), measure(name).says) for name in names]
    drawn = [Figure(picture, says) for picture, says in made if picture]
    return Section("Training", [text(_CURVES), *drawn])


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


def _figure(result: Record, key: str, scale: float) -> str:
    if not is_number(result.get(key)):
        return "-"
    return f"{scale * result[key]:.{_decimals(key)}f}{interval(result, key, scale, _decimals(key))}"


def _decimals(key: str) -> int:
    return 3 if key.startswith("min_dcf") or key == "kappa" else 2 if key == "eer" else 1


def _evaluated_on(run: Run) -> Any:
    given = (run.config or {}).get("evaluation")
    return (given.get("corpus"), given.get("trials")) if isinstance(given, dict) else None


def _setting(value: Any) -> str:
    if value is ABSENT:
        return "-"
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def _parameters(run: Run) -> str | None:
    found = run.origin.get("hardware")
    count = found.get("parameters") if isinstance(found, dict) else None
    return f"{count / 1e6:,.2f} M" if count is not None and is_number(count) else None


def _commit(commit: Any) -> str | None:
    if commit is None:
        return None
    name, plus, _ = str(commit).partition("+")
    return name[:8] + ("+" if plus else "")


def _progress(known: Record) -> str | None:
    if known["epoch"] is None:
        return None
    return f"{known['epoch']}" + (f" of {known['epochs']}" if known["epochs"] not in (None, known["epoch"]) else "")


def _plain(value: Any) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _cut(name: str) -> str:
    return name if len(name) <= _TERMINAL else f"{name[: _TERMINAL // 2 - 1]}…{name[-_TERMINAL // 2 :]}"


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(["", row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
