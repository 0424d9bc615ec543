"""``rayssl init``: from a user's recordings to the first two files."""

from __future__ import annotations

import argparse
import os

from rayssl.cli.advice import say_next
from rayssl.cli.parser import Argument, Verbs, declare
from rayssl.progress import busy


def add(verbs: Verbs) -> None:
    """Declares the verbs of this file."""
    what = "folder, list (CSV or TSV), tar, Parquet, or an s3:// prefix of recordings"
    recordings: Argument = ("recordings", {"metavar": "RECORDINGS", "help": what})
    text = "look at your recordings and write prepare.yaml and train.yaml"
    made = declare(verbs, init, text, "recordings --out runs/mine", recordings)
    place = "folder or URI for both files, the corpora and the run (default: runs/NAME of the recordings)"
    made.add_argument("--out", metavar="FOLDER", help=place)
    kind = "what folders or columns name; sleep for nights (default: guessed)"
    made.add_argument("--for", choices=("speakers", "classes", "sleep"), dest="purpose", help=kind)
    made.add_argument("--overwrite", action="store_true", help="replace the two files if they are there")


def init(arguments: argparse.Namespace) -> int:
    """Guesses layout, speakers or classes, lengths and rates of recordings, and writes prepare.yaml and train.yaml for
    them and for this machine. Each guess has a comment in the files. The recordings are only read.
    """
    with busy(f"looks at {arguments.recordings}"):
        from rayssl.start.machine import here
        from rayssl.start.plan import paths, plan
        from rayssl.start.writing import summary, write

        made = plan(arguments.recordings, arguments.out or default_out(arguments.recordings), arguments.purpose, here())
        write(made, overwrite=arguments.overwrite)
    print(summary(made))
    how = ["--local"] if made.local else []
    note = "without Ray, which takes longer to start than it saves here" if how else ""
    say_next(arguments, "prepare", paths(made)["prepare.yaml"], *how, note=note)
    return 0


def default_out(recordings: str) -> str:
    """``runs/NAME``, after the last part of the place of the ``recordings`` without its ending."""
    place = recordings if "://" in recordings else os.path.abspath(recordings)
    name = place.rstrip("/").rpartition("/")[2]
    return f"runs/{os.path.splitext(name)[0] or 'mine'}"
