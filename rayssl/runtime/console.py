"""What the processes of a cluster print, on the driver's screen: their events, and other lines without Ray's colours.

Ray brings what workers print to the driver line by line. There is no public way to do something else with these lines
than Ray does, so `take_over` replaces Ray's own handler. If a later Ray has none, its lines stay as they are.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

from rayssl.progress import Line, Screen, decode, encode
from rayssl.progress.events import MARK, Event

_RAY = "ray_print_logs"  # the name of Ray's handler
_OURS = "rayssl"
# processes of Ray itself: what they print for people has a mark of its own; their last words fill pages
_OF_RAY = ("raylet", "gcs_server", "log_monitor")
_FOR_PEOPLE = ":info_message:"
_LAST_WORDS = re.compile(r"\s*Last \d+ lines of the Raylet logs:.*", re.DOTALL)  # they are in Ray's folder of logs
_OF_TRAIN = ("PlacementGroupCleaner", "SynchronizationActor", "DatasetManager")  # their errors end no training
_USUAL = (  # on a machine with few cores; and the death of a process, which the driver tells in its own line
    "worker processes have been started on node",
    "A worker died or was killed while executing a task by an unexpected system error",
)
_REPEATED = "Task _map_task failed. There are infinite retries remaining"


def tell(event: Event) -> None:
    """Called in a worker: brings ``event`` to the driver's screen."""
    sys.stdout.write(encode(event) + "\n")
    sys.stdout.flush()


def take_over(screen: Screen, verbose: bool = False) -> None:
    """Called in the driver, once it is connected: ``screen`` shows what the processes of the cluster print from now on.

    ``verbose``: also what Ray's own processes print, and from which process each line is.
    """
    try:
        from ray._private import worker
        from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

        show = handler(screen, verbose)
        dispatcher.remove_handler(_RAY)
        dispatcher.remove_handler(_OURS)
        dispatcher.add_handler(_OURS, show)
        worker.print_to_stdstream = lambda data, *_, **__: show(data)  # what Ray has to say of the cluster
    except (ImportError, AttributeError):
        sys.stderr.write("rayssl: this Ray shows the workers' lines in its own way\n")


def handler(screen: Screen, verbose: bool) -> Callable[[dict[str, Any]], None]:
    """A function that shows on ``screen`` what Ray brings of one process: ``pid``, ``lines``, and whose they are."""

    def show(data: dict[str, Any]) -> None:
        for line in data.get("lines", ()):
            event = decode(line)
            if event is None and (text := _text(line, data, verbose)) is not None:
                event = Line(text)
            if event is not None:
                _show(event, screen)

    return show


def _show(event: Event, screen: Screen) -> None:
    try:
        screen.show(event)
    except ValueError as error:
        if "closed file" not in str(error):  # the stream ended before the cluster did: nobody reads any more
            raise


def _text(line: str, data: dict[str, Any], verbose: bool) -> str | None:
    """What a person is shown of ``line``; None if nothing."""
    pid = data.get("pid")
    if pid == "autoscaler":
        _, found, text = line.partition(":event_summary:")
        return text if found else None
    if not line.strip() or line.startswith(MARK):
        return None
    if verbose:
        return f"{_name(data)}: {line}"
    if pid in _OF_RAY and "ip" in data:  # from a log file of that process
        return line.split(_FOR_PEOPLE, 1)[1] if _FOR_PEOPLE in line else None
    if data.get("actor_name") in _OF_TRAIN or any(usual in line for usual in _USUAL):
        return None
    if line.startswith(_REPEATED):
        return "a process that read data died; its task is repeated"
    return _LAST_WORDS.sub("", line)


def _name(data: dict[str, Any]) -> str:
    what = data.get("actor_name") or data.get("task_name") or ""
    place = "" if data.get("ip") == data.get("localhost") else f" on {data.get('ip')}"
    return f"{what} {data.get('pid')}{place}".strip()
