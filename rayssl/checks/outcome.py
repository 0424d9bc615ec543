"""What one check found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rayssl.errors import UserError


@dataclass(frozen=True)
class Outcome:
    """One line: what was checked, whether it holds, and what was seen."""

    name: str
    passed: bool
    detail: str

    def text(self) -> str:
        """``ok    name: detail``, or FAIL."""
        return f"{'ok' if self.passed else 'FAIL':<4}  {self.name}: {self.detail}"


def attempt(name: str, check: Callable[[], tuple[bool, str]]) -> Outcome:
    """The outcome of ``check``. What it raises is a fault of the component, and is told with its place."""
    try:
        return Outcome(name, *check())
    except UserError as error:
        return Outcome(name, False, str(error))
    except Exception as error:
        return Outcome(name, False, described(error))


def described(error: BaseException) -> str:
    """An error on one line, with the line of code that raised it."""
    place, last = "", error.__traceback__
    while last is not None:
        place = f"{last.tb_frame.f_code.co_filename.rpartition('/')[2]}:{last.tb_lineno}"
        last = last.tb_next
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__} at {place}: {lines[0]}" if place else f"{type(error).__name__}: {lines[0]}"
