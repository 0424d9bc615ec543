"""What of a loop goes into ``state.pt``, and how a loop continues from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rayssl import collectives
from rayssl.batches.plan import Cursor
from rayssl.errors import CheckpointError, UserError
from rayssl.training import checkpoint
from rayssl.training.meters import MetricAccumulator

if TYPE_CHECKING:
    from rayssl.training.loop import Loop


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of this rank's generators, of the CPU and of its GPU."""
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def content(loop: Loop, states: list[dict[str, Tensor]], sums: dict[str, Tensor], counts: dict[str, Tensor]) -> Any:
    """What `checkpoint.save` writes of ``loop``.

    ``states``: every rank's `random_state`. ``sums``, ``counts``: of the epoch so far. Sums, not means: the mean of an
    interrupted epoch is then the mean over the whole epoch.
    """
    method = loop.state.method
    return {
        "method": method.state_dict(),
        "encoder_prefix": method.encoder_prefix,
        "head_prefix": method.head_prefix,
        "optimiser": loop.optimiser.state_dict(),
        "rng": [state["cpu"] for state in states],
        "rng_cuda": [state["cuda"] for state in states if "cuda" in state],
        "epoch": sums,
        "counts": counts,
        "refreshed": loop.refreshed,
    }


def restore(loop: Loop, loaded: checkpoint.Loaded) -> None:
    """Gives ``loop`` the state that ``loaded`` holds. Raises `CheckpointError` if it does not fit this run."""
    state, meta = loop.state, loaded.meta
    checkpoint.load_module(state.method, loaded.state["method"], loaded.uri, state.architecture)
    if meta.step != meta.epoch * state.steps_per_epoch + meta.epoch_step:
        raise CheckpointError(
            f"{loaded.uri}: step {meta.step} is not at epoch {meta.epoch} with {state.steps_per_epoch} steps an "
            "epoch: the corpus or training.batch has changed; change it back or use another run folder"
        )
    _restore_optimiser(loop, loaded)
    _restore_random(loaded.state, state.context.device)
    if state.checkpointable is not None and loaded.memory:
        try:
            state.checkpointable.load(loaded.uri, loaded.memory)
            if loop.classes is not None:
                loop.classes.restore(loaded.uri, loaded.memory)
        except UserError:
            raise
        except ValueError as error:
            raise CheckpointError(
                f"{loaded.uri}: {error}; the corpus or the method's memory has changed: change it back or use "
                "another run folder"
            ) from error
    epoch = MetricAccumulator(steps=meta.epoch_step, restored=meta.epoch_step)
    if meta.epoch_step:  # at 0 the saved sums are those of the epoch that has ended
        device, first = state.context.device, state.context.rank == 0
        epoch.terms = {name: value.to(device) for name, value in loaded.state["epoch"].items()}
        # the saved counts are sums over all ranks, so rank 0 alone takes them
        counts = {name: value.to(device) for name, value in loaded.state.get("counts", {}).items()}
        epoch.counts = counts if first else {name: value * 0 for name, value in counts.items()}
    loop.resume(meta, Cursor(meta.epoch, meta.epoch_step), epoch, dict(loaded.state["refreshed"]))


def _restore_optimiser(loop: Loop, loaded: checkpoint.Loaded) -> None:
    """Loads the saved moments and keeps this run's own settings: a changed weight decay holds from here on."""
    saved, groups = loaded.state["optimiser"], loop.optimiser.state_dict()["param_groups"]
    if saved["param_groups"] and saved["param_groups"][0].keys() != groups[0].keys():
        raise CheckpointError(
            f"{loaded.uri}: holds the state of another optimiser than {loop.state.config.optimiser.name}; change "
            "training.optimiser.name back or use another run folder"
        )
    loop.optimiser.load_state_dict({"state": saved["state"], "param_groups": groups})


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Gives this rank's generators the states that `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def _restore_random(saved: dict[str, Any], device: torch.device) -> None:
    """Sets this rank's generators. Where there were fewer ranks, it takes the state of one of them."""
    states, on_gpu = saved["rng"], saved.get("rng_cuda", [])
    torch.set_rng_state(states[collectives.rank() % len(states)])
    if on_gpu and device.type == "cuda":
        torch.cuda.set_rng_state(on_gpu[collectives.rank() % len(on_gpu)], device)
