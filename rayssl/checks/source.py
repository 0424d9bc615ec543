"""The rules of every source.

Its listing is always the same, its settings can be sent to another process, and audio depends only on its reference.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np

from rayssl.checks.outcome import Outcome, attempt
from rayssl.data import decode
from rayssl.data.decode import DecodeError
from rayssl.data.sources.base import Audio, Reference, SourceConfig
from rayssl.data.sources.checked import CheckedSource
from rayssl.data.sources.registry import SOURCES

_PARTS, _READ = 4, 8  # of a large source, so many parts are listed and so many utterances are read
_PATIENCE_S = 120.0
_ELSEWHERE = "import sys; sys.path[:] = {path!r}; from rayssl.checks.source import answer; answer()"


def check_source(config: SourceConfig) -> Iterator[Outcome]:
    """Yields the outcome of each rule. Of a large source only some parts are listed and some utterances are read."""
    found: list[Reference] = []
    yield attempt("settings can be located", lambda: _located(config))
    yield attempt("it lists utterances", lambda: _lists(config, found))
    if not found:
        return
    yield attempt("names are unique", lambda: _unique(found))
    yield attempt("listing again gives the same", lambda: _repeats(config, found))
    some = [found[int(k)] for k in np.unique(np.linspace(0, len(found) - 1, _READ).astype(int))]
    heard: list[str] = []
    yield attempt("audio can be used", lambda: _usable(config, some, heard))
    if not heard:
        return
    yield attempt("reading again gives the same", lambda: _same(config, some, heard, range(len(some)), "once more"))
    yield attempt("order and company do not matter", lambda: _alone(config, some, heard))
    yield attempt("another process gives the same", lambda: _elsewhere(config, found, some, heard))


def _located(config: SourceConfig) -> tuple[bool, str]:
    once = config.located()
    if once.located() != once:
        return False, f"located() changes what it returned before: {once.located()!r} from {once!r}"
    return True, f"as {once.name}"


def _listing(config: SourceConfig) -> tuple[list[Reference], int, int]:
    """The utterances of the first parts, the number of these parts, and the number of all parts."""
    source = CheckedSource(config.located())
    parts = source.parts()
    asked = parts[:_PARTS]
    return [one for part in asked for one in source.list_part(part)], len(asked), len(parts)


def _lists(config: SourceConfig, found: list[Reference]) -> tuple[bool, str]:
    references, asked, parts = _listing(config)
    found += references
    known = [fact for fact in ("speaker", "recording", "label") if any(getattr(one, fact) for one in references)]
    where = f" in the first {asked} of {parts} parts" if asked < parts else ""
    facts = f"with {', '.join(known)}" if known else "without speaker, recording or label"
    return bool(found), f"{len(found)} utterances{where}, {facts}" if found else f"nothing{where}"


def _unique(found: Sequence[Reference]) -> tuple[bool, str]:
    ordered = sorted(one.name for one in found)
    for first, second in itertools.pairwise(ordered):
        if first == second:
            return False, f"two utterances are named '{first}'"
    return True, f"'{ordered[0]}' to '{ordered[-1]}'"


def _repeats(config: SourceConfig, found: Sequence[Reference]) -> tuple[bool, str]:
    again = _listing(config)[0]
    for first, second in itertools.zip_longest(found, again):
        if first != second:
            return False, f"first {_shown(first)}, then {_shown(second)}"
    return True, f"{len(again)} references in the same order"


def _shown(reference: Reference | None) -> str:
    return "nothing" if reference is None else repr(tuple(reference))


def _usable(config: SourceConfig, some: Sequence[Reference], heard: list[str]) -> tuple[bool, str]:
    seconds, rejects = [], []
    audios = _audios(config, some)
    for one, audio in zip(some, audios, strict=True):
        try:
            clip = _decoded(audio)
        except DecodeError as error:
            rejects.append(f"'{one.name}': {error}")
            continue
        peak = float(np.abs(clip).max())
        if peak > 1:
            return False, f"'{one.name}': samples up to {peak:g}, they must be in [-1, 1]"
        seconds.append(len(clip) / decode.RATE)
    heard += map(_digest, audios)
    said = f"{len(seconds)} of {len(some)} read" + (f", {min(seconds):.2f} to {max(seconds):.2f} s" if seconds else "")
    return bool(seconds), said + (f"; {len(rejects)} rejected, first {rejects[0]}" if rejects else "")


def _decoded(audio: Audio | DecodeError) -> np.ndarray:
    """The samples ``[T]``, at least one. Raises `DecodeError`."""
    if isinstance(audio, DecodeError):
        raise audio
    clip = decode.decode(audio) if isinstance(audio, bytes) else audio
    if not len(clip):
        raise DecodeError("empty: no samples")
    return clip


def _alone(config: SourceConfig, some: Sequence[Reference], heard: Sequence[str]) -> tuple[bool, str]:
    orders: dict[str, Sequence[int]] = {
        "in reverse": range(len(some))[::-1],
        "every second one": range(0, len(some), 2),
    }
    orders |= {f"'{some[k].name}' alone": [k] for k in (0, len(some) - 1)}
    for what, order in orders.items():
        passed, detail = _same(config, some, heard, order, what)
        if not passed:
            return passed, detail
    return True, ", ".join(["in reverse", "every second one", "one alone"])


def _same(
    config: SourceConfig, some: Sequence[Reference], heard: Sequence[str], order: Sequence[int], what: str
) -> tuple[bool, str]:
    """Whether the utterances of ``some`` at the places ``order`` have the same audio as ``heard`` before."""
    audios = _audios(config, [some[k] for k in order])
    for k, audio in zip(order, audios, strict=True):
        if _digest(audio) != heard[k]:
            return False, f"read {what}, '{some[k].name}' has other audio than before"
    return True, f"{len(audios)} utterances {what}"


def _elsewhere(
    config: SourceConfig, found: Sequence[Reference], some: Sequence[Reference], heard: Sequence[str]
) -> tuple[bool, str]:
    """Whether another process gives the same listing and audio.

    It runs in another folder, with another hash seed, and gets only the settings and the references.
    """
    if SOURCES.read(json.loads(config.model_dump_json())) != config:
        return False, "the settings change when they are saved and read back"
    sent = pickle.dumps((config.located(), [*some]))
    with tempfile.TemporaryDirectory(prefix="rayssl-check-") as folder:
        done = subprocess.run(
            [sys.executable, "-c", _ELSEWHERE.format(path=[os.path.abspath(place) for place in sys.path])],
            input=sent, capture_output=True, cwd=folder, timeout=_PATIENCE_S, check=False,
        )  # fmt: skip
    if done.returncode:
        return False, (done.stderr.decode(errors="replace").strip().splitlines() or [f"status {done.returncode}"])[-1]
    answered = json.loads(done.stdout.decode().splitlines()[-1])
    if answered["listing"] != _hash(found):
        return False, "it lists other references, or in another order"
    if answered["heard"] != [*heard]:
        differs = [one.name for one, ours, its in zip(some, heard, answered["heard"], strict=True) if ours != its]
        return False, f"there '{differs[0]}' has other audio"
    return True, f"{len(found)} references and the audio of {len(some)}, in another folder"


def answer() -> None:
    """What the other process runs: it reads settings and references, and answers with digests in JSON."""
    config, some = pickle.load(sys.stdin.buffer)  # noqa: S301 (from the process that started this one)
    heard = [_digest(audio) for audio in _audios(config, some)]
    sys.stdout.write("\n" + json.dumps({"listing": _hash(_listing(config)[0]), "heard": heard}) + "\n")


def _audios(config: SourceConfig, references: Sequence[Reference]) -> list[Audio | DecodeError]:
    """The audio of ``references`` in their order, read by a new source."""
    read = dict(CheckedSource(config.located()).read(references))
    return [read[position] for position in range(len(references))]


def _digest(audio: Audio | DecodeError) -> str:
    content = str(audio).encode() if isinstance(audio, DecodeError) else audio
    kind = type(audio).__name__.encode()
    return hashlib.sha256(kind + (content if isinstance(content, bytes) else content.tobytes())).hexdigest()


def _hash(references: Sequence[Reference]) -> str:
    return hashlib.sha256(json.dumps([*references]).encode()).hexdigest()
