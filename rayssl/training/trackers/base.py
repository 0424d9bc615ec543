"""Where a run's figures go: one interface, `Tracker`, and what is common to those who implement it.

Implementations: `rayssl.training.metrics.RunLog` (the run's own file), `rayssl.runtime.telemetry.RayMetrics` (for
Prometheus, through Ray), and the optional `MlflowTracker` and `WandbTracker` beside this file, which a configuration
names and `rayssl.training.trackers.opening` opens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from rayssl import storage
from rayssl.errors import UserError
from rayssl.schema import Config


class Tracker:
    """Takes the figures of the loop and ignores those it has no use for. Ranks other than 0 have few trackers.

    Kinds of records: "step" (means since the last one), "refresh" (a clustering), "epoch", "classes" (counts by class),
    "event". Figures are Python numbers by the time they come here, so that no tracker waits for a device.
    """

    def write(self, kind: str, step: int, **values: Any) -> None:
        """The figures of ``step``."""

    def observe(self, name: str, seconds: Sequence[float]) -> None:
        """How long each of several events took, such as the last ten steps; for trackers that keep histograms."""

    def flush(self) -> None:
        """Called before a checkpoint: a run that resumes from it does not write the same figures again."""

    def close(self, *, failed: bool = False) -> None:
        """The run ends, or its process does; a second call does nothing."""


class Several(Tracker):
    """Hands everything to each of ``trackers``, in order."""

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
        """Closes all, the last one first: the run's own file, which may raise, is the first."""
        for tracker in reversed(self.trackers):
            tracker.close(failed=failed)


class MlflowConfig(Config):
    """A run on an MLflow server, or in an absolute ``sqlite:////...``. The account comes from the environment of the
    workers: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN.
    """

    name: Literal["mlflow"]
    uri: str
    experiment: str = "rayssl"

    @property
    def place(self) -> str:
        """Two configurations of the same place continue the same tracked run."""
        return f"{self.uri} {self.experiment}"

    @model_validator(mode="after")  # of the model: an error of a field would show the value
    def _without_account(self) -> MlflowConfig:
        if "@" in urlsplit(self.uri).netloc:
            raise ValueError(
                "its uri holds an account, and configurations are stored; leave it out and set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        if ":" not in self.uri:
            raise ValueError(
                f"its uri '{self.uri}' is no address; give http://HOST:PORT or sqlite:////ABSOLUTE/PATH.db"
            )
        return self


class WandbConfig(Config):
    """A run of Weights & Biases. ``mode: offline`` keeps it in the run's folder for `wandb sync`. The key comes from
    WANDB_API_KEY in the environment of the workers, another server from WANDB_BASE_URL.
    """

    name: Literal["wandb"]
    project: str = "rayssl"
    entity: str | None = None
    mode: Literal["online", "offline"] = "online"

    @property
    def place(self) -> str:
        """Two configurations of the same place continue the same tracked run."""
        return f"{self.entity} {self.project}"


TrackerConfig = Annotated[MlflowConfig | WandbConfig, Field(discriminator="name")]


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
    """The identifier that an earlier process of the run had at this place; None for a run that begins."""
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
    """The folder of a local ``uri``, None for one in object storage."""
    filesystem, path = storage.filesystem(uri)
    protocols = (filesystem.protocol,) if isinstance(filesystem.protocol, str) else filesystem.protocol
    return path if "file" in protocols else None
