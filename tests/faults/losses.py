"""Faults of whole nodes: one is lost at once, or is told to leave; it comes back later."""

from __future__ import annotations

import signal
import time

from tests.faults import processes
from tests.faults.nodes import Nodes
from tests.faults.processes import titled
from tests.faults.trial import Missed, Trial
from tests.faults.victims import TITLES

BACK_S = 10.0  # how long a node is away
_LEAVES_S = 120.0


def lose_node(trial: Trial) -> str:
    """A node with a rank is lost, and comes back after `BACK_S`."""
    place, node = node_of_a_rank(trial)
    place.lose(node)
    _back(trial, place, node)
    return f"node {node}, lost"


def term_node(trial: Trial) -> str:
    """A node with a rank gets SIGTERM, as a pod does; when it has ended, another one takes its place."""
    place, node = node_of_a_rank(trial)
    launcher = place.launcher(node)
    if launcher is None or not launcher.signal(signal.SIGTERM):
        raise Missed(f"node {node} has no ray start")
    told = time.monotonic()
    gone = processes.wait_until(lambda: not launcher.alive(), _LEAVES_S, 0.2)
    text = f"after {time.monotonic() - told:.0f} s" if gone else f"still there after {_LEAVES_S:.0f} s, then killed"
    place.lose(node)
    _back(trial, place, node)
    return f"node {node}, SIGTERM, gone {text}"


def lose_head(trial: Trial) -> str:
    """The head is lost, and comes back after `BACK_S` with what its GCS has written to Redis."""
    assert isinstance(trial.place, Nodes)
    trial.place.lose(0)
    _back(trial, trial.place, 0)
    return "the head, lost"


def node_of_a_rank(trial: Trial) -> tuple[Nodes, int]:
    """The trial's nodes, and one of them with a rank."""
    place = trial.place
    assert isinstance(place, Nodes)
    nodes = range(1, place.workers + 1)
    with_rank = [node for node in nodes if titled(place.on(node), TITLES["worker"])]
    return place, trial.random.choice(with_rank or list(nodes))


def _back(trial: Trial, place: Nodes, node: int) -> None:
    trial.pause(BACK_S)
    place.start_node(node)
