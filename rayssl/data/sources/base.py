"""The interface of a source. It lists utterances without their audio, and reads the audio of the ones it is asked for.

A source has two parts, as a method has. Its `SourceConfig` holds the keys of the YAML. Its `Source` lists and reads::

    class Tones(Source):
        class Config(SourceConfig):
            count: int = 8

        config: Config

        def list(self) -> Iterator[Reference]:
            for number in range(self.config.count):
                yield Reference(f"tone{number}", locator=(number,))

        def read(self, reference: Reference) -> np.ndarray:
            return 0.1 * np.sin(np.arange(16000) * (0.1 + 0.01 * int(reference.locator[0])))

The driver lists, or tasks do if there are many parts; many tasks on other nodes read. They share only the settings and
the references. So the listing may depend only on the settings and the data. The audio may depend only on the settings,
the data and the reference.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, ClassVar, NamedTuple, TypeAlias

import numpy as np

from rayssl import storage
from rayssl.data.decode import DecodeError
from rayssl.registry import ComponentConfig, Configurable

#: What `Source.read` gives: encoded bytes (see `rayssl.data.decode.decode`), or mono float32 samples ``[T]`` in [-1, 1]
#: at 16 kHz.
Audio: TypeAlias = bytes | np.ndarray


class Reference(NamedTuple):
    """One source utterance.

    Args:
        name: unique in the source. Trials refer to utterances by this name.
        speaker: the name of the speaker; None if unknown. The same holds for ``recording`` and ``label``.
        locator: what `Source.read` needs to find the audio: strings and integers. Paths in it are relative to the
            source's URI, so that it is valid on every machine.
    """

    name: str
    speaker: str | None = None
    recording: str | None = None
    label: str | None = None
    locator: tuple[str | int, ...] = ()

    def recording_name(self) -> str | None:
        """The name of the recording in the corpus, which includes the speaker: speakers never share a recording."""
        if self.recording is None:
            return None
        return self.recording if self.speaker is None else f"{self.speaker}/{self.recording}"


class SourceConfig(ComponentConfig):
    """The settings of a source. The content of a corpus depends on them: other values make another corpus."""

    #: The keys whose value is a URI or a path, or None.
    uris: ClassVar[tuple[str, ...]] = ("uri",)

    def build(self) -> Source:
        """Makes the source; each process that lists or reads makes its own."""
        made: Source = self._make()
        return made

    def located(self) -> Any:
        """A copy with absolute paths and URIs, because tasks may run in another working folder."""
        given = {key: getattr(self, key, None) for key in self.uris}
        changes = {key: storage.absolute(value) for key, value in given.items() if isinstance(value, str)}
        return super().located().model_copy(update=changes)

    def describe(self) -> str:
        """The source in a few words, for messages."""
        return f"the source {self.name}"


class Source(Configurable):
    """Where utterances come from. A subclass must implement `list` and `read`; it may implement the other methods.

    Every process that needs the source makes it from its settings. So ``__init__`` must be quick: open a file only
    when you read it. For a mistake of the user, raise `rayssl.errors.CorpusError` with one line that says what to do.
    """

    Config: ClassVar[type[SourceConfig]]

    def __init__(self, config: Any) -> None:
        self.config = config

    def list(self) -> Iterable[Reference]:
        """All utterances, without their audio. The order does not matter, but it must always be the same.

        Yield them one after the other: then a large source needs little memory.
        """
        raise NotImplementedError(f"{type(self).__name__}.list is not implemented")

    def read(self, reference: Reference) -> Audio:
        """The audio of one utterance.

        Args:
            reference: one of the references that `list` gave, perhaps in another process.

        Returns:
            Encoded bytes, or mono float32 samples ``[T]`` in [-1, 1] at 16 kHz. Empty bytes, and bytes that do not
            decode, make the utterance a reject.

        Raises:
            DecodeError: the utterance cannot be used. It becomes a reject with this reason.
            Exception: any other error ends the preparation.
        """
        raise NotImplementedError(f"{type(self).__name__}.read is not implemented")

    def read_many(self, references: Sequence[Reference]) -> Iterator[tuple[int, Audio | DecodeError]]:
        """The audio of many utterances. Override it if it is faster to read neighbouring utterances together.

        Yields:
            (position in ``references``, audio), each position once, in any order. If an utterance cannot be used, the
            `DecodeError` is yielded in place of its audio.
        """
        for position, reference in enumerate(references):
            try:
                audio: Audio | DecodeError = self.read(reference)
            except DecodeError as error:
                audio = error
            yield position, audio

    def open(self, reference: Reference) -> BinaryIO | np.ndarray:
        """The audio of one utterance as an open binary file, or as `read` gives samples.

        Override it if a file can be read in pieces: then a recording of any length needs little memory. Raises as
        `read` does.
        """
        audio = self.read(reference)
        return audio if isinstance(audio, np.ndarray) else io.BytesIO(audio)

    def parts(self) -> Sequence[str]:
        """Names of the parts that can be listed in parallel, one task each. The default is one part with everything."""
        return [""]

    def list_part(self, part: str) -> Iterable[Reference]:
        """The utterances of one of the `parts`."""
        return self.list()

    def passed_over(self) -> dict[str, int]:
        """How many files the last listing in this process found and did not list, by kind; for the summary."""
        return {}

    def place(self, reference: Reference) -> str:
        """Where the utterance was read from, in words or as a URI; for the list of rejects."""
        described: str = self.config.describe()
        return described
