"""Sends a run's figures to an MLflow server. Needs the package `mlflow-skinny` (or `mlflow`)."""

from __future__ import annotations

import os
from typing import Any

from rayssl.schema import flatten
from rayssl.training.trackers.base import Identity, MlflowConfig, Tracker, keep_id, known_id

_PARAMETERS_A_CALL = 100  # MLflow's limit


class MlflowTracker(Tracker):
    """Writes metrics ``<kind>/<name>``, and the configuration as parameters. Resumes an earlier process's tracked run.

    After a restart the steps since the last checkpoint appear twice: MLflow cannot delete what it has.
    """

    def __init__(self, config: MlflowConfig, of: Identity) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric: Any = Metric
        self._client: Any = MlflowClient(tracking_uri=config.uri)
        known = known_id(config, of)
        if known is not None:
            self._run = known
            self._client.update_run(known, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(config.experiment)
        experiment = self._client.create_experiment(config.experiment) if found is None else found.experiment_id
        self._run = self._client.create_run(experiment, run_name=of.title, tags={"rayssl.run": of.run}).info.run_id
        keep_id(config, of, self._run)
        parameters = [Param(key, str(value)[:500]) for key, value in flatten(of.settings).items()]
        for first in range(0, len(parameters), _PARAMETERS_A_CALL):
            self._client.log_batch(self._run, params=parameters[first : first + _PARAMETERS_A_CALL])

    def write(self, kind: str, step: int, **values: Any) -> None:
        """One call for all metrics of the record."""
        stamp = int(1000 * values.pop("time"))
        metrics = [self._metric(f"{kind}/{name}", value, stamp, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self, *, failed: bool = False) -> None:
        """Marks the tracked run as finished or failed."""
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")
