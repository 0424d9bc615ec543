"""Makes one self-contained HTML page from a run's folder: styles, pictures and a small script are inside."""

from __future__ import annotations

import shlex
from typing import Any

from rayssl import storage
from rayssl.reports.content import (
    Block,
    Column,
    Details,
    Figure,
    Grid,
    Listing,
    Page,
    Picture,
    Row,
    Section,
    Table,
    text,
)
from rayssl.reports.document import document
from rayssl.reports.measures import measure
from rayssl.reports.run import classification, clock, expected, staging, verification
from rayssl.reports.run.figures import OTHER, pictures
from rayssl.reports.run.reading import Record, Run, is_number, read_run
from rayssl.schema import flatten

_JUMP = (
    " It may jump where sampled positives begin (dashed line): positives from other recordings are harder than those "
    "from the same one. Values before and after do not compare."
)
_LOSS = "Logged values (faint) and their running mean. It should fall and level off."
_CAPTIONS = {
    "positives": "Good sampling gives many positives of the same speaker and few of the same recording. Coverage is "
    "the share of anchors for which a positive was found; the others use their own.",
    "agreement": "1 means that the clusters are the speakers, or the recordings. Clusters should follow speakers more "
    "than recordings.",
    "sizes": "One cluster that is far larger than the others takes utterances of many speakers. Many small ones divide "
    "a speaker.",
}
_HARDWARE = {
    "parameters": "Parameters",
    "trainable": "Of them trained",
    "ranks": "Ranks",
    "device": "Device of a rank",
    "device_memory_gb": "Memory of the device (GB)",
    "cpu": "Processor of rank 0",
    "cores": "Cores of its machine",
    "memory_gb": "Memory of its machine (GB)",
}


def write_report(uri: str, out: str | None = None, *, seed: int = 0, against: str | None = None) -> str:
    """Writes the page about the run at ``uri`` and returns its path.

    ``out`` is the file or URI (default: ``report.html`` in the run's folder). ``seed`` is that of the t-SNE map.
    ``against`` is a band (default: that of the run's configuration, see `rayssl.reports.run.expected`). Raises
    `StorageError` if there is no run, or if the page cannot be written, and `ConfigError` if ``against`` is no band.
    """
    page, run = out or storage.join(uri, "report.html"), read_run(uri, seed=seed)
    place = against or expected.beside(run)
    storage.write_text(page, render(run, seed=seed, band=None if place is None else expected.read_band(place)))
    return page


def render(run: Run, *, seed: int = 0, band: expected.Band | None = None) -> str:
    """The whole page as HTML text, with the run against ``band``. All text that comes from the run is escaped."""
    drawn = pictures(run, seed) | classification.class_pictures(run)
    of_nights = staging.staging_pictures(run)
    sections = [
        *staging.sections(run, of_nights),
        *classification.sections(run, drawn),
        *verification.sections(run, drawn),
        _positives(drawn),
        _training(run, drawn),
        expected.section(run, band),
        _hardware(run),
        _reproduce(run),
        _configuration(run),
        _environment(run),
    ]
    return document(
        Page(
            title=f"{run.name} - rayssl report",
            heading=run.name,
            facts=_facts(run),
            cards=_cards(run),
            notes=[text(problem, "problem") for problem in run.problems],
            sections=sections,
        )
    )


def _facts(run: Run) -> list[str]:
    """The method, the encoder, how long it trained, and where the run is."""
    config = run.config or {}
    method = config.get("method") if isinstance(config.get("method"), dict) else {}
    names = []
    while isinstance(method, dict) and method.get("name"):
        names.append(str(method["name"]))
        method = method.get("over")
    parts = [" over ".join(names)] if names else []
    backbone = _lookup(config, "encoder", "backbone", "name") or _lookup(config, "model", "backbone", "name")
    parts += [str(backbone)] if backbone else []
    parameters = _lookup(run.origin, "hardware", "parameters")
    parts += [f"{parameters / 1e6:,.2f} M parameters"] if is_number(parameters) else []
    seconds = clock.training_seconds(run)
    parts += [f"trained for {clock.duration(seconds)}"] if seconds else []
    return [*parts, run.uri]


def _cards(run: Run) -> list[tuple[str, str]]:
    cards = staging.cards(run) + classification.cards(run) + verification.cards(run)
    steps, losses = run.series("step", "loss")
    if len(losses):
        last = losses[-max(1, len(losses) // 50) :]
        cards.append((f"{last.mean():.3f}", f"training loss at the end, after {int(steps[-1]):,} steps"))
    shares = {"speaker_accuracy": "positives of the same speaker", "coverage": "anchors that found a positive"}
    for name, said in shares.items():
        _, values = run.series("epoch", name)
        if len(values):
            cards.append((f"{100 * values[-1]:.1f} %", f"{said}, last epoch"))
    return cards


def _positives(drawn: dict[str, Picture]) -> Section:
    shown = [Figure(drawn[name], said) for name, said in _CAPTIONS.items() if name in drawn]
    return Section("Sampled positives", [Grid(shown)] if shown else [])


def _training(run: Run, drawn: dict[str, Picture]) -> Section:
    blocks: list[Block] = []
    if "loss" in drawn:
        blocks.append(Figure(drawn["loss"], _LOSS + (_JUMP if run.ssps_start() else "")))
    beside = [Figure(drawn[name], measure(name).says) for name in ("lr", "utterances_per_s") if name in drawn]
    blocks += [Grid(beside)] if beside else []
    others = [
        Figure(each, measure(name.removeprefix(OTHER)).says) for name, each in drawn.items() if name.startswith(OTHER)
    ]
    blocks += [Grid(others, 3)] if others else []
    return Section("Training", blocks or [text("No training steps have been logged yet (metrics.jsonl).")])


def _hardware(run: Run) -> Section:
    found = run.origin.get("hardware")
    if not isinstance(found, dict):
        return Section("Model and hardware", [])
    rows = []
    for key, label in _HARDWARE.items():
        value = found.get(key)
        if value is not None:
            rows.append(Row([label, f"{value:,}" if is_number(value) else str(value)]))
    table = Table("Model and hardware of the last start", [Column("What"), Column("Value")], rows)
    return Section("Model and hardware", [table] if rows else [])


def _reproduce(run: Run) -> Section:
    title = "How to reproduce"
    argv = run.origin.get("argv")
    if not isinstance(argv, list) or not argv:
        return Section(title, [text("The command is not known: the run's folder has no usable origin.json.")])
    commit, seed, world = (run.origin.get(key) for key in ("commit", "seed", "world_size"))
    facts = [
        f"at commit {_short(str(commit))}" if commit else "",
        f"with seed {seed}" if seed is not None else "",
        (f"on {world} rank" + ("s" if world != 1 else "")) if world else "",
    ]
    said = ", ".join(fact for fact in facts if fact)
    again = "The same command resumes an unfinished run."
    return Section(title, [Listing(_command(argv)), text(f"Run {said}. {again}" if said else again, "soft")])


def _configuration(run: Run) -> Section:
    if run.config is None:
        return Section("Configuration", [text("There is no usable config.yaml in the run's folder.")])
    origins = run.origin.get("origins")
    origins = origins if isinstance(origins, dict) else {}
    given: list[Row] = []
    defaults: list[Row] = []
    for key, value in flatten(run.config).items():
        source = str(origins.get(key, "not recorded"))
        where = defaults if source == "default" else given
        where.append(Row([key, _value(value), source], marked=source == "override"))
    blocks: list[Block] = []
    if given:
        blocks.append(text("Values from the file and (shaded) from the command line, which overrides the file."))
        blocks.append(_settings_table("Values that were given", given))
    if defaults:
        table = _settings_table("Values left at their default", defaults)
        blocks.append(Details(f"{len(defaults)} values left at their default", [table]))
    return Section("Configuration", blocks)


def _settings_table(caption: str, rows: list[Row]) -> Table:
    return Table(caption, [Column("Key", "code"), Column("Value", "code"), Column("From")], rows)


def _environment(run: Run) -> Section:
    known = {"argv", "commit", "seed", "world_size", "origins", "versions", "hardware", "starts", "changes", "time"}
    versions = run.origin.get("versions")
    facts: Record = dict(versions) if isinstance(versions, dict) else {}
    facts.update({
        key: value
        for key, value in flatten(run.origin).items()
        if key.partition(".")[0] not in known and value not in ({}, [])
    })  # fmt: skip
    if not run.origin or not facts:
        return Section("Environment", [text("Versions were not recorded (origin.json).")])
    rows = [Row([str(key), _value(value)]) for key, value in facts.items()]
    blocks: list[Block] = [Table("Environment", [Column("What", "code"), Column("Value", "code")], rows)]
    for name, keys in (("starts", ("time", "commit", "argv")), ("changes", ("step", "key", "before", "after"))):
        found = run.origin.get(name)
        listed = [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
        if listed:
            cells = [
                Row([_command(each[key]) if key == "argv" and key in each else _value(each.get(key)) for key in keys])
                for each in listed
            ]
            heads = [Column("Command" if key == "argv" else key.capitalize(), "code") for key in keys]
            blocks.append(
                Details(f"All {name} of the run: {len(listed)}", [Table(f"All {name} of the run", heads, cells)])
            )
    return Section("Environment", blocks)


def _command(argv: Any) -> str:
    """The words of a command as a shell takes them, with the program's own name."""
    if not isinstance(argv, list) or not argv:
        return _value(argv)
    program = str(argv[0]).rpartition("/")[2]
    return shlex.join([program if program != "__main__.py" else "rayssl", *(str(part) for part in argv[1:])])


def _short(commit: str) -> str:
    """The first digits of a commit, with what stands behind it."""
    name, plus, more = commit.partition("+")
    return name[:12] + plus + more


def _value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _lookup(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree
