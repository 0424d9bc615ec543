"""What a training needs only later, looked for before it starts: the evaluation's corpora and trials, and noises."""

from __future__ import annotations

from collections.abc import Callable

from rayssl.data import shards, trials
from rayssl.data.shards import Manifest
from rayssl.errors import ConfigError, UserError
from rayssl.evaluation.settings import ClassificationConfig, StagingConfig, VerificationConfig
from rayssl.experiment.job import Job
from rayssl.models.nightmel import NightMelConfig
from rayssl.training.validate import KINDS


def check(job: Job) -> list[str]:
    """Looks for everything that the run's evaluation and its noises need.

    Returns:
        Lines for the user about what will not happen, for example a milestone after the last epoch.

    Raises:
        ConfigError: one line with every fault that was found, each with its key.
    """
    found = list[str]()

    def look(key: str, action: Callable[[], object]) -> None:
        try:
            action()
        except UserError as error:
            text = str(error)
            found.append(text if text.startswith((f"{key}:", f"'{key}'")) else f"{key}: {text}")

    for key, corpus in {bank.key: bank.corpus for bank in job.banks()}.items():
        look(key, lambda corpus=corpus: _noises(corpus, job.manifest.rate))  # type: ignore[misc]
    _validation(job, look)
    settings = job.experiment.evaluation
    if isinstance(settings, VerificationConfig):
        _verification(settings, look)
    elif isinstance(settings, ClassificationConfig):
        look("evaluation.corpus", lambda: _classes(job, settings.corpus))
    elif isinstance(settings, StagingConfig):
        look("evaluation.corpus", lambda: _nights(job, settings))
    if found:
        of_evaluation = any(line.startswith("evaluation.") for line in found)
        hint = "; to train without an evaluation, leave its section out" if of_evaluation else ""
        raise ConfigError(f"{'; '.join(found)}{hint}")
    training = job.experiment.training
    late = [epoch for epoch in training.checkpoints.milestones if epoch > training.epochs]
    if not late:
        return []
    listed = ", ".join(map(str, late))
    return [f"training.checkpoints.milestones: {listed} will not be kept, training.epochs is {training.epochs}"]


def _noises(corpus: str, rate: int) -> None:
    manifest = shards.read_manifest(corpus)
    if manifest.rate != rate:
        raise ConfigError(f"{corpus} is at {manifest.rate} Hz, the run's corpus at {rate} Hz; prepare it again")


def _validation(job: Job, look: Callable[[str, Callable[[], object]], None]) -> None:
    settings = job.experiment.training.validate
    if settings is None:
        return
    uri, trial_list, of = settings.corpus, settings.trials, {KINDS[name].of for name in settings.figures}
    if uri is not None:
        look("training.validate.corpus", lambda: _held_out(uri, job.manifest))
    if "trials" in of and uri is not None and trial_list is not None:
        look("training.validate.trials", lambda: trials.read_for(trial_list, uri))
    if "labels" in of and uri is not None:
        look("training.validate.corpus", lambda: _classes(job, uri))


def _held_out(uri: str, training: Manifest) -> None:
    manifest = shards.read_manifest(uri)
    if not manifest.rows or manifest.nights is not None:
        raise ConfigError(f"{uri} has no utterances; name a corpus of utterances")
    if manifest.rate != training.rate:
        raise ConfigError(f"{uri} is at {manifest.rate} Hz, the run's corpus at {training.rate} Hz; prepare it again")


def _verification(settings: VerificationConfig, look: Callable[[str, Callable[[], object]], None]) -> None:
    corpora = list[Manifest]()
    look("evaluation.corpus", lambda: corpora.append(shards.read_manifest(settings.corpus)))
    if corpora:
        look("evaluation.trials", lambda: trials.read_for(settings.trials, settings.corpus))
    else:
        look("evaluation.trials", lambda: trials.read(settings.trials))
    norm, centre = settings.as_norm, settings.centre
    if norm is not None:
        look("evaluation.as_norm.cohort", lambda: shards.read_manifest(norm.cohort))
    if centre is not None:
        look("evaluation.centre.corpus", lambda: shards.read_manifest(centre.corpus))


def _classes(job: Job, corpus: str) -> None:
    """Raises `ConfigError` if no label of the test corpus is one of the training corpus."""
    shards.read_manifest(corpus)
    train, test = (shards.read_labels(uri)["label"] for uri in (job.experiment.corpus.uri, corpus))
    if not set(train) & set(test):
        names = ", ".join(train[:5]) or "none"
        raise ConfigError(f"{corpus} has none of the labels of {job.experiment.corpus.uri} ({names})")


def _nights(job: Job, settings: StagingConfig) -> None:
    """Raises `ConfigError` if the test corpus has no nights, not this split, or other pictures."""
    corpus, manifest = settings.corpus, shards.read_manifest(settings.corpus)
    if manifest.nights is None:
        raise ConfigError(f"{corpus} has no nights; name a corpus of nights")
    if settings.split is not None and settings.split not in manifest.splits:
        raise ConfigError(f"{corpus} has no split '{settings.split}' (evaluation.split)")
    frontend = job.experiment.encoder.frontend
    if isinstance(frontend, NightMelConfig) and manifest.mel is not None and manifest.mel != frontend.mel:
        mine, theirs = frontend.mel.model_dump(), manifest.mel.model_dump()
        odd = next(key for key in mine if mine[key] != theirs[key])
        raise ConfigError(
            f"the pictures of {corpus} were made with {odd}={theirs[odd]}, encoder.frontend.mel.{odd} is {mine[odd]}"
        )
