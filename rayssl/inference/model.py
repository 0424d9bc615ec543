"""A trained run in a few lines of Python: ``rayssl.load("runs/x").embed(waveform)``."""

from __future__ import annotations

from os import PathLike
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rayssl import storage
from rayssl.data import decode
from rayssl.errors import AudioError
from rayssl.evaluation.embeddings import frozen
from rayssl.inference.encoder import load_encoder
from rayssl.models.encoder import Encoder
from rayssl.runs.reading import RunCheckpoint, find

Waveform: TypeAlias = "Tensor | np.ndarray | list[float]"

_LOUDEST = 4.0  # samples beyond are on the scale of integers; resampling takes a full-scale signal a little over 1


class Model:
    """The frozen encoder of one checkpoint. Same audio, same embedding as by ``rayssl embed``, up to rounding.

    ``rate`` (Hz) is that of the audio it was trained on, ``dim`` the size D of an embedding, ``minimum_samples`` the
    least length at ``rate``; ``source`` says which run and checkpoint it is.
    """

    def __init__(self, encoder: Encoder, source: RunCheckpoint, rate: int, device: torch.device) -> None:
        self.encoder, self.source, self.rate, self.device = encoder.to(device), source, rate, device
        self.dim, self.minimum_samples = int(encoder.embedding_dim), int(encoder.minimum_samples)

    def __repr__(self) -> str:
        """One line: which run and step it is, and what it takes and gives."""
        source = self.source
        return (
            f"Model(run={source.run!r}, checkpoint={source.checkpoint!r}, step={source.step}, dim={self.dim}, "
            f"rate={self.rate}, device={str(self.device)!r})"
        )

    def __call__(self, waveform: Waveform, rate: int = decode.RATE) -> Tensor:
        """The same as `embed`."""
        return self.embed(waveform, rate)

    def to(self, device: str | torch.device) -> Model:
        """Moves the encoder to ``device`` and returns this same model. Embeddings still come on the CPU."""
        chosen = torch.device(device)
        self.encoder, self.device = self.encoder.to(chosen), chosen
        return self

    def embed(self, waveform: Waveform, rate: int = decode.RATE) -> Tensor:
        """Embeddings ``[B, D]`` of ``waveform [B, T]``, or ``[D]`` of ``[T]``: float32 on the CPU, not normalised.

        Floats lie in [-1, 1]; int16 is scaled to that. ``rate`` is the waveform's in Hz; where it is not the model's
        the waveform is resampled. Rows of a batch are seen whole: do not pad, embed clips of other lengths apart.
        Raises `AudioError`.
        """
        samples = self._samples(waveform, rate)
        found = self._forward(samples if samples.ndim == 2 else samples[None], "waveform")
        return found if samples.ndim == 2 else found[0]

    def embed_file(self, path: str | PathLike[str]) -> Tensor:
        """The embedding ``[D]`` of an audio file, local or ``s3://``: float32 on the CPU, not normalised.

        Any format that libsndfile reads (WAV, FLAC, Ogg, MP3); channels are averaged, other rates resampled, and
        samples rounded to 16 bits, as `rayssl prepare` does for a corpus. Raises `AudioError` or `StorageError` naming
        ``path``.
        """
        name = str(path)
        try:
            samples = decode.decode(storage.read_bytes(name), "mean", self.rate)
        except decode.DecodeError as error:
            raise AudioError(f"{name}: {error}; give an audio file such as WAV, FLAC, Ogg or MP3") from None
        return self._forward(decode.quantise(samples).astype(np.float32)[None] / np.float32(32768.0), name)[0]

    def score(self, path_a: str | PathLike[str], path_b: str | PathLike[str]) -> float:
        """The cosine, in [-1, 1], between the embeddings of two files: higher for what the run takes to be alike."""
        a, b = self.embed_file(path_a).double(), self.embed_file(path_b).double()
        return float(F.cosine_similarity(a, b, dim=0).clamp(-1.0, 1.0))

    def _samples(self, waveform: Waveform, rate: int) -> np.ndarray:
        """float32 of the same shape at the model's rate."""
        given: Any = waveform.detach().cpu().numpy() if isinstance(waveform, Tensor) else np.asarray(waveform)
        if given.ndim not in (1, 2) or not given.size:
            raise AudioError(f"waveform: expected samples [T] or [B, T], got shape {list(given.shape)}")
        if given.dtype != np.int16 and not np.issubdtype(given.dtype, np.floating):
            raise AudioError(f"waveform: expected floats in [-1, 1] or int16, got {given.dtype}")
        if rate < 1:
            raise AudioError(f"rate: must be the waveform's in Hz, got {rate}")
        samples = given.astype(np.float32) / np.float32(32768.0 if given.dtype == np.int16 else 1.0)
        if not np.isfinite(samples).all():
            raise AudioError("waveform: holds NaN or infinity")
        peak = float(np.abs(samples).max())
        if peak > _LOUDEST:
            raise AudioError(f"waveform: reaches {peak:g}; give floats in [-1, 1], or integers as int16")
        return decode.resample(samples, rate, self.rate)

    def _forward(self, samples: np.ndarray, name: str) -> Tensor:
        """Embeddings ``[B, D]`` of float32 ``[B, T]``."""
        count = samples.shape[1]
        if count < self.minimum_samples:
            raise AudioError(
                f"{name}: {count} samples at {self.rate} Hz, {self.source.run} needs {self.minimum_samples} at least; "
                "give longer audio"
            )
        with frozen(self.encoder):
            found: Tensor = self.encoder(torch.from_numpy(np.ascontiguousarray(samples)).to(self.device), None)
        found = found.to("cpu", torch.float32).clone()  # a tensor of inference mode could not be trained on
        if not bool(torch.isfinite(found).all()):
            raise AudioError(f"{name}: its embedding by {self.source.uri} is not finite; use another checkpoint")
        return found


def load(run: str | PathLike[str], checkpoint: str = "last", device: str | torch.device | None = None) -> Model:
    """The model of a run's folder or ``s3://`` URI; ``checkpoint`` is ``last``, ``best``, ``epoch-N`` or ``step-N``.

    ``device`` None: a GPU where there is one. Raises `UserError` naming the run where there is no such checkpoint, or
    one that is damaged. Weights are read without pickle's code; torch's random state is left as it was.
    """
    source = find(str(run), checkpoint)
    with torch.random.fork_rng(devices=[]):
        encoder = load_encoder(source.experiment, source.uri, decode.RATE)
    chosen = device if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
    return Model(encoder, source, decode.RATE, torch.device(chosen))
