"""``rayssl train | sweep``: one run, and a search over many."""

from __future__ import annotations

import argparse

from rayssl.cli.advice import local, say_next
from rayssl.cli.configuration import read_experiment
from rayssl.cli.parser import CONFIG, OVERRIDES, Verbs, add_screen, declare


def add(verbs: Verbs) -> None:
    """Declares the verbs of this file."""
    example = "configs/gsc_ssps_simclr.yaml method.clusters=500 training.epochs=30"
    trained = declare(verbs, train, "train a run, or resume it", example, CONFIG, OVERRIDES)
    text = "in this process alone, without Ray: the same bits as one Ray worker"
    trained.add_argument("--local", action="store_true", help=text)
    text = "let this key differ from what the run's steps were trained with; recorded in origin.json; may be repeated"
    trained.add_argument("--allow-change", metavar="KEY", action="append", default=[], help=text)
    add_screen(trained, "show nothing but errors")
    text, example = "search over keys of an experiment", "configs/sweep_synthetic.yaml trials=20 training.epochs=12"
    searched = declare(verbs, sweep, text, example, CONFIG, OVERRIDES)
    searched.add_argument("--retry-failed", action="store_true", help="run failed trials again")
    searched.add_argument("--dry-run", action="store_true", help="only print the trials")


def train(arguments: argparse.Namespace) -> int:
    """Trains a run. After an interruption the same command resumes from the last checkpoint."""
    from rayssl.door import train_recorded
    from rayssl.progress import Line, open_screen
    from rayssl.runs.origin import origins
    from rayssl.training import checkpoint

    tree, experiment = read_experiment(arguments)
    where = origins(tree, arguments.overrides, experiment)
    screen = open_screen("quiet" if arguments.quiet else arguments.log)
    changes = arguments.allow_change
    how = {"local": arguments.local, "screen": screen, "verbose": arguments.verbose}
    try:
        metrics = train_recorded(experiment, where, allow_change=changes, **how)
    finally:
        screen.close()
    done = checkpoint.read_meta(checkpoint.locate(experiment.run, "last")).epoch  # validation may have ended it early
    result = f"{experiment.run}: trained to epoch {done}, loss {metrics.get('loss', float('nan')):.4f}"
    if arguments.log == "json":
        screen.show(Line(result))
        return 0
    if arguments.quiet:
        return 0
    print(result)
    if experiment.evaluation is None:
        say_next(arguments, "report", experiment.run, note="without an evaluation: the curves of the training")
    else:
        say_next(arguments, "evaluate", experiment.run, *local(arguments))
    return 0


def sweep(arguments: argparse.Namespace) -> int:
    """Tries many values of the keys of an experiment. After an interruption the same command resumes."""
    from rayssl.sweeps import points, state
    from rayssl.sweeps.config import assignments, read_plan

    plan = read_plan(arguments.config, arguments.overrides)
    if arguments.dry_run:
        if plan.config.search == "optuna":
            points.suggested(plan.config, 0, [])
            print(f"{points.count(plan.config)} trials; optuna draws each from the results of those before")
            say_next(arguments, "sweep", arguments.config, *arguments.overrides)
            return 0
        for index, point in enumerate(points.drawn(plan.config)):
            print(f"trial {index}  {' '.join(assignments(point))}")
        say_next(arguments, "sweep", arguments.config, *arguments.overrides)
        return 0
    from rayssl.runtime.sweep.run import sweep as run

    records = run(plan, lambda line: print(line, flush=True), retry_failed=arguments.retry_failed)
    print(state.table(records))
    print(f"{plan.uri}: best.yaml for 'rayssl train', results.json, report.html")
    say_next(arguments, "train", f"{plan.uri.rstrip('/')}/best.yaml")
    return 0
