"""Cells of a comparison that several of its tables share."""

from __future__ import annotations

from rayssl.reports.comparison.reading import Group
from rayssl.reports.content import Cell, Column, Swatch
from rayssl.reports.run.reading import Record, is_number

_DASHES = {"-": "", "--": "6 3", ":": "2 3", "-.": "7 3 2 3"}


def group_cell(group: Group, name: str) -> Cell:
    """``name`` behind the group's line and number."""
    return Cell(name, _swatch(group))


def group_column(group: Group) -> Column:
    """A column of values of the group."""
    return Column(group.label, "code", _swatch(group))


def interval(result: Record, key: str, scale: float, decimals: int) -> str:
    """``[low, high]`` of a figure, with a space in front; empty without one, and for a point, which says nothing."""
    low, high = (result.get(f"{key}_{end}") for end in ("low", "high"))
    if low is None or high is None or not is_number(low) or not is_number(high) or low == high:
        return ""
    return f" [{scale * low:.{decimals}f}, {scale * high:.{decimals}f}]"


def _swatch(group: Group) -> Swatch:
    return Swatch(group.colour, _DASHES[group.line], group.number)
