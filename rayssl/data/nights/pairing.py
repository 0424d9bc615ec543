"""Which files are one night, whose it is, and which label file belongs to it: all of it from paths alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import unquote

from rayssl.errors import CorpusError

EDF_SUFFIXES = (".edf",)
#: The form of a label file by its ending, in the order in which they are chosen.
LABEL_FORMS = {".rml": "rml", ".csv": "csv", ".tsv": "csv", ".txt": "txt"}

_PART = re.compile(r"(.*?)[ _-]?\[(\d+)\]")
_WORD = re.compile(r"(.*)[._ -](?:hypnogram|hypno|stages?|staging|scoring|labels?)", re.IGNORECASE)


def is_edf(path: str) -> bool:
    """Whether the path is that of an EDF file."""
    return path.lower().endswith(EDF_SUFFIXES)


def form(path: str) -> str:
    """The form of a label file: rml, csv or txt."""
    return next(kind for suffix, kind in LABEL_FORMS.items() if path.lower().endswith(suffix))


def night_and_part(path: str) -> tuple[str, int]:
    """The night's name, and the number of an EDF part (else -1).

    ``a/7-1%5B002%5D.edf`` is part 2 of night ``a/7-1``; ``b/x.wav`` is night ``b/x``.
    """
    stem = unquote(path).rpartition(".")[0] or unquote(path)
    numbered = _PART.fullmatch(stem) if is_edf(path) else None
    return (numbered[1], int(numbered[2])) if numbered else (stem, -1)


def subject(path: str, rule: str) -> str:
    """The subject's name from a path, see `NightFilesConfig`; raises `CorpusError` if a regular expression fails."""
    night = night_and_part(path)[0]
    folder, _, name = night.rpartition("/")
    before, hyphen, _ = name.partition("-")
    if rule == "id" or (rule == "auto" and hyphen and before):
        return before or name
    if rule in ("auto", "folder"):
        return folder.rpartition("/")[2] or name
    found = re.search(rule, unquote(path))
    if found is None or not found[1]:
        raise CorpusError(f"{path}: the source's subject '{rule}' finds nothing in this path")
    return str(found[1])


class Labels(NamedTuple):
    """Label files by the nights' names that their own names say."""

    by_name: Mapping[str, Sequence[str]]

    def of(self, nights: Iterable[str]) -> dict[str, list[str]]:
        """The label files of each night: those of its name, else those of its last name (without folders).

        Of several forms only the first of `LABEL_FORMS` is taken. Several files of one form stay several: the caller
        refuses them.

        Raises:
            CorpusError: a file fits several nights by its last name alone.
        """
        known = list(nights)
        if "" in self.by_name:  # the one file that the settings name
            return {night: list(self.by_name[""]) for night in known}
        own = {night: self.by_name[night] for night in known if night in self.by_name}
        taken = {path for paths in own.values() for path in paths}
        rest: dict[str, list[str]] = {}
        for name, paths in self.by_name.items():
            rest.setdefault(name.rpartition("/")[2], []).extend(path for path in paths if path not in taken)
        used: dict[str, str] = {}
        result: dict[str, list[str]] = {}
        for night in known:
            found = own.get(night) or rest.get(night.rpartition("/")[2]) or ()
            best = min(map(form, found), key=list(LABEL_FORMS.values()).index, default="")
            result[night] = sorted({path for path in found if form(path) == best})
            for path in result[night] if night not in own else ():
                if used.setdefault(path, night) != night:
                    way = "put it beside its night, or into a folder of the same name"
                    raise CorpusError(f"{path}: fits the nights {used[path]} and {night}; {way}")
        return result


def labels(paths: Iterable[str]) -> Labels:
    """The label files ``paths``, relative to their folder; an empty path is the only one, whatever its name is."""
    found: dict[str, list[str]] = {}
    for path in paths:
        stem = unquote(path).rpartition(".")[0]
        names = {stem, *(match[1] for pattern in (_PART, _WORD) if (match := pattern.fullmatch(stem)))}
        for name in names if stem or not path else ():
            found.setdefault(name, []).append(path)
    return Labels(found)
