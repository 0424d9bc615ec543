"""Tar files. Each audio file in a tar can have a JSON file with the same key."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from typing import Any, Literal

from rayssl import storage
from rayssl.data.sources.base import Reference
from rayssl.data.sources.files import AUDIO_SUFFIXES, FACTS, ContainerSource, FilesConfig, join, reference
from rayssl.errors import CorpusError


class WebDatasetConfig(FilesConfig):
    """Tar files below ``uri`` with members ``key.wav`` (or another audio suffix) and ``key.json``.

    The key is the name of the utterance. ``speaker``, ``recording`` and ``label`` are keys of the JSON object. Listing
    reads each tar once from start to end.
    """

    name: Literal["webdataset"] = "webdataset"
    files: str = "*.tar"
    speaker: str = "speaker"
    recording: str = "recording"
    label: str = "label"


class WebDataset(ContainerSource):
    """Each audio member of a tar is an utterance. It is read by its offset, without reading the rest of the tar."""

    Config = WebDatasetConfig
    config: WebDatasetConfig

    def list_part(self, part: str) -> Iterator[Reference]:
        """The audio members of one tar, in its order. Raises `CorpusError` if the tar is compressed or truncated."""
        place = join(self.config.uri, part)
        audio: dict[str, tuple[str | int, ...]] = {}
        facts: dict[str, Any] = {}
        try:
            with tarfile.open(fileobj=storage.open_read(place), mode="r:") as tar:
                for member in tar:
                    folder, slash, base = member.name.removeprefix("./").rpartition("/")
                    key = folder + slash + base.partition(".")[0]
                    suffix = "." + base.rpartition(".")[2].lower()
                    if member.isfile() and suffix in AUDIO_SUFFIXES:
                        audio[key] = (part, member.offset_data, member.size)
                    elif member.isfile() and suffix == ".json":
                        facts[key] = _json_object(tar.extractfile(member), f"{place}: {member.name}")
        except tarfile.TarError as error:
            message = f"{place}: not a complete, uncompressed tar ({error}); correct the source's uri"
            raise CorpusError(message) from None
        for key, locator in audio.items():
            given = facts.get(key, {})
            yield reference(key, {fact: given.get(getattr(self.config, fact)) for fact in FACTS}, locator)

    def read(self, reference: Reference) -> bytes:
        """The member's bytes."""
        _, offset, size = reference.locator
        return storage.read_range(self.place(reference), int(offset), int(size))


def _json_object(file: Any, where: str) -> dict[str, Any]:
    try:
        value = json.loads(file.read())
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise CorpusError(f"{where}: not a JSON object")
    return value
