"""The settings of an evaluation: the test corpus, and the figures to compute."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from rayssl import storage
from rayssl.schema import Config

# How utterances are embedded. bf16 has three digits: it is for a GPU, and for figures that need no more
EmbeddingPrecision = Literal["fp32", "bf16"]


class AsNormConfig(Config):
    """Adaptive s-norm with a cohort: the first ``utterances`` of the prepared corpus ``cohort``.

    ``top``: the number of highest cosines that normalise a score.
    """

    cohort: str
    utterances: int = Field(2000, ge=2)
    top: int = Field(300, ge=2)


class VerificationConfig(Config):
    """Speaker verification.

    ``corpus``: the prepared test corpus. ``trials``: a list in VoxCeleb's format, ``label enrol test``, with utterance
    names of the corpus. ``as_norm``: score normalisation. ``resamples``: of the EER's interval; 0 for no interval.
    ``actors``: the number of embedding actors. ``batch``: utterances of one forward pass. ``precision``: of embedding;
    ``bf16`` is quicker on a GPU and has three digits, so that cosines differ by some thousandths.
    """

    task: Literal["verification"] = "verification"
    corpus: str
    trials: str
    as_norm: AsNormConfig | None = None
    resamples: int = Field(1000, ge=0)
    actors: int = Field(1, ge=1)
    batch: int = Field(64, ge=1)
    precision: EmbeddingPrecision = "fp32"

    def located(self) -> VerificationConfig:
        """The same settings with absolute paths."""
        norm = self.as_norm and self.as_norm.model_copy(update={"cohort": storage.absolute(self.as_norm.cohort)})
        places = {"corpus": storage.absolute(self.corpus), "trials": storage.absolute(self.trials)}
        return self.model_copy(update={**places, "as_norm": norm})


class FinetuneConfig(Config):
    """Fine-tuning: the whole encoder is trained with a linear head on labelled clips.

    ``lr`` (encoder) and ``head_lr`` (head) are the rates of AdamW. Both fall along a cosine over ``epochs``.
    """

    epochs: int = Field(20, ge=1)
    batch: int = Field(32, ge=2)
    lr: float = Field(1e-4, gt=0)
    head_lr: float = Field(1e-2, gt=0)


class ClassificationConfig(Config):
    """Classification of clips.

    ``corpus``: the prepared test corpus; its labels have the same names as those of the training corpus. ``probes``:
    classifiers on the frozen encoder (``linear``, ``knn``), or the encoder trained as a whole (``finetune``).
    ``shares``: each probe runs once for each share, with the labels of this share of the training corpus's clips (with
    ``labels.split``: of the clips that are labelled there). If a method has its own classifier, it is evaluated too.
    ``resamples``: of the interval; 0 for no interval. ``actors``: the number of embedding actors. ``batch``: utterances
    of one forward pass. ``precision``: of embedding, as for verification.
    """

    task: Literal["classification"]
    corpus: str
    probes: list[Literal["linear", "knn", "finetune"]] = ["linear", "knn"]
    shares: list[Annotated[float, Field(gt=0, le=1)]] = [1.0]
    finetune: FinetuneConfig = FinetuneConfig()
    resamples: int = Field(1000, ge=0)
    actors: int = Field(1, ge=1)
    batch: int = Field(64, ge=1)
    precision: EmbeddingPrecision = "fp32"

    def located(self) -> ClassificationConfig:
        """The same settings with absolute paths."""
        return self.model_copy(update={"corpus": storage.absolute(self.corpus)})


class StagingConfig(Config):
    """Sleep staging of whole nights.

    ``corpus``: the prepared test corpus, of nights. ``stride``: how many epochs of sleep the next window of a night
    begins after the one before; windows overlap where it is below the number of epochs that a window scores, and the
    probabilities are averaged (a larger stride is that number). ``resamples``: of the intervals over subjects; 0 for no
    interval. ``actors``: the number of actors that run the model. ``batch``: windows of one forward pass. ``split``:
    evaluates only the nights that this split of ``corpus`` holds out (``nights.held_out``).
    """

    task: Literal["staging"]
    corpus: str
    split: str | None = None
    stride: int = Field(20, ge=1)
    resamples: int = Field(1000, ge=0)
    actors: int = Field(1, ge=1)
    batch: int = Field(8, ge=1)

    def located(self) -> StagingConfig:
        """The same settings with absolute paths."""
        return self.model_copy(update={"corpus": storage.absolute(self.corpus)})


def _task(given: Any) -> Any:
    return given.get("task", "verification") if isinstance(given, dict) else getattr(given, "task", "verification")


AnyEvaluation = Annotated[
    Annotated[VerificationConfig, Tag("verification")]
    | Annotated[ClassificationConfig, Tag("classification")]
    | Annotated[StagingConfig, Tag("staging")],
    Discriminator(_task),
]
