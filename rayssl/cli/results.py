"""``rayssl evaluate | stage | export | report``: what to do with a trained run; `using` has its encoder on audio."""

from __future__ import annotations

import argparse
import sys

from rayssl.cli.advice import say_next
from rayssl.cli.parser import OVERRIDES, RUN, Argument, Verbs, count, declare
from rayssl.errors import UserError
from rayssl.progress import busy

_CHECKPOINT = "last (default), best, epoch-N or step-N"
_FEW = 3000  # utterances that one process embeds in two minutes or so (24 a second on one core, of 7 s each)


def add(verbs: Verbs) -> None:
    """Declares the verbs of this file."""
    text = "figures on trials, or on the classes of a test corpus"
    scored = declare(verbs, evaluate, text, "runs/synthetic/ssps --checkpoint best", RUN, OVERRIDES)
    scored.add_argument("--checkpoint", default="last", help="last (default), best, epoch-N, step-N, or every")
    scored.add_argument("--local", action="store_true", help="in this process alone, without Ray")
    _add_stage(verbs)
    exported = declare(verbs, export, "one file that needs only torch", "runs/synthetic/ssps --out encoder.pt2", RUN)
    exported.add_argument("--checkpoint", default="last", help=_CHECKPOINT)
    place = "file or URI (default: RUN/exported/CHECKPOINT.pt2)"
    exported.add_argument("--out", metavar="FILE", help=place)
    some = "folders or URIs of runs, or of one sweep; several runs are compared"
    runs: Argument = ("runs", {"nargs": "+", "metavar": "RUN", "help": some})
    page = declare(verbs, report, "one self-contained HTML page", "runs/a runs/b runs/c --out comparison.html", runs)
    place = "file or URI (default: report.html in the folder; for several runs comparison.html)"
    page.add_argument("--out", metavar="PAGE", help=place)
    place = "draw the run on this band (default: bands/NAME.json beside its NAME.yaml, if it is there)"
    page.add_argument("--against", metavar="FILE", help=place)
    page.add_argument("--band", metavar="FILE", help="write the band of runs of several seeds, and no page")


def _add_stage(verbs: Verbs) -> None:
    night: Argument = ("night", {"metavar": "NIGHT", "help": "an EDF or audio file, or a folder of nights; or its URI"})
    text, example = "the hypnogram of a night", "runs/nights/sleep night.edf --out hypnograms"
    staged = declare(verbs, stage, text, example, RUN, night)
    staged.add_argument("--out", required=True, metavar="FOLDER", help="folder or URI for tables and pictures")
    staged.add_argument("--checkpoint", default="last", help=_CHECKPOINT)
    staged.add_argument("--channel", default="Mic", metavar="NAME", help="the EDF signal (default Mic)")
    staged.add_argument("--stride", type=count, default=20, metavar="N", help="epochs between windows (default 20)")


def evaluate(arguments: argparse.Namespace) -> int:
    """Embeds a run's test corpus, and scores its trials or classifies its clips."""
    from rayssl.runtime.evaluation import evaluate as runtime

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    how = {"local": arguments.local, "say": say}
    if arguments.checkpoint == "every":
        found = runtime.over_time(arguments.run, arguments.overrides, **how)
    else:
        result = runtime.evaluate(arguments.run, arguments.checkpoint, arguments.overrides, **how)
        found = iter([(arguments.checkpoint, result)])
    for which, figures in found:
        for each in figures if isinstance(figures, list) else [figures]:
            print(f"{arguments.run} ({which}): {runtime.summary_line(each)}", flush=True)
    say_next(arguments, "report", arguments.run)
    return 0


def stage(arguments: argparse.Namespace) -> int:
    """Stages nights with a run of the method sleep: a table, a summary and a picture for each night.

    A night that cannot be used gets one line, and the status becomes 2; the other nights are staged all the same.
    """
    from rayssl import storage
    from rayssl.inference.model import load
    from rayssl.inference.staging import write_night

    failed = []

    def say(line: str) -> None:
        print(f"rayssl stage: {line}", file=sys.stderr, flush=True)

    def refused(line: str) -> None:
        say(line)
        failed.append(line)

    storage.check_writable(arguments.out)
    model = load(arguments.run, arguments.checkpoint)
    for night in model.stage(arguments.night, channel=arguments.channel, stride=arguments.stride, say=refused):
        for note in night.notes:
            say(f"{night.scores.name}: {note}")
        print(write_night(arguments.out, night), flush=True)
    if failed:
        return 2
    say_next(arguments, "report", arguments.run)
    return 0


def export(arguments: argparse.Namespace) -> int:
    """Writes the front end and encoder of a run as one file for torch.export.load, if it agrees with the run."""
    from rayssl.inference.export import export as write

    done = write(arguments.run, arguments.out, arguments.checkpoint)
    print(
        f"{done.out}: samples [B, T] at {done.rate} Hz to embeddings [B, {done.dim}], T at least "
        f"{done.minimum_samples}; largest difference from the run {done.difference:.1e} of an embedding's scale, over "
        f"{done.clips} clips of {done.compared_on}"
    )
    say_next(arguments, "report", arguments.run, note=f"in Python: torch.export.load('{done.out}').module()")
    return 0


def report(arguments: argparse.Namespace) -> int:
    """Writes the HTML page of a run or of a sweep, or a page that compares several runs."""
    if arguments.band is not None:
        return _write_band(arguments, arguments.runs, arguments.band)
    if arguments.against is not None and len(arguments.runs) > 1:
        raise UserError("--against: a band is for one run; name one, or leave out --against to compare several")
    if len(arguments.runs) > 1:
        from rayssl.reports.comparison.page import write_comparison

        page = arguments.out or "comparison.html"
        with busy(f"reads {len(arguments.runs)} runs and draws their comparison"):
            summary = write_comparison(arguments.runs, page)
        print(summary)
        say_next(arguments, "-m", "webbrowser", page, program="python")
        return 0
    from rayssl.reports.run.page import write_report
    from rayssl.reports.sweep.page import is_sweep, write_sweep_report

    run = arguments.runs[0]
    if is_sweep(run):
        with busy("reads the sweep and draws its pictures"):
            page = write_sweep_report(run, arguments.out)
        print(page)
        say_next(arguments, "train", f"{run.rstrip('/')}/best.yaml")
        return 0
    with busy("reads the run and draws its pictures"):
        page = write_report(run, arguments.out, against=arguments.against)
    print(page)
    _say_embed(arguments, run, page)
    return 0


def _write_band(arguments: argparse.Namespace, runs: list[str], out: str) -> int:
    from rayssl.reports.run.expected import write_band
    from rayssl.reports.run.reading import read_run

    band = write_band([read_run(run, drawn=False) for run in runs], out)
    print(f"{out}: the least and the most of {len(band.figures)} figures, over the seeds {band.seeds}")
    say_next(arguments, "report", runs[0], "--against", out)
    return 0


def _say_embed(arguments: argparse.Namespace, run: str, page: str) -> None:
    """The next step after a report: to use the run, on its test corpus if there is one."""
    from rayssl.runs.reading import read_run

    note = f"the page opens in a browser: python -m webbrowser {page}"
    try:
        experiment = read_run(run, [])
    except UserError:  # a run of an earlier rayssl has a page, too
        say_next(arguments, "embed", run, "CORPUS", f"{run.rstrip('/')}/embeddings", note=note)
        return
    if experiment.method.sequences:
        say_next(arguments, "stage", run, "NIGHT.edf", "--out", "hypnograms", note=note)
        return
    corpus = experiment.corpus.uri if experiment.evaluation is None else experiment.evaluation.corpus
    how = ["--local"] if _few(corpus) else []
    say_next(arguments, "embed", run, corpus, f"{run.rstrip('/')}/embeddings", *how, note=note)


def _few(corpus: str) -> bool:
    """Whether one process embeds the prepared ``corpus`` before Ray has started, or soon after."""
    from rayssl.data.shards import read_manifest
    from rayssl.runtime import cluster

    try:
        return not cluster.joins() and read_manifest(corpus).rows <= _FEW
    except UserError:  # it is somewhere else now
        return False
