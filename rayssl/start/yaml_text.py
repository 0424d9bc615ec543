"""YAML with a comment above each key: text, because libraries that write YAML drop comments."""

from __future__ import annotations

import textwrap
from typing import Any

import yaml

_WIDTH = 116


class YamlText:
    """Lines of a YAML file, from the top."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def gap(self) -> None:
        """An empty line."""
        self._lines.append("")

    def say(self, *sentences: str, indent: int = 0) -> None:
        """A comment of these sentences; each one begins on a line of its own."""
        for sentence in sentences:
            before = f"{' ' * indent}# "
            self._lines += textwrap.wrap(
                sentence, _WIDTH, initial_indent=before, subsequent_indent=before, break_on_hyphens=False,
                break_long_words=False,
            )  # fmt: skip

    def key(self, name: str, value: Any = None, *, indent: int = 0, anchor: str = "", merge: str = "") -> None:
        """A key with a value in one line; None opens a section.

        ``anchor`` names the value (``&anchor``), and ``merge`` begins it with the mapping of that anchor.
        """
        head = f"{' ' * indent}{name}:"
        if merge:
            self._lines.append(f"{head} {{<<: *{merge}, {flow(value)[1:]}")
        elif value is None:
            self._lines.append(head)
        else:
            self._lines.append(f"{head} {f'&{anchor} ' if anchor else ''}{flow(value)}")

    def alias(self, name: str, anchor: str, *, indent: int = 0) -> None:
        """A key whose value is that of ``anchor``."""
        self._lines.append(f"{' ' * indent}{name}: *{anchor}")

    def text(self) -> str:
        """The file."""
        return "\n".join(self._lines) + "\n"


def flow(value: Any) -> str:
    """``value`` in one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=float("inf"), allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
