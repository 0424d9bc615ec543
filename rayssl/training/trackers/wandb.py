"""Sends a run's figures to Weights & Biases. Needs the package `wandb`."""

from __future__ import annotations

import secrets
import tempfile
from typing import Any

from rayssl.training.trackers.base import Identity, Tracker, WandbConfig, keep_id, known_id, local_path


class WandbTracker(Tracker):
    """Writes figures ``<kind>/<name>`` over ``step``, and the configuration. Resumes an earlier process's tracked run.

    After a restart the steps since the last checkpoint appear twice. Neither code nor console output is sent.
    """

    def __init__(self, config: WandbConfig, of: Identity) -> None:
        import wandb

        known = known_id(config, of)
        self._scratch = None if config.mode == "offline" else tempfile.TemporaryDirectory(prefix="rayssl-wandb-")
        self._run: Any = wandb.init(
            project=config.project,
            entity=config.entity,
            mode=config.mode,
            dir=local_path(of.run) if self._scratch is None else self._scratch.name,
            id=known or secrets.token_hex(4),
            resume="allow",
            name=of.title,
            config=of.settings,
            settings=wandb.Settings(console="off", silent=True, disable_git=True, save_code=False),
        )
        if known is None:
            keep_id(config, of, self._run.id)
        # W&B's own step never decreases, but ours does when a run resumes from a checkpoint
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Writes one record."""
        values.pop("time")  # W&B has its own
        self._run.log({"step": step, **{f"{kind}/{name}": value for name, value in values.items()}})

    def close(self, *, failed: bool = False) -> None:
        """Waits until everything is sent, or written to the run's folder."""
        self._run.finish(exit_code=1 if failed else 0)
        if self._scratch is not None:
            self._scratch.cleanup()
