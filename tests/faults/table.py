"""The results as a table in plain text, a line for each fault and phase."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from tests.faults.trial import Result

_HEAD = (
    "fault", "during", "trials", "by itself", "same command", "by its advice", "same bits", "steps lost",
    "seconds lost", "lines read",
)  # fmt: skip


def table(results: list[Result]) -> str:
    """Counts of trials; of steps, seconds and lines the mean and the most of the trials that were not lost."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.kind, result.during), []).append(result)
    rows = [_HEAD, *(_row(kind, during, found) for (kind, during), found in groups.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = []
    for number, row in enumerate(rows):
        padded = enumerate(zip(row, widths, strict=True))
        cells = [cell.ljust(width) if column < 2 else cell.rjust(width) for column, (cell, width) in padded]
        lines.append(" | ".join(cells).rstrip())
        if number == 0:
            lines.append("-+-".join("-" * width for width in widths))
    return "\n".join(lines)


def _row(kind: str, during: str, found: list[Result]) -> tuple[str, ...]:
    whole = [result for result in found if result.ended != "lost"]
    counts = [
        sum(result.ended == how for result in found) for how in ("by itself", "by the same command", "by its advice")
    ]
    return (
        kind,
        during,
        str(len(found)),
        *(str(count) for count in counts),
        f"{sum(result.same_bits for result in found)} of {len(found)}",
        spread([result.steps_lost for result in whole]),
        spread([result.seconds_lost for result in whole]),
        spread([result.lines for result in whole]),
    )


def spread(values: Sequence[float | None]) -> str:
    """The mean and, after a stroke, the most; a dash where there is nothing."""
    known = [value for value in values if value is not None]
    return f"{mean(known):.0f} / {max(known):.0f}" if known else "-"
