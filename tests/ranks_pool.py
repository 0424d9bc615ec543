"""The `ranks` fixture: one pool of gloo processes for the whole session, spawned when a test first asks for it.

``ranks(function, *args, world=2, timeout=60)`` runs the module-level ``function(rank, world, *args)`` in every process
of a group of ``world`` and returns the results in rank order. An exception in a rank is raised in the test, with the
rank's traceback as a note; ranks that do not answer in time are a TimeoutError. After either the pool is rebuilt, since
the others may be left inside a collective.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest

_START_S = 120.0  # importing torch in two processes on a busy machine
_GRACE_S = 2.0  # how long the other ranks may still answer once one has failed


class Pool:
    """``world`` spawned processes that form one gloo group and wait for work."""

    def __init__(self, world: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory(prefix="ranks-")
        store = (Path(self._folder.name) / "store").as_uri()
        self._connections: list[Connection] = []
        self._processes = []
        for rank in range(world):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, world, store, theirs), daemon=True)
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)
        try:
            self._collect(time.monotonic() + _START_S, "start")
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        return [process.pid or 0 for process in self._processes]

    def run(self, function: Callable[..., Any], args: tuple[Any, ...], timeout: float) -> list[Any]:
        task = pickle.dumps((function, args))
        for connection in self._connections:
            connection.send_bytes(task)
        return self._collect(time.monotonic() + timeout, function.__qualname__)

    def close(self) -> None:
        """Ends the processes, each by its own handle."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join(10)
        for connection in self._connections:
            connection.close()
        self._folder.cleanup()

    def _collect(self, deadline: float, what: str) -> list[Any]:
        answers: dict[int, Any] = {}
        failure: tuple[int, BaseException] | None = None
        while len(answers) < len(self._connections):
            waiting = [c for rank, c in enumerate(self._connections) if rank not in answers]
            ready = wait(waiting, max(0.0, deadline - time.monotonic()))
            if not ready and failure is None:
                silent = [rank for rank in range(len(self._connections)) if rank not in answers]
                raise TimeoutError(f"{what}: no answer from rank {', '.join(map(str, silent))} in time")
            if not ready:
                break
            for connection in ready:
                rank = self._connections.index(connection)  # type: ignore[arg-type]
                answers[rank], error = _receive(rank, connection)  # type: ignore[arg-type]
                if error is not None and failure is None:
                    failure = (rank, error)
                    deadline = min(deadline, time.monotonic() + _GRACE_S)
        if failure is not None:
            raise failure[1]
        return [answers[rank] for rank in range(len(self._connections))]


class Ranks:
    """What the fixture gives; holds one pool for each world size in use."""

    def __init__(self) -> None:
        self._pools: dict[int, Pool] = {}

    def __call__(self, function: Callable[..., Any], *args: Any, world: int = 2, timeout: float = 60.0) -> list[Any]:
        if world not in self._pools:
            self._pools[world] = Pool(world)
        try:
            return self._pools[world].run(function, args, timeout)
        except BaseException:
            self._pools.pop(world).close()
            raise

    def pids(self, world: int = 2) -> list[int]:
        """Process ids of the live pool of this size, in rank order; empty if there is none."""
        return self._pools[world].pids if world in self._pools else []

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Runs a function in several gloo processes: ``ranks(function, *args, world=2) -> list`` of results by rank."""
    pools = Ranks()
    yield pools
    pools.close()


def _receive(rank: int, connection: Connection) -> tuple[Any, BaseException | None]:
    try:
        value, error, trace = pickle.loads(connection.recv_bytes())
    except EOFError:
        return None, RuntimeError(f"rank {rank} died")
    if error is not None:
        error.add_note(f"in rank {rank}:\n{trace}")
    return value, error


def _serve(rank: int, world: int, store: str, connection: Connection) -> None:
    """The life of one rank; ends when the pool closes the pipe or kills it."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    connection.send_bytes(pickle.dumps((None, None, "")))
    with suppress(EOFError):
        while True:
            task = connection.recv_bytes()
            try:
                function, args = pickle.loads(task)
                answer = pickle.dumps((function(rank, world, *args), None, ""))
            except BaseException as error:
                answer = _failure(error)
            connection.send_bytes(answer)


def _failure(error: BaseException) -> bytes:
    trace = traceback.format_exc()
    try:
        answer = pickle.dumps((None, error, trace))
        pickle.loads(answer)  # some exceptions pickle, and then cannot be built again
    except Exception:
        answer = pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}"), trace))
    return answer
