"""What workers print comes to the screen: events as events, other lines plain, Ray's last words not at all."""

from __future__ import annotations

import io
import json

from rayssl.progress import Line, Phase, encode, open_screen
from rayssl.runtime.console import handler


def shown(verbose: bool = False) -> list[str]:
    out = io.StringIO()
    show = handler(open_screen("json", out), verbose)
    where = {"ip": "10.0.0.2", "localhost": "10.0.0.1"}
    show(
        {"pid": 17, "actor_name": "RayTrainWorker", "lines": [encode(Phase("filled", 2.0)), "a warning", " "], **where}
    )
    show({"pid": "raylet", "lines": ["[state-dump] 43 lines", ":info_message:out of memory"], **where})
    show({"pid": "raylet", "lines": ["8 PYTHON worker processes have been started on node: 8e", "a node has died"]})
    died = "A worker died or was killed while executing a task by an unexpected system error. To troubleshoot"
    show({"pid": "raylet", "lines": [died], "is_err": True})
    show({"pid": 18, "actor_name": "PlacementGroupCleaner", "lines": ["Traceback"], **where})
    show({"pid": "autoscaler", "lines": ["noise", "x:event_summary:Adding 1 node"]})
    found = [json.loads(line) for line in out.getvalue().splitlines()]
    return [each["text"] if each["event"] == Line.name else each["event"] for each in found]


def test_lines_of_the_cluster() -> None:
    assert shown() == ["phase", "a warning", "out of memory", "a node has died", "Adding 1 node"]
    everything = shown(verbose=True)
    assert everything[1] == "RayTrainWorker 17 on 10.0.0.2: a warning"
    assert everything[2] == "raylet on 10.0.0.2: [state-dump] 43 lines" and len(everything) == 9


def test_a_raylets_last_words_are_left_out() -> None:
    out = io.StringIO()
    said = "Raylet is terminated. It is unexpected. Last 20 lines of the Raylet logs:\n    [state-dump]\n    x\n"
    handler(open_screen("json", out), False)({"pid": "raylet", "lines": [said], "is_err": False})
    assert json.loads(out.getvalue())["text"] == "Raylet is terminated. It is unexpected."


def test_a_stream_that_has_ended_is_no_error() -> None:
    """The cluster may outlive what it is shown on: a test's captured output, a closed terminal."""
    out = io.StringIO()
    show = handler(open_screen("plain", out), False)
    out.close()
    show({"pid": 17, "lines": ["a warning", encode(Phase("filled", 2.0))]})


def test_a_data_task_that_is_repeated_is_told_in_plain_words() -> None:
    out = io.StringIO()
    said = "Task _map_task failed. There are infinite retries remaining, so the task will be retried. Error: "
    handler(open_screen("json", out), False)({"pid": 1, "lines": [said]})
    assert json.loads(out.getvalue())["text"] == "a process that read data died; its task is repeated"
