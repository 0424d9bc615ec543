"""Faults of the object store: the run lies in a real S3 server, and a proxy before it does the harm."""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import socket
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Protocol

from tests.fault_proxy import FaultProxy, Gate
from tests.faults.places import ROOT, PlaceError, SharedHead
from tests.faults.trial import Trial

_ENDPOINT = "AWS_ENDPOINT_URL"


class Proxy(Protocol):
    """What stands between rayssl and the store."""

    endpoint: str

    def begin(self) -> None:
        """From now on it does harm."""

    def end(self) -> None:
        """From now on it does none."""

    def close(self) -> None:
        """Ends it."""


class Outage(Gate):
    """No answer at all."""

    def begin(self) -> None:
        self.shut()

    def end(self) -> None:
        self.open()


class Line(Gate):
    """A bad line: each piece of an answer comes late by up to twice ``latency_s``, or is a reset with ``resets``."""

    def __init__(self, endpoint: str, latency_s: float = 0.0, resets: float = 0.0) -> None:
        self._harm, self._latency_s, self._resets = False, latency_s, resets
        self._random = random.Random(0)
        super().__init__(endpoint)

    def begin(self) -> None:
        self._harm = True

    def end(self) -> None:
        self._harm = False

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(1 << 16):
                if self._harm and one.getpeername() == self._target:
                    time.sleep(self._latency_s * self._random.uniform(0, 2))
                    if self._random.random() < self._resets:
                        other.sendall(data[: len(data) // 2])
                        for end in (other, one):
                            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                            end.close()
                        return
                other.sendall(data)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Burst(FaultProxy):
    """A part of the requests gets one of ``harm`` instead of its answer: a status, or half of it."""

    def __init__(self, endpoint: str, harm: tuple[str, ...], share: float) -> None:
        super().__init__(endpoint)
        self._share, self._harms, self._doing = share, harm, False
        self._random = random.Random(0)

    def begin(self) -> None:
        self._doing = True

    def end(self) -> None:
        self._doing = False

    def _fault(self, method: bytes) -> str:
        if not self._doing or self._random.random() >= self._share:
            return ""
        harm = self._random.choice(self._harms)
        return harm if harm.isdigit() or method == b"GET" else ""


MAKERS: dict[str, Callable[[str], Proxy]] = {
    "store-latency": lambda endpoint: Line(endpoint, latency_s=1.0),
    "store-resets": lambda endpoint: Line(endpoint, resets=0.3),
    "store-errors": lambda endpoint: Burst(endpoint, ("500", "503"), 0.7),
    "store-half": lambda endpoint: Burst(endpoint, ("cut", "reset"), 0.5),
    "store-outage": Outage,
}


class StoreHead(SharedHead):
    """A shared head whose processes reach an S3 server through a proxy."""

    name = "shared head with an S3 server"
    maker: Callable[[str], Proxy]

    def __init__(self, folder: Path, variables: Mapping[str, str] | None = None) -> None:
        super().__init__(folder, variables)
        self._store = launcher().Store(self._short / "s3")
        self.proxy: Proxy | None = None

    def up(self) -> None:
        if self.proxy is None:
            (self._short / "s3").mkdir()
            access = self._store.up()
            os.environ.update(access)  # this process reads past the proxy
            self.proxy = type(self).maker(access[_ENDPOINT])
            self.environment |= {**access, _ENDPOINT: self.proxy.endpoint, "RAY_DEDUP_LOGS": "0"}
            import s3fs

            s3fs.S3FileSystem().call_s3("create_bucket", Bucket="faults")
        super().up()

    @property
    def home(self) -> str:
        """Where the corpus and the runs lie."""
        return "s3://faults"

    def down(self) -> None:
        self._end_all()
        if self.proxy is not None:
            self.proxy.close()
        self._store.stop(signal.SIGKILL)  # before its folder goes, which has its process ids
        super().down()


def harm(trial: Trial) -> str:
    """The proxy does harm for ``--seconds``."""
    assert isinstance(trial.place, StoreHead) and trial.place.proxy is not None
    trial.place.proxy.begin()
    try:
        trial.pause(trial.fault_s)
    finally:
        trial.place.proxy.end()
    return f"the store, for {trial.fault_s:g} s"


def place_for(name: str) -> type[StoreHead]:
    """The place of a kind: its proxy is of that kind."""
    return type("StoreHead", (StoreHead,), {"maker": staticmethod(MAKERS[name])})


def launcher() -> ModuleType:
    """``infra/local/objectstore.py`` as a module."""
    spec = importlib.util.spec_from_file_location("objectstore", ROOT / "infra/local/objectstore.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    absent = module.missing_commands()
    if absent:
        raise PlaceError(f"no S3 server here: {', '.join(absent)} not found (packages radosgw, ceph-mon, ceph-osd)")
    return module
