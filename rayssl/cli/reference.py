"""``rayssl keys | schema | list | completion``: what a configuration may hold, for people, editors and shells."""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
from itertools import groupby
from typing import TYPE_CHECKING

from rayssl.cli.parser import Argument, Verbs, declare

if TYPE_CHECKING:
    from rayssl.keys.listing import Key

_KINDS = ("experiment", "preparation", "sweep")
_LISTS = ("methods", "encoders", "sources", "configs")


def add(verbs: Verbs) -> None:
    """Declares the verbs of this file."""
    some = "a dotted key, the end of one, or the name of a component; all keys if it is left out"
    prefix: Argument = ("prefix", {"nargs": "?", "default": "", "metavar": "PREFIX", "help": some})
    shown = declare(verbs, keys, "what each key means, its values and its default", "views.distort", prefix)
    shown.add_argument("--of", choices=_KINDS, help="only the keys of this kind of file")
    shown.add_argument("--markdown", action="store_true", help="print the reference of all keys as Markdown instead")
    kind: Argument = ("kind", {"nargs": "?", "choices": _KINDS, "default": "experiment", "help": "default experiment"})
    made = declare(verbs, schema, "JSON schema of a kind of file, for editors", "sweep > sweep.json", kind)
    made.add_argument("--built-in", action="store_true", help="leave out the components of installed packages")
    what: Argument = ("what", {"choices": _LISTS, "help": "what to list"})
    folder: Argument = ("folder", {"nargs": "?", "default": "configs", "metavar": "FOLDER", "help": "of configs"})
    declare(verbs, list_, "names to choose from, with a line about each", "methods", what, folder)
    shell: Argument = ("shell", {"choices": ("bash", "zsh"), "help": "the shell"})
    declare(verbs, completion, "completion of verbs and options for a shell", "bash > ~/.rayssl.bash", shell)


def keys(arguments: argparse.Namespace) -> int:
    """Explains keys of the YAML files: what each may hold, its default, when to change it, and which choice of a
    method, an encoder or a source brings it.
    """
    from rayssl.errors import ConfigError
    from rayssl.keys import listing

    if arguments.markdown:
        from rayssl.keys.reference import markdown

        print(markdown(), end="")
        return 0
    if ":" in arguments.prefix:
        _print_keys(listing.of_component(arguments.prefix))
        return 0
    kinds = [arguments.of] if arguments.of else _KINDS
    listed = {kind: listing.keys(kind) for kind in kinds}
    found = {kind: listing.find(arguments.prefix, listed[kind]) for kind in kinds} if arguments.prefix else listed
    if not any(found.values()):
        nearest = [near for kind in kinds if (near := listing.nearest(arguments.prefix, listed[kind]))]
        hint = f"did you mean '{nearest[0]}'?" if nearest else "rayssl keys alone lists all"
        raise ConfigError(f"no key is called '{arguments.prefix}'; {hint}")
    for kind, some in found.items():
        if some and len(kinds) > 1:
            print(f"# {kind}\n")
        _print_keys(some)
    return 0


def _print_keys(found: list[Key]) -> None:
    from rayssl.keys.listing import in_lines

    width = max(40, min(shutil.get_terminal_size().columns, 120))

    def wrapped(text: str, indent: str) -> str:
        return textwrap.fill(
            text,
            width,
            initial_indent=indent,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )

    for choice, some in groupby(found, lambda key: key.choice):
        if choice:
            print(f"with {choice}\n")
        for key in some:
            print(key.path)
            print(wrapped(in_lines(key), "  "))
            print(wrapped(key.text, "    ") + "\n")


def schema(arguments: argparse.Namespace) -> int:
    """Prints the JSON schema (draft 7) of experiments, preparations or sweeps. An editor with a YAML language server
    then completes and explains keys, if the file begins with: # yaml-language-server: $schema=PATH_OR_URL
    """
    from rayssl.keys.schemas import schema as made

    print(json.dumps(made(arguments.kind, installed=not arguments.built_in), indent=1, ensure_ascii=False))
    return 0


def list_(arguments: argparse.Namespace) -> int:
    """Lists methods, encoders (front ends and backbones), sources, or the configurations of a folder, with a line
    about each. Components that installed packages register are among them.
    """
    from rayssl.keys import catalogue

    wanted = arguments.what
    found = list(catalogue.configs(arguments.folder) if wanted == "configs" else catalogue.components(wanted))
    width = max(40, min(shutil.get_terminal_size().columns, 120))
    for group, entries in groupby(found, lambda entry: entry.group):
        rows = list(entries)
        column = 2 + max(len(row.name) for row in rows)
        print(f"{group}:")
        for row in rows:
            if column > width // 2:  # names so long that lines would be narrow
                print(f"  {row.name}")
                print(textwrap.fill(row.line, width, initial_indent=" " * 6, subsequent_indent=" " * 6))
            else:
                indent = " " * (column + 2)
                print(
                    textwrap.fill(row.line, width, initial_indent=f"  {row.name:<{column}}", subsequent_indent=indent)
                )
    return 0


def completion(arguments: argparse.Namespace) -> int:
    """Prints a script that completes verbs, options and files in bash (source it in ~/.bashrc) or in zsh (write it to
    a file _rayssl in a folder of $fpath).
    """
    import shtab

    _complete_files(arguments.program, shtab.FILE)
    print(shtab.complete(arguments.program, arguments.shell))
    return 0


def _complete_files(parser: argparse.ArgumentParser, files: object) -> None:
    """Marks the arguments of ``parser`` and of its verbs that name files or folders."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                _complete_files(each, files)
        elif action.metavar in ("CONFIG", "RUN", "CORPUS", "OUT", "FILE", "FOLDER", "NIGHT", "PAGE", "URI"):
            action.complete = files  # type: ignore[attr-defined]
