"""The result of a check of the doctor."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

State = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor.

    ``what`` was checked and its ``state``. With ``warn`` rayssl runs, but slower or less safely than it should. With
    ``FAIL`` it does not run. ``found`` says what is there, and ``fix`` what to do about it (empty with ``ok``).
    """

    what: str
    state: State
    found: str
    fix: str = ""

    def text(self) -> str:
        """``state  what: found``, and a second line with the fix, if there is one."""
        line = f"{self.state:<4}  {self.what}: {self.found}"
        return f"{line}\n      -> {self.fix}" if self.fix else line


def ok(what: str, found: str) -> Finding:
    """A finding with nothing to fix."""
    return Finding(what, "ok", found)


def warn(what: str, found: str, fix: str) -> Finding:
    """A finding of something that runs, but should be fixed."""
    return Finding(what, "warn", found, fix)


def fail(what: str, found: str, fix: str) -> Finding:
    """A finding of something that does not run."""
    return Finding(what, "FAIL", found, fix)


def as_json(findings: Iterable[Finding]) -> str:
    """A JSON list of objects with ``what``, ``state``, ``found`` and ``fix``."""
    return json.dumps([asdict(finding) for finding in findings], indent=1)


def verdict(findings: Iterable[Finding]) -> tuple[int, str]:
    """The exit status (1 with any FAIL, otherwise 0) and a summary line."""
    states = [finding.state for finding in findings]
    failed, warned = states.count("FAIL"), states.count("warn")
    if not failed and not warned:
        return 0, f"{len(states)} checks, all fine"
    return int(failed > 0), f"{len(states)} checks: {failed} failed, {warned} with a warning"


def size(count: float) -> str:
    """``count`` bytes as text, in MiB or GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
