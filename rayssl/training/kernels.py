"""Which kernels a training uses: compiled encoders, TF32, and cuDNN's choice by trial. None of it is on on a CPU."""

from __future__ import annotations

import os
import shutil
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rayssl.models.encoder import Encoder, NightEncoder
from rayssl.training.context import Context
from rayssl.training.state import TrainingConfig, TrainState

# Each mode (training, evaluation, precision) and length of each encoder is a variant of one function. Beyond torch's
# limit of 8 it would run uncompiled, with a warning only.
_VARIANTS = 64
# One length of ECAPA-1024 took 80 s to compile for sm_90 on one core. The count of `infra/gpu/forecast.py` says that 17
# ms a step are saved: then it has paid for itself, for two lengths, after this many steps.
_LEAST_STEPS = 10_000


def compile_encoders(
    method: nn.Module, config: TrainingConfig, context: Context, epoch_steps: int, *, repeats: bool = True
) -> bool:
    """Compiles the encoders of ``method``, those of a teacher too, if ``training.compile`` asks for it.

    With ``auto`` that is on a GPU, for a training of at least 10,000 steps (``epoch_steps`` in each epoch), and for the
    networks that gain from it (`Backbone.gains_compiled`), if there are a C compiler and Python's headers, without
    which Triton cannot start kernels; a line says it if they are missing. What cannot be compiled runs as it is then,
    with a warning of torch. If the training ``repeats`` (`TrainState.repeats`), no kernel is chosen by its time where
    that moves the last digits. Returns whether an encoder is compiled. That happens when it first sees inputs of a
    length and mode.
    """
    auto, steps = config.compile == "auto", config.epochs * epoch_steps
    if config.compile is False or (auto and (context.device.type != "cuda" or steps < _LEAST_STEPS)):
        return False
    wanted = [part for part in _encoders(method) if not auto or part.backbone.gains_compiled]
    if not wanted:
        return False
    if auto and (missing := triton_lacks()):
        if context.rank == 0:
            context.say(
                f"training.compile=auto: {missing} was not found, so the encoder is not compiled, which is slower"
            )
        return False
    import torch._dynamo.config as dynamo  # here and not above: it takes seconds
    import torch._inductor.config as inductor

    # the front end's Fourier transform stays a kernel of its own, of which torch warns at each start
    warnings.filterwarnings("ignore", message="Torchinductor does not support code generation for complex")
    dynamo.recompile_limit = max(dynamo.recompile_limit, _VARIANTS)
    dynamo.suppress_errors = auto
    inductor.deterministic = bool(repeats or config.verify_every)
    for part in wanted:
        compile_each(part)
    return True


def compile_each(method: nn.Module, **options: Any) -> None:
    """Compiles each encoder in ``method``; ``options`` as for `torch.compile`. Two joined encoders are two."""
    for part in _encoders(method):
        # a variant for each length: kernels for any length are slower, and there are two or three lengths
        part.compile(dynamic=False, **options)


def _encoders(method: nn.Module) -> list[Encoder]:
    return [part for part in method.modules() if isinstance(part, Encoder) and type(part) in (Encoder, NightEncoder)]


@contextmanager
def chosen(state: TrainState) -> Iterator[None]:
    """A context with the settings of a training's kernels on a GPU. On a CPU it changes nothing.

    - TF32 for products and convolutions in fp32 if ``training.tf32``; never otherwise.
    - cuDNN tries its kernels at the first batch of a size and keeps the fastest, unless runs must repeat exactly
      (`TrainState.repeats`): what is the fastest is not the same each time.
    """
    if state.context.device.type != "cuda":
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    matmul.allow_tf32 = cudnn.allow_tf32 = state.config.tf32
    cudnn.benchmark = not (state.repeats or state.config.verify_every)
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


def triton_lacks() -> str | None:
    """What Triton needs to start kernels on a GPU and this machine has not: a C compiler, Python's headers, or None."""
    if not any(shutil.which(name) for name in (os.environ.get("CC", ""), "gcc", "cc", "clang") if name):
        return "a C compiler (gcc, clang or $CC)"
    scheme = sysconfig.get_default_scheme()
    # Debian's own scheme names a folder of packages that pip installed, where no headers are; Triton leaves it out too
    headers = sysconfig.get_path("include", "posix_prefix" if scheme == "posix_local" else scheme)
    if not (Path(headers) / "Python.h").is_file():
        return "Python.h (Debian's package python3-dev)"
    return None
