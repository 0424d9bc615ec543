"""The seam of a source: it lists utterances without their audio, and gives the audio of those it is asked for.

A source has two halves, as a method has. Its `SourceConfig` holds the keys of the YAML. Its `Source` lists and reads::

    class Tones(Source):
        class Config(SourceConfig):
            count: int = 8

        config: Config

        def list(self) -> Iterator[Reference]:
            for number in range(self.config.count):
                yield Reference(f"tone{number}", locator=(number,))

        def read(self, reference: Reference) -> np.ndarray:
            return 0.1 * np.sin(np.arange(16000) * (0.1 + 0.01 * int(reference.locator[0])))

The driver lists, and many tasks on other nodes read: settings and references are all that they have in common. So the
listing depends on the settings and the data alone, and the audio on the settings, the data and the reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np

from rayssl import storage
from rayssl.data.decode import DecodeError
from rayssl.registry import ComponentConfig, Configurable

#: What is read: encoded bytes (see `rayssl.data.decode.decode`), or float32 samples ``[T]`` in [-1, 1], mono at 16 kHz.
Audio: TypeAlias = bytes | np.ndarray


class Reference(NamedTuple):
    """One source utterance. Unknown speaker, recording or label is None; ``locator`` is the source's own.

    ``name`` is unique in the source, and is what trials refer to. The locator holds what `Source.read` needs, in
    strings and integers; paths in it are relative to the source's URI, so that it means the same on every machine.
    """

    name: str
    speaker: str | None = None
    recording: str | None = None
    label: str | None = None
    locator: tuple[str | int, ...] = ()

    def recording_name(self) -> str | None:
        """The recording as the corpus names it: recordings of different speakers are different recordings."""
        if self.recording is None:
            return None
        return self.recording if self.speaker is None else f"{self.speaker}/{self.recording}"


class SourceConfig(ComponentConfig):
    """The settings of a source. They are part of the corpus's content: other values make another corpus."""

    #: The keys that hold a URI or a path, or None.
    uris: ClassVar[tuple[str, ...]] = ("uri",)

    def build(self) -> Source:
        """The source."""
        made: Source = self._make()
        return made

    def located(self) -> Any:
        """The same with absolute file names and URIs: tasks may run in another working folder."""
        given = {key: getattr(self, key, None) for key in self.uris}
        changes = {key: storage.absolute(value) for key, value in given.items() if isinstance(value, str)}
        return super().located().model_copy(update=changes)

    def describe(self) -> str:
        """The source in a few words, for messages."""
        return f"the source {self.name}"


class Source(Configurable):
    """Where utterances come from. `list` and `read` must be implemented, the others may be.

    It is made from its settings in every process that needs it, so ``__init__`` is quick: open files when they are
    read. A mistake of the user is raised as a `rayssl.errors.CorpusError` of one line, with the way out.
    """

    Config: ClassVar[type[SourceConfig]]

    def __init__(self, config: Any) -> None:
        self.config = config

    def list(self) -> Iterable[Reference]:
        """All utterances, in any order that is always the same, without their audio."""
        raise NotImplementedError(f"{type(self).__name__}.list is not implemented")

    def read(self, reference: Reference) -> Audio:
        """The audio of one utterance: encoded bytes, or float32 samples ``[T]`` in [-1, 1], mono at 16 kHz.

        Raises `DecodeError` with the reason for an utterance that cannot be used: it becomes a reject. No bytes, and
        bytes that do not decode, become one too. Every other error ends the preparation.
        """
        raise NotImplementedError(f"{type(self).__name__}.read is not implemented")

    def read_many(self, references: Sequence[Reference]) -> Iterator[tuple[int, Audio | DecodeError]]:
        """The audio of each reference with its position in ``references``, in any order, each once.

        Where `read` would raise a `DecodeError`, it is yielded. To be replaced where utterances that lie together are
        read together faster.
        """
        for position, reference in enumerate(references):
            try:
                audio: Audio | DecodeError = self.read(reference)
            except DecodeError as error:
                audio = error
            yield position, audio

    def parts(self) -> Sequence[str]:
        """What can be listed independently, each in a task of its own; one part for everything otherwise."""
        return [""]

    def list_part(self, part: str) -> Iterable[Reference]:
        """The utterances of one of the `parts`."""
        return self.list()

    def place(self, reference: Reference) -> str:
        """Where the utterance was read from, for the list of rejects."""
        described: str = self.config.describe()
        return described
