"""Cells, tables and notes of a comparison, as HTML. Texts are escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from rayssl.reports.comparison.reading import Group


def swatch(group: Group) -> str:
    """The group's line and number, as HTML."""
    dashes = {"-": "", "--": "6 3", ":": "2 3", "-.": "7 3 2 3"}[group.line]
    line = f'<line x1="1" y1="6" x2="25" y2="6" stroke="{group.colour}" stroke-width="4" stroke-dasharray="{dashes}"/>'
    return f'<svg class="swatch" viewBox="0 0 26 12" role="img">{line}</svg><b>{group.number}</b>&nbsp; '


def text(head: str) -> str:
    """The head of a column of texts."""
    return f"<th>{escape(head)}</th>"


def number(said: str) -> str:
    """A cell of a column of numbers; among the heads of `table` it becomes a head."""
    return f'<td class="number">{escape(said)}</td>'


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of ``heads`` and ``rows`` of cells, which are HTML; a narrow page scrolls it."""
    head = "".join(cell.replace("<td", "<th").replace("</td>", "</th>") for cell in heads)
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    whole = f'<table class="compare"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll">{whole}</div>'


def note(notes: Sequence[str]) -> str:
    """A paragraph below a table; empty without ``notes``."""
    return f'\n<p class="soft">{escape(" ".join(notes))}</p>' if notes else ""
