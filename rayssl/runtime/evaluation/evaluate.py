"""`rayssl evaluate`: embeds the test corpus with Ray Data, scores trials or classes, and writes the figures."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayssl import storage
from rayssl.data import shards, trials
from rayssl.errors import ConfigError
from rayssl.evaluation.imbalance import ClassificationResult
from rayssl.evaluation.scoring import as_norm, centred, score_trials, unit_rows
from rayssl.evaluation.settings import ClassificationConfig, StagingConfig, VerificationConfig
from rayssl.evaluation.staging import StagingResult, staging_line
from rayssl.evaluation.verification import Result, verification_result
from rayssl.experiment.config import Experiment, located
from rayssl.inference.encoder import Projection
from rayssl.runs.reading import read_run
from rayssl.runtime.embedding.actors import embed, matrix
from rayssl.runtime.embedding.names import with_names
from rayssl.runtime.embedding.progress import Say, silent
from rayssl.training import checkpoint
from rayssl.training.metrics import read_metrics

_LONG = {"per_class", "confusion", "per_night", "three_class", "two_class", "variables", "majority"}
Figures: TypeAlias = "Result | StagingResult | list[ClassificationResult]"


def evaluate(
    run: str, which: str = "last", overrides: list[str] | None = None, *, local: bool = False, say: Say = silent
) -> Figures:
    """Evaluates a checkpoint of a run on its trials, classes or nights. `rayssl report` shows the figures it returns.

    Writes ``result.json``, and ``embeddings.parquet``, ``scores.parquet`` (of trials) or ``stages.parquet``: for the
    last checkpoint into ``evaluation/`` in the run's folder, for another one into ``evaluation/<which>/``. ``local``:
    in this process, without Ray. ``say`` receives lines of progress. Raises `UserError` naming the run, corpus or
    trials that cannot be used.
    """
    experiment = read_run(run, overrides or [])
    settings = experiment.evaluation
    if settings is None:
        raise ConfigError(
            f"{run}/config.yaml: no 'evaluation' section; add evaluation.corpus=URI evaluation.trials=URI, or "
            "evaluation.task=classification evaluation.corpus=URI"
        )
    experiment = located(experiment)
    settings = experiment.evaluation or settings
    uri = checkpoint.locate(storage.absolute(run), which, experiment.best)
    folder = storage.join(run, "evaluation") if which == "last" else storage.join(run, "evaluation", which)
    storage.check_writable(folder)
    experiment.storage.apply()
    if isinstance(settings, StagingConfig):
        from rayssl.runtime.evaluation.staging import stage  # imports the models of nights

        staged, table = stage(experiment, settings, uri, local=local, say=say)
        _write_table(folder, "stages", table)
        _write_result(folder, staged.model_dump(mode="json"))
        return staged
    if isinstance(settings, ClassificationConfig):
        from rayssl.runtime.evaluation.classify import classify  # imports scikit-learn, which trials do not need

        results, table = classify(experiment, settings, uri, local=local, say=say)
        _write_table(folder, "embeddings", with_names(table, partial(shards.read_labels, settings.corpus)))
        _write_result(folder, [result.model_dump(mode="json") for result in results])
        return results
    return _verify(experiment, settings, uri, folder, partial(embed, experiment, uri, local=local, say=say))


def over_time(
    run: str, overrides: list[str] | None = None, *, local: bool = False, say: Say = silent
) -> Iterator[tuple[str, Figures]]:
    """Evaluates every checkpoint at the end of an epoch that is still there (see ``training.checkpoints.milestones``).

    Yields the name of each checkpoint and its figures. At the end it writes ``evaluation/over_time.jsonl`` with a line
    for each, which includes the seconds of training until then, without interruptions, filling and clustering.
    """
    experiment = read_run(run, overrides or [])
    lines = [line for line in read_metrics(storage.join(run, "metrics.jsonl")) if line["kind"] == "epoch"]
    metas = [checkpoint.read_meta(uri) for uri in checkpoint.all_uris(storage.absolute(run))]
    written = []
    for meta in (meta for meta in metas if meta.epoch_step == 0):
        which = f"epoch-{meta.epoch}"
        found = evaluate(run, which, overrides, local=local, say=say)
        done = [line for line in lines if line["step"] <= meta.step]
        steps = np.diff([0, *(line["step"] for line in done)])
        rates = [line["utterances_per_s"] / experiment.training.batch for line in done]
        record = {"kind": "probe", "epoch": meta.epoch, "step": meta.step, "seconds": float(np.sum(steps / rates))}
        first = found[0] if isinstance(found, list) else found
        written.append({**record, **first.model_dump(mode="json", exclude=_LONG)})
        yield which, found
    text = "".join(json.dumps(line) + "\n" for line in written)
    storage.write_text(storage.join(run, "evaluation", "over_time.jsonl"), text)


def summary_line(result: Result | StagingResult | ClassificationResult) -> str:
    """The figures in one line."""
    if isinstance(result, StagingResult):
        return staging_line(result)
    return _classified(result) if isinstance(result, ClassificationResult) else _verified(result)


def _verified(result: Result) -> str:
    interval = "" if result.eer_low is None else f" [{result.eer_low:.2%}, {result.eer_high:.2%}]"
    if result.eer_low is not None and result.eer_low == result.eer_high:
        interval = f" (no interval: {result.speakers or 'too few'} speakers say nothing about others)"
    nearest = (
        "" if result.eer_nearest is None else f" on the ROC convex hull, {result.eer_nearest:.2%} by max(FPR, FNR)"
    )
    return (
        f"EER {result.eer:.2%}{interval}{nearest}, "
        f"minDCF(0.01) {result.min_dcf_001:.3f}, minDCF(0.05) {result.min_dcf_005:.3f} "
        f"over {result.trials} trials ({result.targets} of the same speaker)"
    )


def _classified(result: ClassificationResult) -> str:
    low, high = result.balanced_accuracy_low, result.balanced_accuracy_high
    interval = "" if low is None else f" [{low:.2%}, {high:.2%}]"
    return (
        f"{result.head} with {result.share:.0%} of the labels: balanced accuracy "
        f"{result.balanced_accuracy:.2%}{interval}, geometric mean {result.geometric_mean:.2%}, "
        f"macro F1 {result.macro_f1:.2%} over {result.n} clips"
    )


def _verify(
    experiment: Experiment, settings: VerificationConfig, uri: str, folder: str, embedded: Callable[..., pa.Table]
) -> Result:
    """Scores the trials with the checkpoint at ``uri``, which ``embedded`` uses, and writes to ``folder``."""
    listed = trials.read_for(settings.trials, settings.corpus)
    project = Projection(experiment, uri) if settings.embedding == "projection" else None
    table = _compared(embedded, project, settings.corpus)
    names = table.column("name").to_pylist()
    scores, norms = _scores(settings, listed, table, partial(_compared, embedded, project))
    speakers = dict(zip(names, table.column("speaker").to_pylist(), strict=True))
    enrol, test = [trial.enrol for trial in listed], [trial.test for trial in listed]
    known = settings.resamples > 0 and all(speakers[name] >= 0 for name in {*enrol, *test})
    result = verification_result(
        scores,
        [trial.label for trial in listed],
        [speakers[name] for name in enrol] if known else None,
        [speakers[name] for name in test] if known else None,
        seed=experiment.seed,
        resamples=max(1, settings.resamples),
        norm=", ".join((["projection"] if project else []) + norms) or "none",
        checkpoint=uri.rsplit("/", 1)[-1],
    )
    scored = pa.table(
        {
            "enrol": pa.array([trial.enrol for trial in listed]),
            "test": pa.array([trial.test for trial in listed]),
            "label": pa.array([trial.label for trial in listed], pa.int8()),
            "score": pa.array(scores, pa.float32()),
        }
    )
    _write_table(folder, "embeddings", with_names(table, partial(shards.read_labels, settings.corpus)))
    _write_table(folder, "scores", scored)
    _write_result(folder, result.model_dump(mode="json"))
    return result


def _compared(
    embedded: Callable[..., pa.Table], project: Projection | None, corpus: str, limit: int | None = None
) -> pa.Table:
    """The table of ``embedded``, whose column ``embedding`` has what is compared, of unit length."""
    table = embedded(corpus, limit=limit, normalise=project is None)
    if project is None:
        return table
    rows = unit_rows(project(matrix(table)), len(table))
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
    return table.set_column(table.schema.get_field_index("embedding"), "embedding", column)


def _scores(
    settings: VerificationConfig, listed: list[trials.Trial], table: pa.Table, compared: Callable[..., pa.Table]
) -> tuple[np.ndarray, list[str]]:
    """The scores ``[n]`` of the trials, and what was done to them and to the embeddings in ``table``."""
    names, rows = table.column("name").to_pylist(), matrix(table)
    others, norms = None, list[str]()
    if settings.centre is not None:
        others = matrix(compared(settings.centre.corpus, limit=settings.centre.utterances))
        rows = centred(rows, others)
        norms.append(f"centred({len(others)})")
    scores = score_trials(listed, names, rows)
    if settings.as_norm is not None:
        found = matrix(compared(settings.as_norm.cohort, limit=settings.as_norm.utterances))
        cohort = found if others is None else centred(found, others)
        scores = as_norm(scores, listed, names, rows, cohort, top=settings.as_norm.top)
        norms.append(f"as-norm({len(cohort)}, top {settings.as_norm.top})")
    return scores, norms


def _write_table(folder: str, name: str, table: pa.Table) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    storage.write_bytes(storage.join(folder, f"{name}.parquet"), sink.getvalue())


def _write_result(folder: str, result: Any) -> None:
    storage.write_text(storage.join(folder, "result.json"), json.dumps(result, indent=1))
