"""Lists of utterances as text: CSV, TSV, or with semicolons, as spreadsheets of many countries write them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from difflib import get_close_matches

from rayssl import storage
from rayssl.errors import CorpusError


def rows(place: str, needed: str, others: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The lines of a list: the number of each line, and its values by column.

    The first line has the columns: commas, tabs or semicolons are between them, whichever it has most of. Spaces around
    names and values do not count. Columns that are not in ``others`` are passed over, but one that is almost called so
    would be missed without a word.

    Args:
        place: the URI of the list.
        needed: the column that each line must fill.
        others: the columns that may be there.

    Raises:
        CorpusError: the column ``needed`` is missing, a column comes twice or is misspelt, or a line has another number
            of values.
    """
    text = storage.read_text(place)
    first = text.split("\n", 1)[0]
    delimiter = max(",\t;", key=first.count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        columns = [" ".join(name.split()) for name in next(lines, [])]  # quotes may hold the end of a line
        _check(place, columns, needed, others)
        for line in lines:
            if not line:
                continue
            values = dict(zip(columns, map(str.strip, line), strict=False))
            if len(line) != len(columns) or not values[needed]:
                raise CorpusError(f"{place}: line {lines.line_num}: expected {len(columns)} columns with a {needed}")
            yield lines.line_num, values
    except csv.Error as error:
        raise CorpusError(f"{place}: line {lines.line_num}: {error}; correct the list") from None


def _check(place: str, columns: list[str], needed: str, others: Sequence[str]) -> None:
    known = [needed, *others]
    for name in columns:
        if columns.count(name) > 1:
            raise CorpusError(f"{place}: line 1: the column '{name}' comes twice; rename one")
        near = [] if name in known else get_close_matches(name.lower(), known, 1, 0.8)
        if near and near[0] not in columns:
            raise CorpusError(f"{place}: line 1: the column '{name}' must be called '{near[0]}', or something else")
    if needed not in columns:
        raise CorpusError(
            f"{place}: line 1: no column '{needed}' (found: {', '.join(filter(None, columns)) or 'nothing'})"
        )
