"""Every key that a YAML file may hold says what it means, in words that its name does not say already."""

from __future__ import annotations

import re

import pytest

from rayssl.keys.listing import Key, keys
from rayssl.keys.roots import ROOTS

KEYS = [(kind, key) for kind in ROOTS for key in keys(kind, installed=False)]
#: What the end of a name promises, and what the description must say then.
UNITS = {
    "_s": "second",
    "_ms": "millisecond",
    "_h": "hours",
    "_hours": "hours",
    "_db": "dB",
    "_bytes": "bytes",
    "f_min": "Hz",
    "f_max": "Hz",
}
SMALL = {
    *("a", "an", "and", "as", "at", "be", "by", "each", "for", "from", "how", "if", "in", "is", "it", "no", "of", "on"),
    *("one", "or", "that", "the", "this", "to", "which", "with"),
}


def named(pairs: list[tuple[str, Key]]) -> list[str]:
    return [f"{kind}: {key.path} ({key.choice}): {key.text}" for kind, key in pairs]


def words(text: str) -> list[str]:
    """In small letters, and in the singular."""
    return [word.rstrip("s") if len(word) > 4 else word for word in re.findall(r"[a-z0-9]+", text.lower())]


def test_there_are_hundreds() -> None:
    assert len(KEYS) > 500


def test_each_is_a_sentence() -> None:
    odd = [(kind, key) for kind, key in KEYS if not re.fullmatch(r"[A-Z`].*[.]", key.text) or len(words(key.text)) < 4]
    assert named(odd) == []


def test_none_only_repeats_its_name() -> None:
    """'The batch size.' says nothing about ``batch``: at least two words are neither in the path nor small."""
    odd = [(kind, key) for kind, key in KEYS if len(set(words(key.text)) - SMALL - set(words(key.path))) < 2]
    assert named(odd) == []


def test_lengths_and_levels_have_units() -> None:
    odd = [
        (kind, key)
        for kind, key in KEYS
        for ending, unit in UNITS.items()
        if key.path.endswith(ending) and key.values and unit.lower() not in key.text.lower()
    ]
    assert named(odd) == []


def test_probabilities_say_what_zero_does() -> None:
    odd = [(kind, key) for kind, key in KEYS if key.path.endswith(".p") and "0 turns" not in key.text]
    assert named(odd) == []


@pytest.mark.parametrize("kind", ROOTS)
def test_none_is_in_the_marks_of_docstrings(kind: str) -> None:
    """Two backquotes are for docstrings; terminals, Markdown and editors get one."""
    assert [key.path for key in keys(kind, installed=False) if "``" in key.text or "\n" in key.text] == []
