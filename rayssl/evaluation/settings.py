"""The settings of an evaluation: the test corpus, and the figures to compute."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from rayssl import storage
from rayssl.schema import Config

# How utterances are embedded. bf16 has three digits: it is for a GPU, and for figures that need no more
EmbeddingPrecision = Literal["fp32", "bf16"]


class AsNormConfig(Config):
    """Adaptive s-norm: each score is normalised by the highest cosines with a cohort of other speakers."""

    cohort: str
    """Folder or URI of a prepared corpus of other speakers than those of the trials, for example the training corpus.
    """
    utterances: int = Field(2000, ge=2)
    """How many utterances of the cohort are used, the first ones. More take more time."""
    top: int = Field(300, ge=2)
    """The number of highest cosines with the cohort whose mean and deviation normalise a score; 200 to 400 are usual.
    """


class CentreConfig(Config):
    """Centring: the mean embedding of a corpus is subtracted from each embedding before the cosine."""

    corpus: str
    """Folder or URI of a prepared corpus, for example the training corpus; never the test corpus."""
    utterances: int = Field(2000, ge=1)
    """How many utterances of the corpus are used, the first ones. More take more time."""


class VerificationConfig(Config):
    """Speaker verification."""

    task: Literal["verification"] = "verification"
    """``verification`` scores trials, pairs of utterances of the same or of different speakers: EER and minDCF."""
    corpus: str
    """Folder or URI of the prepared test corpus, whose speakers should not be in the training corpus."""
    trials: str
    """File or URI of the list of trials in VoxCeleb's format, a line ``label enrol test`` each, with utterance names of
    the corpus. ``rayssl prepare`` makes such lists (``trials``).
    """
    embedding: Literal["encoder", "projection"] = "encoder"
    """What is compared: the embedding of the ``encoder``, or the ``projection`` that the method's loss compares, after
    the layers of ``method.projector`` or ``method.head``.
    """
    as_norm: AsNormConfig | None = None
    """Score normalisation with a cohort (adaptive s-norm); null reports plain cosines."""
    centre: CentreConfig | None = None
    """Subtracts the mean embedding of a corpus before the cosine, also from ``as_norm``'s cohort; null does not."""
    resamples: int = Field(1000, ge=0)
    """How often speakers are drawn again for the 95 % interval of the EER (bootstrap); 0 for no interval."""
    actors: int = Field(1, ge=1)
    """The number of actors that embed the test corpus at once, each on a GPU if there is one. Raise it to use several
    GPUs or nodes.
    """
    batch: int = Field(64, ge=1)
    """The number of utterances of one forward pass. It changes speed and memory, not the figures."""
    precision: EmbeddingPrecision = "fp32"
    """Of embedding: ``bf16`` is quicker on a GPU and has three digits, so that cosines differ by some thousandths."""
    crop_share: float = Field(0.0, ge=0, le=0.5)
    """How much of an utterance may be cut from its end, as a share of it, so that utterances of similar length share a
    batch. It is for a GPU; it moves the figures. 0 cuts nothing: only equal lengths share a batch, and most utterances
    of natural speech are embedded alone. With 0.05 the lengths have 5 % between them, and 2.5 % is lost in the mean.
    That moved cosines by .013 in the mean for 72 clips of 2 to 4 s, and by .020 for 1,054 clips of 0.6 to 1 s, whose
    EER rose from 18.3 to 18.9 %.
    """

    def located(self) -> VerificationConfig:
        """The same settings with absolute paths."""
        norm = self.as_norm and self.as_norm.model_copy(update={"cohort": storage.absolute(self.as_norm.cohort)})
        centre = self.centre and self.centre.model_copy(update={"corpus": storage.absolute(self.centre.corpus)})
        places = {"corpus": storage.absolute(self.corpus), "trials": storage.absolute(self.trials)}
        return self.model_copy(update={**places, "as_norm": norm, "centre": centre})


class FinetuneConfig(Config):
    """Fine-tuning: the whole encoder is trained on labelled clips, with a head that starts as the linear probe.

    Both rates are AdamW's and fall along a cosine over all steps. A fifth of the clips judge it first: if their
    cross-entropy does not fall by more than its standard error, the linear probe is kept.
    """

    epochs: int = Field(20, ge=1)
    """The least number of passes over the labelled clips."""
    steps: int = Field(300, ge=1)
    """The least number of steps. With few labelled clips there are more passes than ``epochs``, until so many steps are
    done.
    """
    batch: int = Field(32, ge=2)
    """The number of clips of a step of the fine-tuning."""
    lr: float = Field(1e-3, gt=0)
    """The first learning rate of the encoder; lower it if the cross-entropy of held-out clips does not fall."""
    head_lr: float = Field(1e-3, gt=0)
    """The first learning rate of the linear head, which starts with the weights of the linear probe."""


class ClassificationConfig(Config):
    """Classification of clips. If a method has its own classifier, it is evaluated too."""

    task: Literal["classification"]
    """``classification`` predicts the labels of clips: accuracies and recall by class."""
    corpus: str
    """Folder or URI of the prepared test corpus; its labels have the same names as those of the training corpus."""
    probes: list[Literal["linear", "knn", "finetune"]] = ["linear", "knn"]
    """The classifiers to train on the training corpus's labels: ``linear`` and ``knn`` on the frozen encoder,
    ``finetune`` with the whole encoder.
    """
    shares: list[Annotated[float, Field(gt=0, le=1)]] = [1.0]
    """Each probe runs once for each of these shares, above 0 to 1, with the labels of this share of the training
    corpus's clips (with ``labels.split``: of the clips that are labelled there).
    """
    finetune: FinetuneConfig = FinetuneConfig()
    """The settings of the probe ``finetune``."""
    resamples: int = Field(1000, ge=0)
    """How often speakers, or clips where speakers are unknown, are drawn again for the 95 % interval of the balanced
    accuracy (bootstrap); 0 for no interval.
    """
    actors: int = Field(1, ge=1)
    """The number of actors that embed the clips at once, each on a GPU if there is one. Raise it to use several GPUs or
    nodes.
    """
    batch: int = Field(64, ge=1)
    """The number of clips of one forward pass. It changes speed and memory, not the figures."""
    precision: EmbeddingPrecision = "fp32"
    """Of embedding: ``bf16`` is quicker on a GPU and has three digits, so that cosines differ by some thousandths."""
    crop_share: float = Field(0.0, ge=0, le=0.5)
    """How much of a clip may be cut from its end, as a share of it, so that clips of similar length share a batch: see
    the verification's key. It is for a GPU; it moves the figures. 0 cuts nothing. The probe ``finetune`` never cuts.
    """

    def located(self) -> ClassificationConfig:
        """The same settings with absolute paths."""
        return self.model_copy(update={"corpus": storage.absolute(self.corpus)})


class StagingConfig(Config):
    """Sleep staging of whole nights."""

    task: Literal["staging"]
    """``staging`` predicts the stage of every epoch of whole nights: macro F1, kappa and sleep variables."""
    corpus: str
    """Folder or URI of the prepared test corpus, of nights."""
    split: str | None = None
    """Evaluates only the nights that this split of ``corpus`` holds out (``nights.held_out`` of the preparation); null
    evaluates all nights.
    """
    stride: int = Field(20, ge=1)
    """How many epochs of sleep the next window of a night begins after the one before. Windows overlap where it is
    below the number of epochs that a window scores, and their probabilities are averaged; a larger stride is that
    number. Smaller is slower.
    """
    resamples: int = Field(1000, ge=0)
    """How often subjects are drawn again for the 95 % intervals (bootstrap); 0 for no interval."""
    actors: int = Field(1, ge=1)
    """The number of actors that run the model at once, each on a GPU if there is one. Raise it to use several GPUs or
    nodes.
    """
    batch: int = Field(8, ge=1)
    """The number of windows of one forward pass. It changes speed and memory, not the figures."""

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
