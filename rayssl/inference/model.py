"""Uses a trained run from Python: ``rayssl.load("runs/x").embed(waveform)``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from os import PathLike
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rayssl import storage
from rayssl.data import decode
from rayssl.data.sources.night_files import NightFilesConfig
from rayssl.errors import AudioError
from rayssl.evaluation.embeddings import frozen
from rayssl.inference.encoder import encoder_of
from rayssl.inference.staging import StagedNight, Stager, stage_nights, staging_parts
from rayssl.models.encoder import Encoder
from rayssl.models.layout import placed
from rayssl.runs.reading import RunCheckpoint, find
from rayssl.training import weights

Waveform: TypeAlias = "Tensor | np.ndarray | list[float]"


class Model:
    """The frozen encoder of one checkpoint. It gives the same embeddings as ``rayssl embed``, up to rounding.

    ``rate`` (Hz) is that of the audio it was trained on. ``dim`` is the size D of an embedding. ``minimum_samples`` is
    the least length at ``rate``. ``source`` has the run and the checkpoint. ``head``: the weight and the bias of the
    run's classifier, if it has one.

    A run of nights has one embedding for each waveform: the mean over its epochs of 30 s. Its stages are `stage`'s::

        for night in rayssl.load("runs/nights/sleep").stage("night.edf"):
            print(night.scores.name, night.scores.predicted)  # 0 Wake, 1 Light, 2 Deep, 3 REM
    """

    def __init__(
        self,
        encoder: Encoder,
        source: RunCheckpoint,
        rate: int,
        device: torch.device,
        head: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self._head = head
        self.encoder, self.source, self.rate, self.device = placed(encoder, device), source, rate, device
        self.dim, self.minimum_samples = int(encoder.embedding_dim), int(encoder.minimum_samples)

    def __repr__(self) -> str:
        """One line with the run, the checkpoint, the size of an embedding, the rate and the device."""
        source = self.source
        return (
            f"Model(run={source.run!r}, checkpoint={source.checkpoint!r}, step={source.step}, dim={self.dim}, "
            f"rate={self.rate}, device={str(self.device)!r})"
        )

    def __call__(self, waveform: Waveform, rate: int = decode.RATE) -> Tensor:
        """The same as `embed`."""
        return self.embed(waveform, rate)

    def to(self, device: str | torch.device) -> Model:
        """Moves the encoder to ``device`` and returns this model. Embeddings are still returned on the CPU."""
        chosen = torch.device(device)
        self.encoder, self.device = placed(self.encoder, chosen), chosen
        return self

    def embed(self, waveform: Waveform, rate: int = decode.RATE) -> Tensor:
        """Embeds one waveform or a batch of them.

        Each row is embedded as a whole. Do not pad: embed clips of other lengths in another call.

        Args:
            waveform: samples ``[T]`` or ``[B, T]``: floats in [-1, 1], or int16, which is scaled to that.
            rate: the rate of ``waveform`` in Hz. It is resampled to the model's rate if that differs.

        Returns:
            Embeddings ``[D]`` or ``[B, D]``: float32 on the CPU, not normalised.

        Raises:
            AudioError: the waveform has another shape or type, is too short, too loud or not finite.
        """
        samples = self._samples(waveform, rate)
        found = self.embed_samples(samples if samples.ndim == 2 else samples[None], "waveform")
        return found if samples.ndim == 2 else found[0]

    def embed_file(self, path: str | PathLike[str]) -> Tensor:
        """The embedding ``[D]`` of an audio file: float32 on the CPU, not normalised.

        ``path`` is local or ``s3://``, in any format that libsndfile reads (WAV, FLAC, Ogg, MP3). Channels are
        averaged, other rates are resampled, and samples are rounded to 16 bits, as `rayssl prepare` does for a corpus.
        Raises `AudioError` or `StorageError` naming ``path``.
        """
        return self.embed_samples(self.read_file(path)[None], str(path))[0]

    def read_file(self, path: str | PathLike[str]) -> np.ndarray:
        """The samples of an audio file as `embed_file` embeds them: float32 ``[T]`` in [-1, 1] at the model's rate."""
        name = str(path)
        try:
            samples = decode.decode(storage.read_bytes(name), "mean", self.rate)
        except decode.DecodeError as error:
            raise AudioError(f"{name}: {error}; give an audio file such as WAV, FLAC, Ogg or MP3") from None
        return decode.quantise(samples).astype(np.float32) / np.float32(32768.0)

    def score(self, path_a: str | PathLike[str], path_b: str | PathLike[str]) -> float:
        """The cosine in [-1, 1] between the embeddings of two audio files. More similar files have a higher score.

        Raises `AudioError` or `StorageError`, as `embed_file` does.
        """
        return cosine(self.embed_file(path_a), self.embed_file(path_b))

    def stage(
        self,
        path: str | PathLike[str],
        *,
        channel: str | list[str] = "Mic",
        stride: int = 20,
        say: Callable[[str], None] = print,
    ) -> Iterator[StagedNight]:
        """The stages of the nights at ``path``: an EDF or audio file, or a folder of them; local or a URI.

        A night's files are read 30 s at a time. Label files are not read. It gives one `StagedNight` after another;
        its ``scores.probabilities`` are ``[n, 4]`` of Wake, Light, Deep and REM.

        Args:
            path: the file or the folder.
            channel: the signal of EDF files, or a list of which the first that exists is taken.
            stride: how many epochs a window of the model begins after the one before.
            say: gets a line for each night that cannot be used.

        Raises:
            UserError: the run does not stage nights, or there is no night at ``path``.
        """
        parts = staging_parts(self.source.experiment, self.source.uri, self.encoder, self._head)
        stager = Stager(*parts, self.device, stride=stride)
        source = NightFilesConfig(uri=storage.absolute(str(path)), channel=channel, scoring="none")
        return stage_nights(stager, source, say)

    def _samples(self, waveform: Waveform, rate: int) -> np.ndarray:
        """The waveform as float32 ``[T]`` or ``[B, T]`` at the model's rate. Raises `AudioError` if it is unusable."""
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
        if peak > decode.LOUDEST:
            raise AudioError(f"waveform: reaches {peak:g}; give floats in [-1, 1], or integers as int16")
        return decode.resample(samples, rate, self.rate)

    def embed_samples(self, samples: np.ndarray, name: str) -> Tensor:
        """Embeddings ``[B, D]`` of float32 ``[B, T]`` at the model's rate; ``name`` is for the message of `AudioError`.

        The samples are not looked at: `embed` is for samples of any kind.
        """
        count = samples.shape[1]
        if count < self.minimum_samples:
            raise AudioError(
                f"{name}: {count} samples at {self.rate} Hz, but {self.source.run} needs at least "
                f"{self.minimum_samples}; give longer audio"
            )
        with frozen(self.encoder):
            found: Tensor = self.encoder(torch.from_numpy(np.ascontiguousarray(samples)).to(self.device), None)
        found = found.to("cpu", torch.float32).clone()  # autograd refuses tensors that inference mode made
        if not bool(torch.isfinite(found).all()):
            raise AudioError(f"{name}: its embedding by {self.source.uri} is not finite; use another checkpoint")
        return found


def cosine(a: Tensor, b: Tensor) -> float:
    """The cosine in [-1, 1] between two embeddings ``[D]``."""
    return float(F.cosine_similarity(a.double(), b.double(), dim=0).clamp(-1.0, 1.0))


def load(run: str | PathLike[str], checkpoint: str = "last", device: str | torch.device | None = None) -> Model:
    """Loads the frozen encoder of a run, or of a folder that ``rayssl publish`` wrote.

    Weights are read without executing pickled code. torch's random state does not change.

    Args:
        run: folder or URI of the run or of the published encoder, also ``hf://OWNER/NAME``.
        checkpoint: ``last``, ``best``, ``epoch-N`` or ``step-N``; a published encoder has only ``last``.
        device: where to compute (default: a GPU if there is one).

    Raises:
        UserError: the run or the checkpoint does not exist, or the checkpoint is damaged. The message names it.
    """
    source = find(str(run), checkpoint)
    with torch.random.fork_rng(devices=[]):
        found = weights.of_run(source.uri)
        encoder = encoder_of(source.experiment, found, decode.RATE)
    chosen = device if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
    return Model(encoder, source, decode.RATE, torch.device(chosen), found.head)
