"""Which kernels a training uses: compiled encoders, TF32, and cuDNN's choice by trial. None of it is on on a CPU."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from rayssl.models.encoder import Encoder, NightEncoder
from rayssl.training.state import TrainingConfig, TrainState

# Each mode (training, evaluation, precision) and length of each encoder is a variant of one function. Beyond torch's
# limit of 8 it would run uncompiled, with a warning only.
_VARIANTS = 64


def compile_encoders(
    method: nn.Module, config: TrainingConfig, device: torch.device, say: Callable[[str], None] = lambda line: None
) -> bool:
    """Compiles the encoders of ``method``, those of a teacher too, if ``training.compile`` asks for it.

    With ``auto`` that is on a GPU, if there is a C compiler, without which Triton cannot start kernels; ``say`` takes a
    line if there is none. What cannot be compiled runs as it is then, with a warning of torch. Returns whether they are
    compiled. That happens when an encoder first sees inputs of a length and mode.
    """
    if config.compile is False or (config.compile == "auto" and device.type != "cuda"):
        return False
    if config.compile == "auto" and not _has_compiler():
        say("training.compile=auto: no C compiler was found (gcc, clang or $CC), so the encoder is not compiled")
        return False
    import torch._dynamo.config as dynamo  # here and not above: it takes seconds

    # the front end's Fourier transform stays a kernel of its own, of which torch warns at each start
    warnings.filterwarnings("ignore", message="Torchinductor does not support code generation for complex")
    dynamo.recompile_limit = max(dynamo.recompile_limit, _VARIANTS)
    dynamo.suppress_errors = config.compile == "auto"
    compile_each(method)
    return True


def compile_each(method: nn.Module, **options: Any) -> None:
    """Compiles each encoder in ``method``; ``options`` as for `torch.compile`. Two joined encoders are two."""
    for part in method.modules():
        if type(part) in (Encoder, NightEncoder):
            # a variant for each length: kernels for any length are slower, and there are two or three lengths
            part.compile(dynamic=False, **options)


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


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CC", ""), "gcc", "cc", "clang") if name)
