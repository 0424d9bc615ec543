"""What the evaluation of a run is told: on which corpus, and which figures are wanted."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from rayssl import storage
from rayssl.schema import Config


class AsNormConfig(Config):
    """Adaptive s-norm against ``cohort``, a prepared corpus: its ``utterances`` first ones, the ``top`` scores of
    each.
    """

    cohort: str
    utterances: int = Field(2000, ge=2)
    top: int = Field(300, ge=2)


class VerificationConfig(Config):
    """``corpus``: prepared test corpus; ``trials``: VoxCeleb list ``label enrol test`` over its utterance names."""

    task: Literal["verification"] = "verification"
    corpus: str
    trials: str
    as_norm: AsNormConfig | None = None
    resamples: int = Field(1000, ge=0)
    actors: int = Field(1, ge=1)
    batch: int = Field(64, ge=1)

    def located(self) -> VerificationConfig:
        """The same with absolute paths."""
        norm = self.as_norm and self.as_norm.model_copy(update={"cohort": storage.absolute(self.as_norm.cohort)})
        places = {"corpus": storage.absolute(self.corpus), "trials": storage.absolute(self.trials)}
        return self.model_copy(update={**places, "as_norm": norm})


class FinetuneConfig(Config):
    """Training of the whole encoder with a linear head on labelled clips: ``lr`` and ``head_lr`` of AdamW, both falling
    along a cosine over ``epochs``.
    """

    epochs: int = Field(20, ge=1)
    batch: int = Field(32, ge=2)
    lr: float = Field(1e-4, gt=0)
    head_lr: float = Field(1e-2, gt=0)


class ClassificationConfig(Config):
    """``corpus``: prepared test corpus, whose labels have the names of the training corpus's.

    ``probes`` over the frozen encoder (``linear``, ``knn``) or with all of it trained (``finetune``), each with the
    labels of these ``shares`` of the training corpus's clips (of those that ``labels.split`` has labelled, if given). A
    method with a classifier of its own is judged by that, too.
    """

    task: Literal["classification"]
    corpus: str
    probes: list[Literal["linear", "knn", "finetune"]] = ["linear", "knn"]
    shares: list[Annotated[float, Field(gt=0, le=1)]] = [1.0]
    finetune: FinetuneConfig = FinetuneConfig()
    resamples: int = Field(1000, ge=0)
    actors: int = Field(1, ge=1)
    batch: int = Field(64, ge=1)

    def located(self) -> ClassificationConfig:
        """The same with absolute paths."""
        return self.model_copy(update={"corpus": storage.absolute(self.corpus)})


def _task(given: Any) -> Any:
    return given.get("task", "verification") if isinstance(given, dict) else getattr(given, "task", "verification")


AnyEvaluation = Annotated[
    Annotated[VerificationConfig, Tag("verification")] | Annotated[ClassificationConfig, Tag("classification")],
    Discriminator(_task),
]
