"""What a method can know of its job before a network exists."""

from __future__ import annotations

from dataclasses import dataclass

from rayssl.views.recipes import ViewsConfig


@dataclass(frozen=True)
class Classes:
    """The C classes of a split: their ``names``, and the number of ``labelled`` utterances of each."""

    names: tuple[str, ...]
    labelled: tuple[int, ...]


@dataclass(frozen=True)
class JobFacts:
    """What a method can know of its job without a network: sizes, and settings of other parts.

    - ``corpus``: its URI, for messages; ``utterances``, ``speakers``, ``recordings``: their numbers in the corpus.
    - ``views``: the settings of segments and recipes.
    - ``embedding_dim``: the dimension of the encoder's embedding; ``joined``: whether the encoder has two parts
      (``encoder.beside``).
    - ``batch``: utterances per step, over all ranks. ``seed``: the seed of the run.
    - ``classes``: the classes of the split in ``labels.split``; None without a split.
    - ``sequence``: the number of epochs of sleep in a sequence; 1 if the streams give utterances.
    """

    corpus: str
    utterances: int
    speakers: int
    recordings: int
    views: ViewsConfig
    embedding_dim: int
    batch: int
    seed: int = 0
    joined: bool = False
    classes: Classes | None = None
    sequence: int = 1
