"""``rayssl fetch``: public data sets, to the place that the configurations name."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rayssl.cli.parser import Verbs, declare
from rayssl.errors import ConfigError

if TYPE_CHECKING:
    from rayssl.data.fetch.catalogue import PublicSet
    from rayssl.data.fetch.download import Progress

_LINE_S = 30.0  # between two lines of progress where there is no terminal


def add(verbs: Verbs) -> None:
    """Declares the verb of this file."""
    text = "public data sets: list them, download one"
    got = declare(verbs, fetch, text, "fsdd --into runs/data")
    got.add_argument("name", nargs="?", metavar="NAME", help="a data set; without it, all are listed")
    got.add_argument("--into", metavar="FOLDER", default="runs/data", help="the place of data sets (default runs/data)")
    text = "take the files from this folder, not from the network: the archives, or the tables of a mirror"
    got.add_argument("--from", dest="mirror", metavar="FOLDER", help=text)
    got.add_argument("--keep", action="store_true", help="keep downloaded archives, in FOLDER/downloads")


def fetch(arguments: argparse.Namespace) -> int:
    """Downloads a public data set, verifies and unpacks it. After an interruption the same command resumes."""
    from pathlib import Path

    from rayssl import storage
    from rayssl.data.fetch import catalogue, fetching

    for name in ("into", "mirror"):
        place = getattr(arguments, name)
        if place is not None and storage.is_remote(place):
            option = "from" if name == "mirror" else name
            raise ConfigError(f"--{option} {place}: must be a folder of this machine; rayssl prepare writes to s3://")
    into, mirror = Path(arguments.into), arguments.mirror
    if arguments.name is None:
        if mirror is not None:
            raise ConfigError(f"--from {mirror}: name the data set to fetch, for example fsdd")
        print(_table())
        return 0
    one = catalogue.find(arguments.name)
    done = fetching.there(one, into)
    if done is None:
        print(f"{one.name}: {one.what}")
        size = _size(one) if mirror is None or not one.files else f"from {mirror}"
        print(f"  {size}; licence: {one.licence}; {one.page}", flush=True)
        how = fetching.FetchOptions(into, None if mirror is None else Path(mirror), arguments.keep)
        with _progress() as progress:
            done = fetching.fetch(one, how, lambda line: print(line, flush=True), progress)
    print(done)
    if into != Path(catalogue.PLACE) and one.then:
        print(f"the configurations name {catalogue.PLACE}: override source.uri, or link {into} there")
    elif one.then:
        print(f"next: {one.then}")
    return 0


def _table() -> str:
    """The catalogue, a set in two lines."""
    from rayssl.data.fetch.catalogue import SETS

    wide = max(len(one.name) for one in SETS)
    lines = []
    for one in SETS:
        lines.append(f"{one.name:{wide}}  {one.what}")
        lines.append(f"{'':{wide}}  {_size(one)}; {one.licence}; for {one.purpose}")
    return "\n".join([*lines, "next: rayssl fetch NAME"])


def _size(one: PublicSet) -> str:
    from rayssl.data.fetch.catalogue import in_units

    if not one.files:
        return "by hand"
    exact = all(file.size for file in one.files)
    return f"{'' if exact else 'about '}{in_units(one.bytes)} to download"


@contextmanager
def _progress() -> Iterator[Progress]:
    """Shows how far a download is: a bar on a terminal, elsewhere a line now and then."""
    from rayssl.data.fetch.catalogue import in_units

    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=None, visible=False)
            yield lambda have, total: bar.update(task, completed=have, total=total or None, visible=True)
        return
    last = time.monotonic()

    def line(have: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _LINE_S:
            last = time.monotonic()
            print(f"  {in_units(have)}{f' of {in_units(total)}' if total else ''}", file=sys.stderr, flush=True)

    yield line
