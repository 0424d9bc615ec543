"""Exports a run's front end and encoder as one ``.pt2`` file that needs only torch, and compares it with the run first.

    module = torch.export.load("encoder.pt2").module()
    embeddings = module(wave)       # float32 [B, T] in [-1, 1] at the run's rate, to [B, D], not normalised

Batch size and length are free. The embedding of a run of nights is the mean over the epochs of 30 s in ``wave``. The
file also has a description of itself: JSON under the name `ABOUT`. Reading such a file can run code: load only files of
people you trust.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as shape_settings

from rayssl import __version__, storage
from rayssl.data import decode, shards
from rayssl.errors import CheckpointError, ConfigError, UserError
from rayssl.evaluation.embeddings import frozen
from rayssl.inference.encoder import load_encoder
from rayssl.models.encoder import Encoder, NightEncoder
from rayssl.runs.reading import RunCheckpoint, find

ABOUT = "rayssl.json"
TOLERANCE = 1e-5
_CLIPS = 6  # clips of the corpus to compare on; each is also cut to other lengths
_CUTS = (1.0, 0.77, 0.5)

Embed = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Exported:
    """What `export` wrote to ``out``.

    ``rate`` (Hz) and ``minimum_samples`` are of the audio that it takes, ``dim`` is the size of its embeddings.
    ``difference`` is the largest difference between the file's embeddings and the run's own, relative to their root
    mean square, over ``clips`` pieces of audio from ``compared_on``.
    """

    out: str
    rate: int
    dim: int
    minimum_samples: int
    difference: float
    clips: int
    compared_on: str


def export(run: str, out: str | None = None, which: str = "last") -> Exported:
    """Writes the encoder of a checkpoint to a ``.pt2`` file.

    Args:
        run: folder or URI of the run.
        out: file or URI to write (default: ``exported/<checkpoint>.pt2`` in the run's folder).
        which: the checkpoint, ``last``, ``best``, ``epoch-N`` or ``step-N``.

    Raises:
        UserError: the run cannot be read.
        CheckpointError: the embeddings of the file and of the run differ by more than `TOLERANCE`. Nothing is written
            then.
    """
    source = find(run, which)
    place = out or storage.join(source.run, "exported", f"{source.checkpoint}.pt2")
    if not place.endswith(".pt2"):
        raise ConfigError(f"--out {place}: name a file that ends in .pt2, as torch.export.load wants it")
    storage.check_writable(place.rpartition("/")[0] or ".")
    with torch.random.fork_rng(devices=[]):
        encoder = load_encoder(source.experiment, source.uri, decode.RATE)
    data = packed(trace(encoder, decode.RATE), _about(source, encoder))
    clips, origin = _audio(source, encoder)
    difference = largest_difference(encoder, unpacked(data), clips)
    if not difference <= TOLERANCE:
        raise CheckpointError(
            f"{source.uri}: the exported encoder differs from the run by {difference:.1e} of an embedding's scale on "
            f"{origin}, more than {TOLERANCE:g}; nothing was written"
        )
    storage.write_bytes(place, data)
    dim, least = encoder.embedding_dim, encoder.minimum_samples
    return Exported(place, decode.RATE, dim, least, difference, len(clips), origin)


def trace(encoder: Encoder, rate: int) -> ExportedProgram:
    """The graph of ``encoder``, for any batch size and any length of at least its ``minimum_samples``."""
    length = max(rate, 2 * encoder.minimum_samples) + 777
    example = torch.randn(3, length, generator=torch.Generator().manual_seed(0)) * 0.1
    # torch assumes that a free size is not 0 or 1 if the example's is not: the file would then refuse a single clip
    oblivious = shape_settings.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with frozen(encoder), oblivious, warnings.catch_warnings(action="ignore"):
        free = {"wave": {0: Dim.AUTO, 1: Dim.AUTO}}
        return torch.export.export(_Alone(encoder), (example,), dynamic_shapes=free, strict=False)


class _Alone(nn.Module):
    """The encoder without the argument for mask keys, which only training needs."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.training = False

    def forward(self, wave: Tensor) -> Tensor:
        return cast(Tensor, self.encoder(wave, None))


def packed(traced: ExportedProgram, about: dict[str, Any]) -> bytes:
    """The content of a ``.pt2`` file."""
    sink = io.BytesIO()
    # With an example in the file, torch checks every call against all that the trace assumed about sizes, for instance
    # that there is more than one frame, even if no value depends on it
    traced.example_inputs = None
    with warnings.catch_warnings(action="ignore"):
        torch.export.save(traced, sink, extra_files={ABOUT: json.dumps(about, indent=1)})
    return sink.getvalue()


def unpacked(data: bytes) -> Embed:
    """The function in a ``.pt2`` file that `packed` made."""
    with warnings.catch_warnings(action="ignore"):  # about a read-only buffer, which nobody writes to
        return cast(Embed, torch.export.load(io.BytesIO(data)).module())


def largest_difference(encoder: Encoder, other: Embed, clips: list[np.ndarray]) -> float:
    """The largest difference between two encoders' embeddings of ``clips`` (float32 ``[T_i]``).

    Each clip is embedded alone, and again in one batch with all clips of its length. The difference is relative to the
    root mean square of ``encoder``'s embedding. It is NaN if an embedding is not finite.
    """
    waves = [torch.from_numpy(clip)[None] for clip in clips]
    lengths = {wave.shape[1] for wave in waves}
    waves += [torch.cat([wave for wave in waves if wave.shape[1] == length]) for length in sorted(lengths)]
    worst = torch.zeros(())
    for wave in waves:
        with frozen(encoder):
            own, others = encoder(wave, None), other(wave)
        scale = own.square().mean(dim=1, keepdim=True).sqrt()
        worst = torch.maximum(worst, ((own - others).abs() / scale).max())  # keeps NaN
    return float(worst)


def _about(source: RunCheckpoint, encoder: Encoder) -> dict[str, Any]:
    return {
        "rayssl": __version__,
        "torch": torch.__version__,
        "rate": decode.RATE,
        "dim": encoder.embedding_dim,
        "minimum_samples": encoder.minimum_samples,
        "normalised": False,
        "run": source.run,
        "checkpoint": source.checkpoint,
        "step": source.step,
        "weights_sha256": source.digest,
        "architecture": source.experiment.architecture,
    }


def _audio(source: RunCheckpoint, encoder: Encoder) -> tuple[list[np.ndarray], str]:
    """Clips float32 ``[T]`` of several lengths to compare on, and where they come from.

    They are the first clips of the training corpus, or else of the test corpus. If neither has audio that can be read,
    they are noise. For an encoder of nights they are consecutive epochs, more than a window.
    """
    settings = source.experiment.evaluation
    corpora = [source.experiment.corpus.uri, *([settings.corpus] if settings is not None else [])]
    least, by_night = encoder.minimum_samples, isinstance(encoder, NightEncoder)
    count = encoder.window + 2 if isinstance(encoder, NightEncoder) else _CLIPS
    whole, reasons = [], dict[str, str]()
    for uri in corpora:
        reasons[uri] = "cannot be read"
        try:
            manifest = shards.read_manifest(uri)
            if manifest.mel is not None:
                reasons[uri] = "holds pictures"
                continue
            audio = shards.read_shard(uri, manifest.shards[0], ["audio"])["audio"].slice(0, count)
            whole = [decode.pcm(each.as_py(), manifest.format) for each in audio]
            whole = [clip for clip in whole if len(clip) >= least]
        except (UserError, IndexError):
            continue
        if whole:
            break
        reasons[uri] = "has no clip that is long enough"
    origin = uri
    if not whole:
        rng, samples = np.random.default_rng(0), least if by_night else 2 * max(decode.RATE, least)
        whole = [decode.quantise(rng.normal(0, 0.1, samples)) for _ in range(count)]
        origin = "noise, as " + " and ".join(f"{uri} {reason}" for uri, reason in reasons.items())
    if by_night:
        night = np.concatenate(whole)
        cuts = [night[: min(length, len(night))] for length in (least, 5 * least // 2, len(night) - least // 3)]
    else:
        cuts = [whole[0][:least]]
        cuts += [clip[: max(least, round(share * len(clip)))] for share in _CUTS for clip in whole]
    return [clip.astype(np.float32) / np.float32(32768.0) for clip in cuts], origin
