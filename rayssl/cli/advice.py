"""The last line of every verb: ``next:`` and the command that comes next for this user."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Mapping
from typing import Any

_LARGEST = 1 << 16  # bytes of a YAML file that is looked at
_MOST = 200  # files of a folder


def say_next(arguments: argparse.Namespace, *words: str, note: str = "", program: str = "rayssl") -> None:
    """Prints the command ``program WORDS``, unless the user asked for quiet or for JSON; ``note`` comes behind it."""
    if getattr(arguments, "quiet", False) or getattr(arguments, "json", False):
        return
    print(f"next: {shlex.join([program, *words])}{f'    ({note})' if note else ''}", flush=True)


def local(arguments: argparse.Namespace) -> list[str]:
    """``--local`` if the user gave it, for the next command too."""
    return ["--local"] if getattr(arguments, "local", False) else []


def trains_on(config: str, corpora: Mapping[str, str]) -> list[str]:
    """The experiments beside the preparation ``config`` that train on one of its ``corpora`` (names to URIs).

    Those whose name begins with the same word as that of ``config`` come first, then by name. Empty if ``config`` is
    not on a disk.
    """
    folder = os.path.dirname(os.path.abspath(config))
    if "://" in config or not os.path.isdir(folder):
        return []
    found = []
    names = sorted(name for name in os.listdir(folder) if name.endswith((".yaml", ".yml")))
    for name in names[:_MOST]:
        place = os.path.join(folder, name)
        uri = _corpus(place)
        if uri is not None and uri in corpora.values():
            found.append((name.split("_")[0] != os.path.basename(config).split("_")[0], name))
    return [os.path.join(os.path.dirname(config), name) for _, name in sorted(found)]


def _corpus(place: str) -> str | None:
    """``corpus.uri`` of the experiment at ``place``; None if it is none."""
    from rayssl.errors import UserError
    from rayssl.schema import load_yaml

    try:
        if os.path.getsize(place) > _LARGEST:
            return None
        with open(place, encoding="utf-8") as file:
            tree: Any = load_yaml(file.read(), place)
    except (OSError, UnicodeDecodeError, UserError):
        return None
    corpus = tree.get("corpus")
    return corpus.get("uri") if isinstance(corpus, dict) and "encoder" in tree else None
