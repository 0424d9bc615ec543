"""Makes one self-contained HTML page from a run's folder: styles and pictures are inside, and there is no script."""

from __future__ import annotations

import shlex
from html import escape
from typing import Any

from rayssl import storage
from rayssl.reports.document import document
from rayssl.reports.drawing import framed
from rayssl.reports.run import classification, staging
from rayssl.reports.run.figures import pictures
from rayssl.reports.run.reading import Record, Run, is_number, is_staging, read_run
from rayssl.schema import flatten

_JUMP = (
    " It may jump where sampled positives begin (dashed line): positives from other recordings are harder than those "
    "from the same one."
)
_CAPTIONS = {
    "loss": "Logged values (faint) and their running mean. It should fall and level off.",
    "schedule": "Learning rate and throughput as logged. Throughput should be flat: in a dip, training waited for "
    "data, for other ranks or for clustering.",
    "others": "All other logged numbers that changed during the run.",
    "positives": "What the sampled positives are. Good sampling gives many positives of the same speaker and few of "
    "the same recording. Useful positives are of the same speaker in another recording. Coverage is the share of "
    "anchors for which a positive was found; the others use their own. Clusters should follow speakers more than "
    "recordings.",
    "det": "Detection error trade-off on probit axes. Closer to the lower left is better; a straight line means "
    "normally distributed scores. The diamond and the square mark the minima of the two normalised costs.",
    "histogram": "Scores of both kinds of trial. The less they overlap, the lower the error. The dotted line is the "
    "threshold at which both error rates are equal.",
    "map": "A sample of utterances in two dimensions by t-SNE. Left: each speaker (colour and marker) should be a "
    "separate island. Right: the same points; inside an island colours should mix. Separate patches of one colour mean "
    "that the embedding separates recordings, not only speakers. Distances between islands have no meaning.",
}


def write_report(uri: str, out: str | None = None, *, seed: int = 0) -> str:
    """Writes the page about the run at ``uri`` and returns its path.

    ``out`` is the file or URI (default: ``report.html`` in the run's folder). ``seed`` is that of the t-SNE map. Raises
    `StorageError` if there is no run, or if the page cannot be written.
    """
    page = out or storage.join(uri, "report.html")
    storage.write_text(page, render(read_run(uri, seed=seed), seed=seed))
    return page


def render(run: Run, *, seed: int = 0) -> str:
    """The whole page as HTML text. All text that comes from the run is escaped."""
    drawn = pictures(run, seed) | classification.class_pictures(run)
    of_nights = staging.staging_pictures(run)
    sections = [
        _header(run),
        _cards(run),
        *(f'<p class="problem">{escape(problem)}</p>' for problem in run.problems),
        staging.section(run, of_nights),
        classification.section(run, drawn),
        _verification(run, drawn),
        _map(run, drawn),
        _positives(run, drawn),
        _training(run, drawn),
        _reproduce(run),
        _configuration(run),
        _environment(run),
    ]
    return document(f"{run.name} - rayssl report", sections)


def _header(run: Run) -> str:
    config = run.config or {}
    method = config.get("method") if isinstance(config.get("method"), dict) else {}
    names = []
    while isinstance(method, dict) and method.get("name"):
        names.append(str(method["name"]))
        method = method.get("over")
    parts = [" over ".join(names)] if names else []
    backbone = _lookup(config, "encoder", "backbone", "name") or _lookup(config, "model", "backbone", "name")
    parts += [str(backbone)] if backbone else []
    parts += [_duration(run)] if _duration(run) else []
    parts.append(run.uri)
    return f'<h1>{escape(run.name)}</h1>\n<p class="soft">{escape(" · ".join(parts))}</p>'


def _cards(run: Run) -> str:
    cards = staging.cards(run) + classification.cards(run)
    for result in run.verified[:1]:
        if is_number(result.get("eer")):
            cards.append((f"{100 * result['eer']:.2f} %", f"EER{_interval(result)}"))
        for name, p_target in (("min_dcf_001", 0.01), ("min_dcf_005", 0.05)):
            if is_number(result.get(name)):
                cards.append((f"{result[name]:.3f}", f"minDCF at p = {p_target}"))
        if is_number(result.get("trials")):
            targets = f", {int(result['targets']):,} of them target" if is_number(result.get("targets")) else ""
            cards.append((f"{int(result['trials']):,}", f"trials{targets}"))
    steps, losses = run.series("step", "loss")
    if len(losses):
        last = losses[-max(1, len(losses) // 50) :]
        cards.append((f"{last.mean():.3f}", f"training loss at the end, after {int(steps[-1]):,} steps"))
    shares = {"speaker_accuracy": "positives of the same speaker", "coverage": "anchors that found a positive"}
    for name, text in shares.items():
        _, values = run.series("epoch", name)
        if len(values):
            cards.append((f"{100 * values[-1]:.1f} %", f"{text}, last epoch"))
    body = "".join(
        f'<div class="card{" first" if index == 0 else ""}"><b>{escape(value)}</b><span>{escape(text)}</span></div>'
        for index, (value, text) in enumerate(cards)
    )
    return f'<div class="cards">{body}</div>' if body else ""


def _interval(result: Record) -> str:
    if is_number(result.get("eer_low")) and is_number(result.get("eer_high")):
        return f", 95 % interval over speakers {100 * result['eer_low']:.2f} to {100 * result['eer_high']:.2f} %"
    return ""


def _verification(run: Run, drawn: dict[str, str]) -> str:
    title = "<h2>Speaker verification</h2>"
    if not run.verified and not run.scores:
        if classification.is_classification(run) or is_staging(run):
            return ""
        command = escape(f"rayssl evaluate {shlex.quote(run.uri)}")
        return f"{title}\n<p>This run has not been evaluated yet; <code>{command}</code> does that.</p>"
    parts = [title]
    if run.verified:
        parts.append(_results_table(run.verified))
    if "det" in drawn:
        parts.append(f'<div class="pair">{_figure("det", drawn)}{_figure("histogram", drawn)}</div>')
    else:
        parts.append("<p>There are no scored trials to draw (evaluation/scores.parquet).</p>")
    return "\n".join(parts)


def _results_table(results: list[Record]) -> str:
    rows = []
    for result in results:
        bounds = [100 * result[key] if is_number(result.get(key)) else None for key in ("eer_low", "eer_high")]
        cells = [
            f"{100 * result['eer']:.2f}" if is_number(result.get("eer")) else "-",
            f"{bounds[0]:.2f} to {bounds[1]:.2f}" if None not in bounds else "-",
            *(f"{result[key]:.3f}" if is_number(result.get(key)) else "-" for key in ("min_dcf_001", "min_dcf_005")),
            *(f"{int(result[key]):,}" if is_number(result.get(key)) else "-" for key in ("trials", "targets")),
        ]
        texts = [str(result.get(key) or "-") for key in ("checkpoint", "norm")]
        rows.append(
            "<tr>"
            + "".join(f"<td>{escape(text)}</td>" for text in texts)
            + "".join(f'<td class="number">{escape(cell)}</td>' for cell in cells)
            + "</tr>"
        )
    heads = ("EER %", "95 % interval", "minDCF p = 0.01", "minDCF p = 0.05", "Trials", "Targets")
    head = "<th>Checkpoint</th><th>Score normalisation</th>" + "".join(f'<th class="number">{h}</th>' for h in heads)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _map(run: Run, drawn: dict[str, str]) -> str:
    if "map" in drawn:
        return f"<h2>Embeddings</h2>\n{_figure('map', drawn)}"
    if run.verified or run.scores:
        return (
            "<h2>Embeddings</h2>\n<p>There is no map: it needs embeddings of utterances whose speakers are known.</p>"
        )
    return ""


def _positives(run: Run, drawn: dict[str, str]) -> str:
    return f"<h2>Sampled positives</h2>\n{_figure('positives', drawn)}" if "positives" in drawn else ""


def _training(run: Run, drawn: dict[str, str]) -> str:
    more = {"loss": _JUMP} if run.ssps_start() else {}
    shown = [_figure(name, drawn, more.get(name, "")) for name in ("loss", "schedule", "others") if name in drawn]
    if not shown:
        shown = ["<p>No training steps have been logged yet (metrics.jsonl).</p>"]
    return "\n".join(["<h2>Training</h2>", *shown])


def _figure(name: str, drawn: dict[str, str], more: str = "") -> str:
    return framed(drawn[name], _CAPTIONS[name] + more)


def _reproduce(run: Run) -> str:
    argv = run.origin.get("argv")
    if not isinstance(argv, list) or not argv:
        return "<h2>How to reproduce</h2>\n<p>The command is not known: the run's folder has no usable origin.json.</p>"
    program = str(argv[0]).rpartition("/")[2]
    command = shlex.join([program if program != "__main__.py" else "rayssl", *(str(part) for part in argv[1:])])
    commit, seed, world = (run.origin.get(key) for key in ("commit", "seed", "world_size"))
    facts = [
        f"at commit {commit}" if commit else "",
        f"with seed {seed}" if seed is not None else "",
        (f"on {world} rank" + ("s" if world != 1 else "")) if world else "",
    ]
    said = ", ".join(fact for fact in facts if fact)
    again = "The same command resumes an unfinished run."
    note = f"Run {said}. {again}" if said else again
    return f'<h2>How to reproduce</h2>\n<pre>{escape(command)}</pre>\n<p class="soft">{escape(note)}</p>'


def _configuration(run: Run) -> str:
    if run.config is None:
        return "<h2>Configuration</h2>\n<p>There is no usable config.yaml in the run's folder.</p>"
    origins = run.origin.get("origins")
    origins = origins if isinstance(origins, dict) else {}
    given: list[str] = []
    defaults: list[str] = []
    for key, value in flatten(run.config).items():
        source = str(origins.get(key, "not recorded"))
        where = defaults if source == "default" else given
        mark = ' class="given"' if source == "override" else ""
        cells = f'<td>{escape(key)}</td><td class="value">{escape(_value(value))}</td><td>{escape(source)}</td>'
        where.append(f"<tr{mark}>{cells}</tr>")
    parts = ["<h2>Configuration</h2>"]
    if given:
        parts.append("<p>Values from the file and (shaded) from the command line, which overrides the file.</p>")
        parts.append(_settings_table(given))
    if defaults:
        parts.append(f"<details><summary>{len(defaults)} values left at their default</summary>")
        parts.append(f"{_settings_table(defaults)}</details>")
    return "\n".join(parts)


def _settings_table(rows: list[str]) -> str:
    head = "<tr><th>Key</th><th>Value</th><th>From</th></tr>"
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'


def _environment(run: Run) -> str:
    known = {"argv", "commit", "seed", "world_size", "origins", "versions"}
    versions = run.origin.get("versions")
    facts: Record = dict(versions) if isinstance(versions, dict) else {}
    facts.update({key: value for key, value in flatten(run.origin).items() if key.partition(".")[0] not in known})
    if not run.origin or not facts:
        return "<h2>Environment</h2>\n<p>Versions were not recorded (origin.json).</p>"
    rows = "".join(
        f'<tr><td>{escape(str(key))}</td><td class="value">{escape(_value(value))}</td></tr>'
        for key, value in facts.items()
    )
    return f'<h2>Environment</h2>\n<div class="scroll"><table class="facts"><tbody>{rows}</tbody></table></div>'


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


def _duration(run: Run) -> str:
    times = [float(r["time"]) for r in run.metrics if is_number(r.get("time"))]
    seconds = max(times) - min(times) if len(times) > 1 else 0.0
    if seconds < 60:
        return ""
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
