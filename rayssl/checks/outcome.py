"""The outcome of one check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rayssl.errors import UserError, described


@dataclass(frozen=True)
class Outcome:
    """One line: the rule that was checked, whether the component follows it, and details."""

    name: str
    passed: bool
    detail: str

    def text(self) -> str:
        """``ok    name: detail``, or the same with FAIL."""
        return f"{'ok' if self.passed else 'FAIL':<4}  {self.name}: {self.detail}"


def attempt(name: str, check: Callable[[], tuple[bool, str]]) -> Outcome:
    """The outcome of ``check``. An error that it raises is a fault of the component: the outcome names its place."""
    try:
        return Outcome(name, *check())
    except UserError as error:
        return Outcome(name, False, str(error))
    except Exception as error:
        return Outcome(name, False, described(error))
