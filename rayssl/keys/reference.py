"""The reference of all keys as Markdown: `rayssl keys --markdown` prints it, and `configs/KEYS.md` is its output."""

from __future__ import annotations

import textwrap
from itertools import groupby

from rayssl.keys.listing import Key, in_lines, keys
from rayssl.keys.roots import ROOTS

_HEAD = """# Keys

Every key of the three kinds of YAML files, with what it may hold, its default and when to change it. This page is
generated: `rayssl keys --markdown > configs/KEYS.md`. In the terminal, `rayssl keys PREFIX` shows a part of it, and
also the keys of components of your own; `rayssl show FILE` shows the values of a file.

`<name>` stands for a name of your choice, `[]` for the items of a list. Where a section is chosen by its `name` or
`task`, the heading says with which one its keys are there.
"""


def markdown() -> str:
    """The whole page. Only with built-in components, so that it is the same on every machine."""
    parts = [_HEAD]
    for kind, root in ROOTS.items():
        parts.append(f"## {kind.capitalize()} (`rayssl {root.verb}`)\n")
        parts += [_section(headings, rows) for headings, rows in _sections(keys(kind, installed=False))]
    return "\n".join(parts)


def _sections(listed: list[Key]) -> list[tuple[list[str], list[Key]]]:
    """The keys of each section with its headings. Sections with the same keys are one, with several headings."""
    found: dict[tuple[tuple[str | None, ...], ...], tuple[list[str], list[Key]]] = {}
    ordered = sorted(range(len(listed)), key=lambda k: _first(listed, k))
    for heading, group in groupby((listed[k] for k in ordered), _heading):
        rows = list(group)
        same = tuple((_leaf(key), key.values, key.default, key.text) for key in rows)
        found.setdefault(same, ([], rows))[0].append(heading)
    return list(found.values())


def _first(listed: list[Key], index: int) -> int:
    """The place of the first key with the same heading: all keys of a section stand together."""
    heading = _heading(listed[index])
    return next(place for place, key in enumerate(listed) if _heading(key) == heading)


def _heading(key: Key) -> str:
    parent = key.path.rpartition(".")[0]
    inside = f"`{parent}`" if parent else "At the top"
    if not key.choice:
        return inside
    section, _, choice = key.choice.partition(": ")[0].rpartition(".")
    value = key.choice.partition(": ")[2]
    # the section itself is chosen, or one above it
    return f"{inside} with `{choice if section == parent.removesuffix('[]') else section + '.' + choice}: {value}`"


def _leaf(key: Key) -> str:
    return key.path.rpartition(".")[2]


def _section(headings: list[str], rows: list[Key]) -> str:
    lines = [f"### {', '.join(headings)}\n"]
    for key in rows:
        what = in_lines(key)
        what = what.replace(f"default {key.default}", f"default `{key.default}`") if key.default else what
        text = f"- **`{_leaf(key)}`** ({what}): {key.text}"
        lines.append(textwrap.fill(text, 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))
    return "\n".join(lines) + "\n"
