"""What a check has found."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

State = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: ``warn`` runs, but slower or less safely than it should; ``FAIL`` does not run."""

    what: str
    state: State
    found: str
    mend: str = ""

    def text(self) -> str:
        """``state  what: found``, and what to mend on a line of its own."""
        line = f"{self.state:<4}  {self.what}: {self.found}"
        return f"{line}\n      -> {self.mend}" if self.mend else line


def ok(what: str, found: str) -> Finding:
    """Nothing to mend."""
    return Finding(what, "ok", found)


def warn(what: str, found: str, mend: str) -> Finding:
    """It runs, but should be mended."""
    return Finding(what, "warn", found, mend)


def fail(what: str, found: str, mend: str) -> Finding:
    """It does not run."""
    return Finding(what, "FAIL", found, mend)


def as_json(findings: Iterable[Finding]) -> str:
    """A JSON list of objects with ``what``, ``state``, ``found`` and ``mend``."""
    return json.dumps([asdict(finding) for finding in findings], indent=1)


def verdict(findings: Iterable[Finding]) -> tuple[int, str]:
    """The exit status, 1 with any FAIL and else 0, and a line that sums up."""
    states = [finding.state for finding in findings]
    failed, warned = states.count("FAIL"), states.count("warn")
    if not failed and not warned:
        return 0, f"{len(states)} checks, all fine"
    return int(failed > 0), f"{len(states)} checks: {failed} failed, {warned} with a warning"


def size(count: float) -> str:
    """Bytes for people, in MiB or GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
