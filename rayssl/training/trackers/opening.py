"""Opens the trackers that a configuration names, each in its own thread."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import TypeAlias

from rayssl.errors import ConfigError
from rayssl.training.trackers.background import Background
from rayssl.training.trackers.base import Identity, MlflowConfig, TensorboardConfig, Tracker, WandbConfig, local_path

AnyTracker: TypeAlias = TensorboardConfig | MlflowConfig | WandbConfig

_PACKAGES = {"mlflow": "mlflow-skinny", "wandb": "wandb"}


def check(configs: Sequence[AnyTracker], run: str) -> None:
    """Raises `ConfigError` for a tracker that cannot work: its package is missing, or it needs a local folder."""
    for index, config in enumerate(configs):
        if not isinstance(config, TensorboardConfig) and importlib.util.find_spec(config.name) is None:
            raise ConfigError(
                f"training.trackers.{index}.name={config.name}: the package is not installed; "
                f"pip install {_PACKAGES[config.name]}, or leave the tracker out"
            )
        if isinstance(config, WandbConfig) and config.mode == "offline" and local_path(run) is None:
            raise ConfigError(
                f"training.trackers.{index}.mode=offline: wandb writes to a local folder, and {run} is not local; "
                "set mode=online"
            )


def open_all(configs: Sequence[AnyTracker], of: Identity, say: Callable[[str], None]) -> list[Tracker]:
    """The configured trackers, each in its own thread. Raises `ConfigError` as `check` does.

    TensorBoard is not among them: the run's own file `rayssl.training.metrics.RunLog` writes for it.
    """
    check(configs, of.run)
    others = [config for config in configs if not isinstance(config, TensorboardConfig)]
    return [Background(config.name, _opening(config, of), say) for config in others]


def _opening(config: MlflowConfig | WandbConfig, of: Identity) -> Callable[[], Tracker]:
    def start() -> Tracker:
        if isinstance(config, MlflowConfig):
            from rayssl.training.trackers.mlflow import MlflowTracker

            return MlflowTracker(config, of)
        from rayssl.training.trackers.wandb import WandbTracker

        return WandbTracker(config, of)

    return start
