"""From a source to rows: what a source lists, as Arrow columns of one row for each rendering, each row with its key.

Rows that have the same key may get into the same shard only together. A key is a hash of the seed and the name of a
rendering, or of its recording if clips are joined. So the order of keys shuffles the renderings of a source, and it
does not depend on who lists which part.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayssl.data import columns, conditions
from rayssl.data.sources.base import Reference
from rayssl.data.sources.checked import CheckedSource
from rayssl.data.units import CLEAN, ContentConfig
from rayssl.errors import CorpusError
from rayssl.random import draws

_ORDER = 21
_OTHERS = b"passed over"

#: ``recording_name`` is the recording of the rendering in the corpus, see `rayssl.data.units.recording_name`.
ROWS = pa.schema(
    [
        ("key", pa.uint64()),
        *((name, pa.string()) for name in ("name", "speaker", "recording", "label", "locator")),
        ("condition", pa.int16()),
        ("recording_name", pa.string()),
    ]
)


def list_rows(settings: ContentConfig, seed: int, part: str) -> Iterator[pa.RecordBatch]:
    """The rows of one part of the source, in batches with the columns `ROWS`.

    What the source passed over comes last, as a batch without rows: see `passed_over`.
    """
    source = CheckedSource(settings.source)
    chunks = source.list_chunks(part)
    while True:
        with _no_collection():
            references = next(chunks, None)
            if references is not None and settings.take is not None:
                references = settings.take.of(references)
                if not references:
                    continue
            batch = None if references is None else rows(settings, seed, references)
            del references
        if batch is None:
            break
        yield batch
    others = source.passed_over()
    if others:
        yield pa.RecordBatch.from_pylist([], ROWS.with_metadata({_OTHERS: json.dumps(others)}))


def passed_over(batch: pa.RecordBatch) -> dict[str, int]:
    """What the source passed over, by kind, if ``batch`` is one that says so."""
    told = (batch.schema.metadata or {}).get(_OTHERS)
    return {} if told is None else {str(kind): int(count) for kind, count in json.loads(told).items()}


def rows(
    settings: ContentConfig, seed: int, references: Sequence[Reference], groups: Sequence[str] | None = None
) -> pa.RecordBatch:
    """The rows of ``references``: one for each condition to render a reference under, else one for each reference.

    ``groups``: rows of one group have the same key.
    """
    # columns by itemgetter: zip(*references) makes as many iterators, and Python looks for garbage among them
    *facts, locators = (list(map(itemgetter(place), references)) for place in range(len(Reference._fields)))
    try:
        texts = [pa.array(values, pa.string()) for values in facts]
        grouped = None if groups is None else pa.array(groups, pa.string())
        texts.append(_locators(locators))
    except UnicodeEncodeError as error:
        what = f"lists {str(error.object)!r:.80}, which is not valid Unicode; rename it"
        raise CorpusError(f"{settings.source.describe()}: {what}") from None
    held = pc.coalesce(pc.binary_join_element_wise(texts[1], texts[2], "/"), texts[2])
    condition = np.full(len(references), CLEAN, np.int16)
    if settings.conditions is not None:
        whole = held if settings.join is not None and settings.conditions.per == "recording" else None
        drawn = facts[0] if whole is None else [a or b for a, b in zip(whole.to_pylist(), facts[0], strict=True)]
        condition = conditions.chosen_many(settings.conditions, drawn).reshape(-1)
        again = pa.array(np.repeat(np.arange(len(references)), settings.conditions.per_utterance))
        texts = [column.take(again) for column in texts]
        grouped = None if grouped is None else grouped.take(again)
        held = rendered(pc.coalesce(held.take(again), texts[1]), condition)
    if grouped is None:
        grouped = texts[0] if settings.join is None else held
    keys = draws.texts_np(draws.fold(seed, _ORDER), *columns.texts(grouped))
    if settings.conditions is not None and settings.join is None and groups is None:
        keys = draws.fold_np(keys, condition)
    return pa.record_batch([pa.array(keys), *texts, pa.array(condition), held], schema=ROWS)


def rendered(names: pa.StringArray, condition: np.ndarray) -> pa.StringArray:
    """The names of renderings, as `rayssl.data.units.rendering_name` gives them; ``condition [B]`` has no `CLEAN`."""
    return pc.binary_join_element_wise(names, pa.array(condition).cast(pa.string()), "#c")


@contextmanager
def _no_collection() -> Iterator[None]:
    """Else Python looks for garbage after each 700 new tuples. References are none, and it takes a third longer."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _locators(locators: Sequence[tuple[str | int, ...]]) -> pa.StringArray:
    """Each locator as JSON. It is made column by column if all have the same shape, which is faster."""
    sizes = set(map(len, locators))
    if len(sizes) == 1:
        items = [_items(list(map(itemgetter(place), locators))) for place in range(*sizes)]
        if all(item is not None for item in items):
            pieces: list[Any] = ["["]
            for number, item in enumerate(items):
                pieces += [*([","] if number else []), *(item or [])]
            if items:
                return pc.binary_join_element_wise(*pieces, "]", "")
    texts = [json.dumps(locator, ensure_ascii=False, separators=(",", ":")) for locator in locators]
    return pa.array(texts, pa.string())


def _items(values: Sequence[str | int]) -> list[Any] | None:
    """One place of all locators as pieces of JSON; None if the values need more than to be copied."""
    kinds = set(map(type, values))
    if kinds == {int}:
        try:
            return [pa.array(values, pa.int64()).cast(pa.string())]
        except (OverflowError, pa.ArrowInvalid):
            return None
    if kinds != {str}:
        return None
    column = pa.array(values, pa.string())
    escaped = pc.match_substring_regex(column, r'["\\\x00-\x1f]')
    return None if pc.any(escaped).as_py() else ['"', column, '"']
