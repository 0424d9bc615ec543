"""The rules of every method and encoder in training: any number of ranks, resume, repetition, bfloat16."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from rayssl.checks.outcome import Outcome, attempt
from rayssl.checks.small_job import SmallJob, Trace

_STEPS = 6  # an epoch has four, so that the end of an epoch is among them
_LOSS, _GRADIENT = 2e-4, 2e-2  # the largest relative differences that rounding explains
_DRIFT = 2e-2  # the same for the loss of later steps, where rounding has grown
_BF16_LOSS, _BF16_COSINE = 0.05, 0.5  # the narrow networks of this test round more than wide ones


def check_training(trial: SmallJob) -> Iterator[Outcome]:
    """Yields the outcome of each rule."""
    once: list[Trace] = []

    def trains() -> tuple[bool, str]:
        once.append(trial.train(_STEPS))
        return _trained(once[0])

    first = attempt("it trains", trains)
    yield first
    if not once:
        return
    yield attempt("the same bits twice", lambda: _repeats(once[0], trial.train(_STEPS)))
    yield attempt("6 steps = 3 + resume + 3", lambda: _resumes(trial, once[0]))
    yield attempt("one rank = two ranks", lambda: _ranks(trial))
    yield attempt("bfloat16 is close to float32", lambda: _bfloat16(trial, once[0]))


def _trained(trace: Trace) -> tuple[bool, str]:
    losses = trace.losses
    if len(losses) != _STEPS:
        return False, f"{len(losses)} of {_STEPS} steps were logged"
    still = [name for name, gradient in trace.gradients.items() if not gradient.any()]
    if not trace.gradients or len(still) == len(trace.gradients):
        return False, "no parameter has a gradient: is the loss detached from the outputs of forward?"
    if len(set(losses)) == 1:
        return False, f"the loss is {losses[0]:.4g} in every step"
    return True, f"loss {losses[0]:.4g} to {losses[-1]:.4g} in {_STEPS} steps"


def _repeats(one: Trace, other: Trace) -> tuple[bool, str]:
    different = _different(one, other)
    if different is None:
        return True, f"{len(one.weights)} tensors of weights, the optimiser and the memory are equal"
    return False, (
        f"{different} differs between two runs with one seed: draw from the keys of a view (rayssl.random), not from "
        "a generator that is not saved"
    )


def _resumes(trial: SmallJob, whole: Trace) -> tuple[bool, str]:
    run = f"{trial.folder}/resumed"
    trial.train(_STEPS // 2, run=run)
    resumed = trial.train(_STEPS, run=run)
    different = _different(whole, resumed, losses=False)
    if different is None and resumed.losses == whole.losses[_STEPS // 2 :]:
        return True, "weights, optimiser and memory have the same bits as without the interruption"
    return False, (
        f"{different or 'the loss'} differs from the run without an interruption: state that outlives a step belongs "
        "in registered buffers or parameters, not in plain attributes"
    )


def _ranks(trial: SmallJob) -> tuple[bool, str]:
    sync = "training.sync_batchnorm=true"  # otherwise BatchNorm computes something else on each rank
    one, two = trial.train(_STEPS, sync), trial.train_ranks(_STEPS, sync)
    for name, value in two[0].weights.items():
        if not np.array_equal(value, two[1].weights[name]):
            return False, (
                f"after {_STEPS} steps '{name}' is not the same on two ranks: update a buffer from the rows of all "
                "ranks"
            )
    worst, difference = _farthest(two[0].gradients, one.gradients)
    loss = abs(two[0].losses[0] - one.losses[0]) / max(abs(one.losses[0]), 1e-6)
    if loss > _LOSS:
        return False, (
            f"the loss of the first step is {two[0].losses[0]:.6g} on two ranks and {one.losses[0]:.6g} on one: a "
            "figure of the whole batch needs the rows of all ranks (rayssl.collectives), and each rank returns its "
            "part of the mean over ranks"
        )
    if difference > _GRADIENT:
        ratio = _norm(two[0].gradients[worst]) / max(_norm(one.gradients[worst]), 1e-12)
        return False, (
            f"the loss is the same, but the gradient of '{worst}' on two ranks differs by {difference:.0%} and has "
            f"{ratio:.2f} times the length of one rank's: rows of other ranks were gathered without gradient; gather "
            "with rayssl.collectives.gather"
        )
    drift = max(abs(a - b) / max(abs(b), 1e-6) for a, b in zip(two[0].losses, one.losses, strict=True))
    if drift > _DRIFT:
        step = next(
            k for k, (a, b) in enumerate(zip(two[0].losses, one.losses, strict=True)) if abs(a - b) > _DRIFT * abs(b)
        )
        return False, (
            f"from step {step + 1} on, the loss on two ranks is {two[0].losses[step]:.6g} and on one "
            f"{one.losses[step]:.6g}: a queue, memory or average takes only the rows of one rank; give it those of all"
        )
    return True, f"loss within {max(loss, drift):.0e}, gradient within {difference:.0e}"


def _bfloat16(trial: SmallJob, whole: Trace) -> tuple[bool, str]:
    found = trial.train(_STEPS, "training.precision=bf16")
    if not np.isfinite(found.losses).all():
        return False, f"the losses are {found.losses}"
    difference = abs(found.losses[0] - whole.losses[0]) / max(abs(whole.losses[0]), 1e-6)
    a, b = (np.concatenate([gradient.ravel() for gradient in each.gradients.values()]) for each in (found, whole))
    cosine = float(a @ b) / max(_norm(a) * _norm(b), 1e-12) if len(a) == len(b) else 0.0
    detail = f"first loss {found.losses[0]:.4g} against {whole.losses[0]:.4g}, cosine of the gradients {cosine:.3f}"
    if difference > _BF16_LOSS or cosine < _BF16_COSINE:
        return False, (
            f"{detail}: compute logits, distances and logarithms in float32 (torch.autocast(device, enabled=False))"
        )
    return True, detail


def _different(one: Trace, other: Trace, *, losses: bool = True) -> str | None:
    """The name of the first tensor, or part, that does not have the same bits; None if all have."""
    for what in ("weights", "optimiser", "memory"):
        mine, theirs = getattr(one, what), getattr(other, what)
        if mine.keys() != theirs.keys():
            return what
        for name, value in mine.items():
            if not np.array_equal(value, theirs[name]):
                return f"'{name}' of the {what}"
    return "the loss" if losses and one.losses != other.losses else None


def _farthest(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> tuple[str, float]:
    """The gradient that differs most, and the difference relative to its length. Tiny gradients count as longer."""
    floor = 1e-3 * max((_norm(gradient) for gradient in other.values()), default=0.0)
    found = [
        (_norm(one[name] - value) / max(_norm(value), floor, 1e-12), name)
        for name, value in other.items()
        if name in one
    ]
    missing = other.keys() ^ one.keys()
    if missing:
        return min(missing), float("inf")
    difference, name = max(found)
    return name, difference


def _norm(values: np.ndarray) -> float:
    return float(np.linalg.norm(values))
