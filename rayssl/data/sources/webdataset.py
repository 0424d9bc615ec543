"""Tar files. Each audio file in a tar can have a JSON file with the same key."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal

from rayssl import storage
from rayssl.data.sources.base import Reference
from rayssl.data.sources.files import AUDIO_SUFFIXES, FACTS, ContainerSource, FilesConfig, join, reference
from rayssl.errors import CorpusError

_BLOCK = 512  # bytes; an empty one ends a tar


class WebDatasetConfig(FilesConfig):
    """Tar files below ``uri`` with members ``key.wav`` (or another audio suffix) and ``key.json``.

    The key is the name of the utterance. Listing reads each tar once from start to end.
    """

    name: Literal["webdataset"] = "webdataset"
    """Tar files (WebDataset), with an audio file and a JSON file for each key."""
    files: str = "*.tar"
    """Only tar files are read whose path, relative to ``uri``, matches this pattern with ``*``."""
    speaker: str = "speaker"
    """The key of the JSON object with the speaker; utterances without it have none."""
    recording: str = "recording"
    """The key of the JSON object with the recording that an utterance comes from."""
    label: str = "label"
    """The key of the JSON object with the label of the class."""


class WebDataset(ContainerSource):
    """Each audio member of a tar is an utterance. It is read by its offset, without reading the rest of the tar."""

    Config = WebDatasetConfig
    config: WebDatasetConfig

    def __init__(self, config: WebDatasetConfig) -> None:
        super().__init__(config)
        self._others = Counter[str]()

    def list_part(self, part: str) -> Iterator[Reference]:
        """The audio members of one tar, in its order. Raises `CorpusError` if the tar is compressed or truncated."""
        self._others.clear()
        place = join(self.config.uri, part)
        audio: dict[str, tuple[str | int, ...]] = {}
        facts: dict[str, Any] = {}
        try:
            with tarfile.open(fileobj=storage.open_read(place), mode="r:") as tar:
                for member in tar:
                    if not member.isfile():
                        continue
                    folder, slash, base = member.name.removeprefix("./").rpartition("/")
                    key = folder + slash + base.partition(".")[0]
                    suffix = "." + base.rpartition(".")[2].lower() if "." in base.strip(".") else ""
                    if base.startswith("."):  # macOS adds a file ._NAME to each file NAME
                        self._others["hidden"] += 1
                    elif suffix in AUDIO_SUFFIXES:
                        if key in audio:
                            clash = f"two audio members of '{key}', the second is {member.name}"
                            raise CorpusError(
                                f"{place}: {clash}; a name up to its first dot must be unique: rename one"
                            )
                        audio[key] = (part, member.offset_data, member.size)
                    elif suffix == ".json":
                        facts[key] = _json_object(tar.extractfile(member), f"{place}: {member.name}")
                    else:
                        self._others[suffix or "without a suffix"] += 1
                end = tar.offset
        except tarfile.TarError as error:
            message = f"{place}: not a complete, uncompressed tar ({error}); correct the source's uri"
            raise CorpusError(message) from None
        # Python's tarfile stops without a word where a header is damaged, or where the file was cut behind a member
        if storage.read_range(place, end, _BLOCK) != bytes(_BLOCK):
            raise CorpusError(f"{place}: the tar is damaged or cut at byte {end}, after {len(audio)} audio members")
        for key, locator in audio.items():
            given = facts.get(key, {})
            yield reference(key, {fact: given.get(getattr(self.config, fact)) for fact in FACTS}, locator)

    def passed_over(self) -> dict[str, int]:
        """Members of the last tar that are neither audio nor JSON, and hidden ones."""
        return dict(self._others)

    def read(self, reference: Reference) -> bytes:
        """The member's bytes."""
        _, offset, size = reference.locator
        return storage.read_range(self.place(reference), int(offset), int(size))

    def open(self, reference: Reference) -> BinaryIO:
        """The member's bytes, to be read in pieces."""
        _, offset, size = reference.locator
        return storage.open_read(self.place(reference), int(offset), int(size))


def _json_object(file: Any, where: str) -> dict[str, Any]:
    try:
        value = json.loads(file.read())
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise CorpusError(f"{where}: not a JSON object")
    return value
