"""Classifies a run's test corpus: with the method's own classifier, with probes, and after fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from rayssl.data import shards
from rayssl.data.shards import Manifest
from rayssl.errors import ConfigError, CorpusError
from rayssl.evaluation import finetune, probes
from rayssl.evaluation.imbalance import ClassificationResult, classification_result
from rayssl.evaluation.settings import ClassificationConfig
from rayssl.experiment.clips import class_of, labelled_clips, waves
from rayssl.experiment.config import Experiment
from rayssl.inference.encoder import load_encoder
from rayssl.runtime.embedding.actors import embed, matrix
from rayssl.runtime.embedding.progress import Say, silent
from rayssl.training import checkpoint


@dataclass(frozen=True)
class Material:
    """The clips for training probes and for testing.

    ``train_rows`` and ``test_rows`` are embeddings ``[n, D]``, not normalised; ``train`` and ``test`` are classes
    ``[n]``; ``train_ids`` are the utterances of the training clips; ``groups`` are the speakers of the test clips.
    """

    names: list[str]
    train_rows: np.ndarray
    train_ids: np.ndarray
    train: np.ndarray
    test_rows: np.ndarray
    test: np.ndarray
    groups: np.ndarray | None

    @property
    def counts(self) -> list[int]:
        """The number of training clips of each class."""
        return np.bincount(self.train, minlength=len(self.names)).tolist()  # type: ignore[no-any-return]


def classify(
    experiment: Experiment, settings: ClassificationConfig, uri: str, *, local: bool = False, say: Say = silent
) -> tuple[list[ClassificationResult], pa.Table]:
    """The figures of the checkpoint at ``uri`` and the test embeddings. The method's own classifier is the first.

    Test clips are left out if their class does not occur in the training corpus (or in its split). ``say`` receives
    lines of progress. Raises `UserError` naming the corpus or the key that cannot be used.
    """
    how: dict[str, Any] = {"normalise": False, "local": local, "say": say}
    manifest, test = shards.read_manifest(experiment.corpus.uri), shards.read_manifest(settings.corpus)
    names, ids, labels = labelled_clips(experiment, manifest)
    table = embed(experiment, uri, settings.corpus, **how)
    classes = class_of(names, settings.corpus, test)
    tested = np.flatnonzero(classes >= 0)
    if not len(tested):
        raise CorpusError(
            f"{settings.corpus}: no clip has one of the labels {', '.join(names[:5])} of {experiment.corpus.uri}; "
            "name another corpus in evaluation.corpus"
        )
    speakers = np.asarray(table["speaker"].to_numpy())[tested]
    rows = matrix(table)
    needed = [probe for probe in settings.probes if probe != "finetune"]
    seen = matrix(embed(experiment, uri, experiment.corpus.uri, **how))[ids] if needed else rows[:0]
    material = Material(
        names, seen, ids, labels, rows[tested], classes[tested], speakers if (speakers >= 0).all() else None
    )
    results = own_classifier(experiment, settings, uri, material)
    for share, chosen in probes.label_shares(labels, tuple(settings.shares), seed=experiment.seed).items():
        for probe in settings.probes:
            predicted = _probed(experiment, settings, uri, material, probe, chosen, (manifest, test, tested), say)
            results.append(_result(experiment, settings, uri, material, predicted, head=probe, share=share))
    if not results:
        raise ConfigError(
            "evaluation.probes: empty, and the method has no classifier of its own; name linear, knn or finetune"
        )
    return results, table


def own_classifier(
    experiment: Experiment, settings: ClassificationConfig, uri: str, material: Material
) -> list[ClassificationResult]:
    """The figures of the classifier that was trained with the encoder; an empty list if there is none."""
    loaded = checkpoint.load(uri)
    prefix = loaded.state.get("head_prefix")
    if prefix is None:
        return []
    weight, bias = (loaded.state["method"][f"{prefix}linear.{name}"].double() for name in ("weight", "bias"))
    logits = torch.from_numpy(material.test_rows).double() @ weight.T + bias
    return [_result(experiment, settings, uri, material, logits.argmax(1).numpy(), head="model", share=1.0)]


def _probed(
    experiment: Experiment,
    settings: ClassificationConfig,
    uri: str,
    material: Material,
    probe: str,
    chosen: np.ndarray,
    corpora: tuple[Manifest, Manifest, np.ndarray],
    say: Say,
) -> np.ndarray:
    """The classes ``[m]`` of the test clips that ``probe`` predicts, trained on the training clips ``chosen``."""
    labels = material.train[chosen]
    if probe == "linear":
        return probes.linear_probe(material.train_rows[chosen], labels, material.test_rows, seed=experiment.seed)
    if probe == "knn":
        return probes.knn(material.train_rows[chosen], labels, material.test_rows)
    manifest, test, tested = corpora
    heard = waves(experiment.corpus.uri, manifest, material.train_ids[chosen])
    device = torch.device("cuda" if torch.cuda.is_available() and experiment.ray.gpu is not False else "cpu")
    how = settings.finetune
    tuned = finetune.finetune(
        load_encoder(experiment, uri, manifest.rate),
        heard,
        labels,
        classes=len(material.names),
        epochs=how.epochs,
        steps=how.steps,
        batch=how.batch,
        lr=how.lr,
        head_lr=how.head_lr,
        segment=max(1, round(experiment.views.segment_s * manifest.rate)),
        seed=experiment.seed,
        device=device,
    )
    say(f"fine-tuning with {len(chosen)} labelled clips: {tuned.told}")
    return finetune.predict(tuned.encoder, tuned.head, waves(settings.corpus, test, tested), device, settings.batch)


def _result(
    experiment: Experiment,
    settings: ClassificationConfig,
    uri: str,
    material: Material,
    predicted: np.ndarray,
    *,
    head: str,
    share: float,
) -> ClassificationResult:
    return classification_result(
        material.test,
        predicted,
        material.names,
        train_counts=material.counts,
        seed=experiment.seed,
        resamples=settings.resamples,
        groups=material.groups,
        checkpoint=uri.rsplit("/", 1)[-1],
        head=head,
        share=share,
    )
