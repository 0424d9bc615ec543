"""``rayssl prepare``: from raw audio to corpora."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from rayssl.cli.advice import local, say_next, trains_on
from rayssl.cli.configuration import read_tree
from rayssl.cli.parser import CONFIG, OVERRIDES, Verbs, add_screen, declare
from rayssl.errors import CorpusError

if TYPE_CHECKING:
    from rayssl.data.corpus import PrepareConfig


def add(verbs: Verbs) -> None:
    """Declares the verbs of this file."""
    made = declare(verbs, prepare, "raw audio to shards", "configs/gsc_prepare.yaml --verify", CONFIG, OVERRIDES)
    made.add_argument("--verify", action="store_true", help="check existing corpora against their manifests instead")
    made.add_argument("--overwrite", action="store_true", help="replace corpora of other settings or an earlier rayssl")
    add_screen(made, "show nothing but the result")
    made.add_argument("--local", action="store_true", help="in this process alone, without Ray")


def prepare(arguments: argparse.Namespace) -> int:
    """Makes the corpora of a configuration, or checks them with --verify. An interrupted preparation resumes."""
    from rayssl.data.corpus import PrepareConfig
    from rayssl.progress import Line, open_screen
    from rayssl.runtime import prepare as runtime
    from rayssl.schema import parse

    config = parse(PrepareConfig, read_tree(arguments), arguments.config)
    if arguments.verify:
        problems = runtime.verify_corpora(config)
        for problem in problems:
            print(problem)
        if problems:
            raise CorpusError(
                f"{arguments.config}: {len(problems)} problems; delete the damaged corpus and prepare it again"
            )
        print("every corpus agrees with its manifest")
        _say_next(arguments, config)
        return 0
    screen = open_screen("quiet" if arguments.quiet else arguments.log)
    how = {"overwrite": arguments.overwrite, "local": arguments.local, "verbose": arguments.verbose}
    try:
        summary = runtime.prepare(config, screen=screen, **how)
    finally:
        screen.close()
    if arguments.log == "json" and not arguments.quiet:
        for line in summary.text().splitlines():
            screen.show(Line(line))
        return 0
    print(summary.text())
    _say_next(arguments, config)
    return 0


def _say_next(arguments: argparse.Namespace, config: PrepareConfig) -> None:
    """An experiment beside the file that trains on one of its corpora, or how to write one."""
    corpora = {name: settings.out for name, settings in config.corpora.items()}
    experiments = trains_on(arguments.config, corpora)
    if not experiments:
        uri = corpora.get("train", next(iter(corpora.values())))
        say_next(arguments, "train", "EXPERIMENT.yaml", f"corpus.uri={uri}", note="with an experiment of yours")
        return
    note = f"or another of the {len(experiments)} experiments beside it" if len(experiments) > 1 else ""
    say_next(arguments, "train", experiments[0], *local(arguments), note=note)
