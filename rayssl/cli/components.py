"""``rayssl check``: tests a method, an encoder or a source against the rules of its kind."""

from __future__ import annotations

import argparse
import time

from rayssl.cli.advice import say_next
from rayssl.cli.parser import OVERRIDES, Verbs, declare


def add(verbs: Verbs) -> None:
    """Declares the verb of this file."""
    text = "test a method, encoder or source, ours or yours, against the rules of its kind"
    name = ("name", {"metavar": "NAME", "help": "simclr, package.module:Class, file.py:Class, or an experiment's YAML"})
    declare(verbs, check, text, "configs/own_method/barlow.py:BarlowTwins", name, OVERRIDES)


def check(arguments: argparse.Namespace) -> int:
    """Tests a component on a small corpus of tones. Methods and encoders: one rank = two ranks in value and gradient,
    6 steps = 3 + resume + 3, the same bits twice, bfloat16 close to float32. Encoders: shapes and export. Sources:
    listing and reading. Prints a line for each check; the status is 1 if any check failed.
    """
    from rayssl.checks.component import check as checks

    began, failed, count = time.monotonic(), 0, 0
    for outcome in checks(arguments.name, arguments.overrides):
        print(outcome.text(), flush=True)
        count, failed = count + 1, failed + (not outcome.passed)
    verdict = "all hold" if not failed else f"{failed} of them failed"
    print(f"{arguments.name}: {count} checks in {time.monotonic() - began:.0f} s, {verdict}")
    if failed:
        say_next(arguments, "check", arguments.name, *arguments.overrides, note="when it is corrected")
    elif arguments.name.endswith((".yaml", ".yml")):
        say_next(arguments, "train", arguments.name, *arguments.overrides)
    else:
        from rayssl.checks.component import key_of

        verb, file = ("prepare", "PREPARATION") if key_of(arguments.name) == "source.name" else ("train", "EXPERIMENT")
        key = "corpora.train.source.name" if verb == "prepare" else key_of(arguments.name)
        say_next(arguments, verb, f"{file}.yaml", f"{key}={arguments.name}", note="with a file of yours")
    return int(failed > 0)
