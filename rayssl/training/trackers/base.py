"""The interface `Tracker`, which takes a run's figures, and what its implementations share.

Implementations: `rayssl.training.metrics.RunLog` (the run's own file), `rayssl.runtime.telemetry.RayMetrics` (for
Prometheus, through Ray), and the optional `MlflowTracker` and `WandbTracker` in this folder. A configuration names the
optional ones, and `rayssl.training.trackers.opening` opens them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, model_validator

from rayssl import storage
from rayssl.errors import UserError
from rayssl.schema import Config


class Tracker:
    """Takes the figures of the loop, and ignores those that it does not need. Ranks other than 0 have few trackers.

    Kinds of records: "step" (means since the last one), "refresh" (a clustering), "epoch", "classes" (counts by class),
    "event". Figures are already Python numbers here, so that no tracker waits for a device.
    """

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Takes the figures of ``step``."""

    def observe(self, name: str, seconds: Sequence[float]) -> None:
        """Takes the durations of several events, such as the last ten steps; for trackers with histograms."""

    def flush(self) -> None:
        """Sends what waits. Called before a checkpoint: a run that resumes there does not write these figures again."""

    def close(self, *, failed: bool = False) -> None:
        """Called when the run or its process ends. A second call does nothing."""


class Several(Tracker):
    """Passes every call to each of ``trackers``, in order."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = tuple(trackers)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """See `Tracker.write`."""
        for tracker in self.trackers:
            tracker.write(kind, step, **values)

    def observe(self, name: str, seconds: Sequence[float]) -> None:
        """See `Tracker.observe`."""
        for tracker in self.trackers:
            tracker.observe(name, seconds)

    def flush(self) -> None:
        """See `Tracker.flush`."""
        for tracker in self.trackers:
            tracker.flush()

    def close(self, *, failed: bool = False) -> None:
        """Closes all, the last one first. The run's own file is the first tracker and may raise: it is closed last."""
        for tracker in reversed(self.trackers):
            tracker.close(failed=failed)


class MlflowConfig(Config):
    """A run on an MLflow server, or in an SQLite file with an absolute path, ``sqlite:////...``.

    The account comes from the workers' environment: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or
    MLFLOW_TRACKING_TOKEN.
    """

    name: Literal["mlflow"]
    """MLflow: the figures go to a run on a tracking server or in an SQLite file (extra ``mlflow``)."""
    uri: str
    """Address of the server, ``http://HOST:PORT``, or ``sqlite:////ABSOLUTE/PATH.db``. It must hold no account."""
    experiment: str = "rayssl"
    """The name of MLflow's experiment to which the run belongs; it is made if it does not exist."""

    @property
    def place(self) -> str:
        """Where the tracked run is. Two configurations with the same place continue the same tracked run."""
        return f"{self.uri} {self.experiment}"

    @model_validator(mode="after")  # not a field validator: its error would print the value
    def _without_account(self) -> MlflowConfig:
        if "@" in urlsplit(self.uri).netloc:
            raise ValueError(
                "its uri holds an account, which would be stored with the run; leave it out and set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        if ":" not in self.uri:
            raise ValueError(
                f"its uri '{self.uri}' is not an address; give http://HOST:PORT or sqlite:////ABSOLUTE/PATH.db"
            )
        return self


class WandbConfig(Config):
    """A run at Weights & Biases. With ``mode: offline`` it stays in the run's folder for `wandb sync`.

    The key comes from WANDB_API_KEY in the workers' environment. WANDB_BASE_URL names another server.
    """

    name: Literal["wandb"]
    """Weights & Biases: the figures go to a run in a project there (extra ``wandb``)."""
    project: str = "rayssl"
    """The name of the project at Weights & Biases to which the run belongs."""
    entity: str | None = None
    """The team or user that owns the project; null takes the default of the account."""
    mode: Literal["online", "offline"] = "online"
    """``online`` sends figures while the run trains. ``offline`` keeps them in the run's folder, which must be local,
    for a later ``wandb sync``.
    """

    @property
    def place(self) -> str:
        """Where the tracked run is. Two configurations with the same place continue the same tracked run."""
        return f"{self.entity} {self.project}"


class TensorboardConfig(Config):
    """TensorBoard's event files in the run's folder. `rayssl.training.metrics.RunLog` writes them for every run."""

    name: Literal["tensorboard"]
    """TensorBoard: event files in the run's folder ``tensorboard/``. Every run has them; to name it changes nothing."""


TrackerConfig = Annotated[TensorboardConfig | MlflowConfig | WandbConfig, Field(discriminator="name")]


def _listed(given: Any) -> Any:
    """A list for one tracker, and settings for the name of a tracker."""
    if isinstance(given, list):
        return [_named(each) for each in given]
    return [_named(given)] if isinstance(given, str | dict) else given


def _named(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    if given == "mlflow":
        raise ValueError("mlflow needs the address of its server: [{name: mlflow, uri: 'http://HOST:PORT'}]")
    if given not in ("tensorboard", "wandb"):
        raise ValueError("expected tensorboard, wandb, or a list such as [{name: wandb, project: speech}]")
    return {"name": given}


_Name = Literal["tensorboard", "wandb"]
Trackers = Annotated[
    list[TrackerConfig], BeforeValidator(_listed, json_schema_input_type=_Name | list[_Name | TrackerConfig])
]


@dataclass(frozen=True)
class Identity:
    """The run that is tracked: its folder, its resolved configuration, and whether it resumes from a checkpoint."""

    run: str
    settings: dict[str, Any] = field(default_factory=dict)
    resumed: bool = False

    @property
    def title(self) -> str:
        """The last two parts of the folder's name."""
        return "/".join(self.run.rstrip("/").rsplit("/", 2)[-2:])


def known_id(config: MlflowConfig | WandbConfig, of: Identity) -> str | None:
    """The identifier that an earlier process of the run had at this place; None for a new run."""
    if not of.resumed:
        return None
    try:
        found = json.loads(storage.read_text(_file(config, of)))
    except (UserError, ValueError):
        return None
    return str(found["id"]) if isinstance(found, dict) and "id" in found else None


def keep_id(config: MlflowConfig | WandbConfig, of: Identity, known: str) -> None:
    """Writes the identifier to the run's folder, for the next process of the run."""
    storage.write_text(_file(config, of), json.dumps({"tracker": config.name, "id": known}))


def _file(config: MlflowConfig | WandbConfig, of: Identity) -> str:
    place = hashlib.sha256(config.place.encode()).hexdigest()[:8]
    return storage.join(of.run, "trackers", f"{config.name}-{place}.json")


def local_path(uri: str) -> str | None:
    """The folder that a local ``uri`` names; None for a URI in object storage."""
    filesystem, path = storage.filesystem(uri)
    protocols = (filesystem.protocol,) if isinstance(filesystem.protocol, str) else filesystem.protocol
    return path if "file" in protocols else None
