"""Threads that make items a few in advance, while the caller uses the last one."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, Full, Queue
from typing import Any, Generic, TypeVar

S = TypeVar("S")
T = TypeVar("T")


def made_ahead(make: Callable[[S], T], items: Iterable[S], threads: int) -> Iterator[T]:
    """``make(item)`` of each item, in order. While the caller uses one, ``threads`` threads make as many more.

    So ``threads + 1`` are in RAM at most. What ``make`` raises is raised where it is taken; nothing is made after it.
    """
    waiting = deque[Future[T]]()
    pool = ThreadPoolExecutor(threads, "rayssl-ahead")
    try:
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class ReadAhead(Generic[T]):
    """A context in which another thread, called ``name``, makes ``items``, at most ``count`` in advance.

    What the items raise is raised where they are taken. The thread ends with the context.
    """

    def __init__(self, items: Iterator[T], count: int, name: str) -> None:
        self._items = items
        self._made: Queue[Any] = Queue(count)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._make, name=name, daemon=True)

    def begin(self) -> Iterator[T]:
        """Starts the thread; returns its items. For a thread that is not waited for, instead of the context."""
        self._thread.start()
        return self._take()

    def __enter__(self) -> Iterator[T]:
        return self.begin()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _make(self) -> None:
        try:
            for item in self._items:
                if not self._put(item):
                    return
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _put(self, made: Any) -> bool:
        while not self._over.is_set():
            try:
                self._made.put(made, timeout=0.1)
            except Full:
                continue
            return True
        return False

    def _take(self) -> Iterator[T]:
        while True:
            try:
                made = self._made.get(timeout=1.0)
            except Empty:
                continue
            if made is None:
                return
            if isinstance(made, BaseException):
                raise made
            yield made
