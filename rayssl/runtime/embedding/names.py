"""The names of speakers, recordings and labels beside their indices, in tables of embeddings."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from rayssl.data.shards import KINDS


def with_names(table: pa.Table, names: Callable[[], dict[str, list[str]]]) -> pa.Table:
    """``table`` with a column ``<kind>_name`` behind each of its columns ``speaker``, ``recording`` and ``label``.

    ``names`` gives those of the corpus, see `rayssl.data.shards.read_labels`; it is not called if all indices are -1,
    which has the name null.
    """
    listed = dict[str, list[str]]()
    for kind in KINDS:
        if not listed and pc.any(pc.greater_equal(table[kind], 0)).as_py():
            listed = names()
        mine = listed.get(kind, [])
        found = [mine[index] if 0 <= index < len(mine) else None for index in table[kind].to_pylist()]
        place = table.schema.get_field_index(kind) + 1
        table = table.add_column(place, f"{kind}_name", pa.array(found, pa.string()))
    return table
