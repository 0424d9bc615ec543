"""The program ``rayssl``: its verbs, and its exit status.

A user's mistake prints one line and exits with status 2. A defect of rayssl prints its traceback.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from rayssl import __version__
from rayssl.cli import components, configuration, data, fetching, machine, reference, results, start, training, using
from rayssl.cli.mistakes import CommandParser
from rayssl.cli.parser import Verb
from rayssl.errors import Stopped, UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit status. ``argv`` None: the arguments of this process."""
    arguments = _arguments(argv)
    verb: Verb = arguments.verb_function
    try:
        status = verb(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except UserError as error:
        print(f"rayssl {arguments.verb}: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"rayssl {arguments.verb}: {stopped}", file=sys.stderr)
        return stopped.status
    except KeyboardInterrupt:
        print(f"rayssl {arguments.verb}: interrupted; the same command resumes", file=sys.stderr)
        return 130
    finally:
        _leave_ray()


def _leave_ray() -> None:
    if "ray" in sys.modules and not os.environ.get("RAYSSL_KEEP_RAY"):
        from rayssl.runtime.cluster import disconnect

        disconnect()


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The parsed arguments. Overrides may also follow an option, which argparse alone does not accept."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    wrong = [argument for argument in rest if argument.startswith("-") or not hasattr(arguments, "overrides")]
    if wrong:
        arguments.verb_parser.refuse(wrong[0])
    if rest:
        arguments.overrides += rest
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="rayssl",
        description="Self- and semi-supervised audio training on Ray.",
        epilog="URIs: local paths, file:// or s3:// (AWS_ENDPOINT_URL and AWS_* credentials from the environment).",
    )
    parser.add_argument("--version", action="version", version=f"rayssl {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    # in the order of the help
    for group in (start, configuration, fetching, data, training, results, using, components, machine, reference):
        group.add(verbs)
    parser.set_defaults(program=parser)  # for the verb that writes the completion of all of them
    return parser
