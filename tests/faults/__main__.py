"""What becomes of a run when something fails: ``python -m tests.faults KIND --trials N --json``.

Each trial starts a command as a user types it, causes the fault at a random moment, lets the command end, and gives the
same command again if it failed. The result is compared, bit by bit, with a run that nothing has disturbed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from tests.faults.kinds import Kind, every
from tests.faults.moments import PHASES
from tests.faults.places import PlaceError
from tests.faults.session import Limits, Session
from tests.faults.table import table
from tests.faults.trial import Result

_KILL_S = 60.0  # that a trial may take longer for each kill of a storm


def main() -> int:
    """Runs the trials. Status 1 if one of them is lost or has other bits, 2 if they cannot be tried here."""
    arguments = parsed(sorted(every()))
    kind = every(arguments.kills)[arguments.kind]
    wrong = unfit(arguments.kind, kind, arguments.during)
    if wrong:
        say(wrong)
        return 2
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # what was started is ended then, too
    folder = Path(arguments.folder or tempfile.mkdtemp(prefix="rayssl-faults-"))
    folder.mkdir(parents=True, exist_ok=True)
    more = _KILL_S * arguments.kills if arguments.kind == "storm" else 0.0
    limits, results = Limits(arguments.timeout + more, arguments.seconds, arguments.kills), list[Result]()
    try:
        with Session(arguments.kind, kind, arguments.during, folder, limits, say) as session:
            for number in range(arguments.trials):
                results.append(session.trial(arguments.seed + number))
    except PlaceError as error:
        say(str(error))
        return 2
    finally:
        if not arguments.folder:
            shutil.rmtree(folder, ignore_errors=True)
    if arguments.json:
        print(json.dumps([result.as_json() for result in results], indent=1))
    else:
        print(table(results))
        for result in results:
            print(f"\n{result.kind}, seed {result.seed}, step {result.step}: {result.ended} {result.why}".rstrip())
            print("\n".join(f"    {line}" for line in result.read))
            if result.differences:
                print(f"    other bits: {', '.join(result.differences)}")
    return 0 if all(result.ended != "lost" and result.same_bits for result in results) else 1


def parsed(kinds: list[str]) -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kind", choices=kinds, metavar="KIND", help=", ".join(kinds))
    parser.add_argument("--trials", type=int, default=1, metavar="N", help="how many (default 1)")
    parser.add_argument("--during", choices=list(PHASES), default="training", metavar="PHASE", help=", ".join(PHASES))
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the first trial; the next one has N + 1")
    parser.add_argument(
        "--timeout", type=float, default=600.0, metavar="S", help="of a trial (default 600 s); more in a storm"
    )
    text = "how long an outage, a full disk and the like last (default 60 s)"
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S", help=text)
    parser.add_argument("--kills", type=int, default=30, metavar="N", help="of a storm (default 30)")
    parser.add_argument("--folder", metavar="DIR", help="where all runs stay (default: a temporary one, removed)")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    return parser.parse_args()


def unfit(name: str, kind: Kind, during: str) -> str:
    """Why these trials cannot be tried here, in one line; empty if they can."""
    if during not in kind.phases:
        return f"{name}: not during {during}; there are {', '.join(kind.phases)}"
    if kind.root and os.geteuid() != 0:
        return f"{name}: needs root, for mounts and network namespaces"
    absent = [command for command in kind.packages if shutil.which(command) is None]
    return f"{name}: {', '.join(absent)} not found; install the packages first" if absent else ""


def say(line: str) -> None:
    """Tells about the progress, on standard error."""
    print(f"faults: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
