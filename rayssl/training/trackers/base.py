"""Where a run's figures go: one interface, `Tracker`, and what is common to those who implement it.

Implementations: `rayssl.training.metrics.RunLog` (the run's own file), `rayssl.runtime.telemetry.RayMetrics` (for
Prometheus, by way of Ray), and the optional `tracker_mlflow` and `tracker_wandb`, which a configuration names.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import Full, Queue
from threading import Thread
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from rayssl import storage
from rayssl.errors import ConfigError, UserError
from rayssl.schema import Config

_WAITING = 10_000  # records kept for a server that does not answer


class Tracker:
    """Takes what the loop has found; passes over what it has no use for. Ranks other than 0 have few of them.

    Kinds of records: "step" (means since the last one), "refresh" (a clustering), "epoch", "classes" (counts by class),
    "event". Figures are Python numbers by the time they come here, so that no tracker waits for a device.
    """

    def write(self, kind: str, step: int, **values: Any) -> None:
        """The figures of ``step``."""

    def observe(self, name: str, seconds: Sequence[float]) -> None:
        """How long each of several events took, such as the last ten of ``step``; for those that keep histograms."""

    def flush(self) -> None:
        """Called before a checkpoint: what was written is not written again after it."""

    def close(self, *, failed: bool = False) -> None:
        """The end of this life of the run; a second call does nothing."""


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
        """What decides whether an earlier run is to be found again."""
        return f"{self.uri} {self.experiment}"

    @model_validator(mode="after")  # of the whole, for of a field the value would be shown
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
        """What decides whether an earlier run is to be found again."""
        return f"{self.entity} {self.project}"


TrackerConfig = Annotated[MlflowConfig | WandbConfig, Field(discriminator="name")]
_PACKAGES = {"mlflow": "mlflow-skinny", "wandb": "wandb"}


@dataclass(frozen=True)
class Identity:
    """The run that is tracked: its folder, its resolved configuration, and whether it goes on from a checkpoint."""

    run: str
    settings: dict[str, Any] = field(default_factory=dict)
    resumed: bool = False

    @property
    def title(self) -> str:
        """The last two parts of the folder's name."""
        return "/".join(self.run.rstrip("/").rsplit("/", 2)[-2:])


def check(configs: Sequence[MlflowConfig | WandbConfig], run: str) -> None:
    """Raises `ConfigError` for a tracker that cannot work: its package is missing, or the run's folder is of no use."""
    for index, config in enumerate(configs):
        if importlib.util.find_spec(config.name) is None:
            raise ConfigError(
                f"training.trackers.{index}.name={config.name}: the package is not installed; "
                f"pip install {_PACKAGES[config.name]}, or leave the tracker out"
            )
        if isinstance(config, WandbConfig) and config.mode == "offline" and local_path(run) is None:
            raise ConfigError(
                f"training.trackers.{index}.mode=offline: wandb keeps such files in a local folder, and {run} is none; "
                "set mode=online"
            )


def open_all(configs: Sequence[MlflowConfig | WandbConfig], of: Identity, say: Callable[[str], None]) -> list[Tracker]:
    """The configured trackers, each in a thread of its own. Raises `ConfigError` as `check` does."""
    check(configs, of.run)
    return [Background(config.name, _opening(config, of), say) for config in configs]


def _opening(config: MlflowConfig | WandbConfig, of: Identity) -> Callable[[], Tracker]:
    def start() -> Tracker:
        if isinstance(config, MlflowConfig):
            from rayssl.training.trackers.mlflow import MlflowTracker

            return MlflowTracker(config, of)
        from rayssl.training.trackers.wandb import WandbTracker

        return WandbTracker(config, of)

    return start


class Background(Tracker):
    """A tracker whose server may be slow, or gone: training never waits for it, and never ends because of it.

    ``start`` opens it in the thread that then serves it. Only numbers are passed on, with their ``time`` (Unix
    seconds). What goes wrong is said once, and ends it; where ``waiting`` records wait for it, more are left out, which
    is said once too.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[], Tracker],
        say: Callable[[str], None],
        *,
        waiting: int = _WAITING,
        patience_s: float = 30.0,
    ) -> None:
        self._name, self._start, self._say, self._patience_s = name, start, say, patience_s
        self._records: Queue[tuple[str, int, dict[str, float]] | bool] = Queue(waiting)
        self._lost = self._over = False
        self._thread = Thread(target=self._serve, name=f"rayssl-{name}", daemon=True)
        self._thread.start()

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Returns at once."""
        numbers = {
            name: float(value)
            for name, value in values.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        if not numbers or self._over:
            return
        try:
            self._records.put_nowait((kind, step, {"time": time.time(), **numbers}))
        except Full:
            if not self._lost:
                self._say(f"{self._name}: does not keep up; figures are missing there from step {step} on")
            self._lost = True

    def close(self, *, failed: bool = False) -> None:
        """Waits until everything is passed on, ``patience_s`` seconds at the most."""
        if self._over:
            return
        self._over = True
        try:
            self._records.put(failed, timeout=self._patience_s)
        except Full:
            return
        self._thread.join(self._patience_s)
        if self._thread.is_alive():
            self._say(f"{self._name}: has not taken everything in {self._patience_s:g} s; its last figures are missing")

    def _serve(self) -> None:
        try:
            tracker = self._start()
            while not isinstance(record := self._records.get(), bool):
                kind, step, numbers = record
                tracker.write(kind, step, **numbers)
            tracker.close(failed=record)
        except BaseException as error:  # some of these packages raise SystemExit
            self._over = True
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self._say(f"{self._name}: {lines[0][:300]}; training goes on without it")


def known_id(config: MlflowConfig | WandbConfig, of: Identity) -> str | None:
    """The identifier that an earlier life of the run had at this place; None for a run that begins."""
    if not of.resumed:
        return None
    try:
        found = json.loads(storage.read_text(_file(config, of)))
    except (UserError, ValueError):
        return None
    return str(found["id"]) if isinstance(found, dict) and "id" in found else None


def keep_id(config: MlflowConfig | WandbConfig, of: Identity, known: str) -> None:
    """Writes the identifier to the run's folder, for its next life."""
    storage.write_text(_file(config, of), json.dumps({"tracker": config.name, "id": known}))


def _file(config: MlflowConfig | WandbConfig, of: Identity) -> str:
    place = hashlib.sha256(config.place.encode()).hexdigest()[:8]
    return storage.join(of.run, "trackers", f"{config.name}-{place}.json")


def local_path(uri: str) -> str | None:
    """The folder of a local ``uri``, None for one in object storage."""
    filesystem, path = storage.filesystem(uri)
    protocols = (filesystem.protocol,) if isinstance(filesystem.protocol, str) else filesystem.protocol
    return path if "file" in protocols else None
