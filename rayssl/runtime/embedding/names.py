"""The names of speakers, recordings and labels beside their indices, in tables of embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from rayssl.data.shards import KINDS


def with_names(table: pa.Table, names: Mapping[str, Sequence[str]]) -> pa.Table:
    """``table`` with a column ``<kind>_name`` behind each of its columns ``speaker``, ``recording`` and ``label``.

    ``names``: those of the corpus, see `rayssl.data.shards.read_labels`. The name of the index -1 is null.
    """
    for kind in KINDS:
        place = table.schema.get_field_index(kind)
        if place < 0:
            continue
        listed = names[kind]
        found = [listed[index] if 0 <= index < len(listed) else None for index in table[kind].to_pylist()]
        table = table.add_column(place + 1, f"{kind}_name", pa.array(found, pa.string()))
    return table
