"""The rules of every front end and backbone: shapes, the least length, independence of the batch, and export."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rayssl.checks.outcome import Outcome, attempt
from rayssl.data.decode import RATE
from rayssl.evaluation.embeddings import frozen
from rayssl.inference.export import TOLERANCE, largest_difference, packed, trace, unpacked
from rayssl.models.encoder import Encoder, EncoderConfig, build_encoder

_DIMENSIONS = {"bands": 3, "samples": 3, "planes": 4, "epochs": 4}


def check_encoder(config: EncoderConfig) -> Iterator[Outcome]:
    """Yields the outcome of each rule."""
    made: list[Encoder] = []

    def builds() -> tuple[bool, str]:
        config.check(RATE)
        torch.manual_seed(0)
        made.append(build_encoder(config, RATE))
        count = sum(parameter.numel() for parameter in made[0].parameters())
        return True, f"{count:,} weights, needs at least {made[0].minimum_samples} samples"

    yield attempt("the encoder is built", builds)
    if not made:
        return
    encoder = made[0]
    yield attempt("features have their layout", lambda: _features(config, encoder))
    yield attempt("embeddings have their shape", lambda: _shape(config, encoder))
    yield attempt("a row does not depend on its batch", lambda: _alone(encoder))
    yield attempt("it can be exported", lambda: _exports(encoder))


def _waves(length: int, rows: int = 4) -> Tensor:
    return 0.1 * torch.randn(rows, length, generator=torch.Generator().manual_seed(1))


def _features(config: EncoderConfig, encoder: Encoder) -> tuple[bool, str]:
    length = max(RATE // 2, encoder.minimum_samples)
    found = encoder.frontend(_waves(length))
    frontend = config.frontend
    shape = list(found.shape)
    expected, place = _DIMENSIONS[frontend.layout], 2 if frontend.layout == "epochs" else 1
    if found.dtype != torch.float32 or len(shape) != expected or shape[place] != frontend.features or shape[0] != 4:
        leading = "[B, N, features, T]" if place == 2 else "[B, features, ...]"
        return False, (
            f"{frontend.short_name} declares '{frontend.layout}' with {frontend.features} features, but gives "
            f"{found.dtype} {shape}; return float32 {leading} with {expected} dimensions"
        )
    return bool(torch.isfinite(found).all()), f"{frontend.layout} {shape} of {length} samples"


def _shape(config: EncoderConfig, encoder: Encoder) -> tuple[bool, str]:
    dim = config.embedding_dim
    with frozen(encoder):
        for length in (encoder.minimum_samples, max(RATE, 2 * encoder.minimum_samples) + 37):
            found = encoder(_waves(length), None)
            if list(found.shape) != [4, dim] or not bool(torch.isfinite(found).all()):
                return False, f"{length} samples give {list(found.shape)}, expected finite [4, {dim}]"
    return True, f"[B, {dim}] for {encoder.minimum_samples} samples or more"


def _alone(encoder: Encoder) -> tuple[bool, str]:
    waves = _waves(max(RATE, encoder.minimum_samples))
    with frozen(encoder):
        together = encoder(waves, None)
        alone = torch.cat([encoder(wave[None], None) for wave in waves])
    difference = float((together - alone).abs().max() / together.square().mean().sqrt().clamp_min(1e-12))
    if difference > 1e-3:
        return False, f"in eval mode, the embedding of a row changes by {difference:.0%} with the rest of the batch"
    return True, f"within {difference:.0e} in eval mode"


def _exports(encoder: Encoder) -> tuple[bool, str]:
    clips = [wave.numpy() for wave in _waves(max(RATE, encoder.minimum_samples), 2)]
    difference = largest_difference(encoder, unpacked(packed(trace(encoder, RATE), {})), clips)
    return difference <= TOLERANCE, f"the file of torch.export agrees within {difference:.0e}"
