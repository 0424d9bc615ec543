"""Changes the tempo or the pitch of each row of a batch: a phase vocoder, and resampling.

The vocoder (Flanagan and Golden, 1966) reads the short-time spectra at new times. Magnitudes are interpolated between
the two neighbouring spectra. The phase of each bin advances by the phase difference of these two spectra. Analysis and
synthesis have the same hop, so that whole turns of the phase have no effect and no phase has to be unwrapped.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from rayssl import transfer

_FRAME_S = 0.032
_OVERLAP = 4  # hops per frame
_TAPS, _STEPS = 8, 4096  # samples that an interpolated sample is made of; positions between two samples
_TINY = 1e-12


def frame_samples(rate: int) -> int:
    """The samples in a frame of the vocoder at ``rate`` Hz: the power of two that is nearest to 32 ms, at least 16."""
    return max(16, 1 << round(math.log2(_FRAME_S * rate)))


def stretched(wave: Tensor, rate: Tensor, samples: int, frame: int, band: Tensor | None = None) -> Tensor:
    """``wave [R, T]``, ``rate [R]`` (float64) times as fast with the same pitch; the first ``samples`` samples of it.

    After the end there are zeros. With ``band [R]`` in [0, 1], only frequencies up to that share of half the sampling
    rate are kept.
    """
    hop = frame // _OVERLAP
    window = torch.hann_window(frame, device=wave.device)
    # silence is added at both ends: frames are centred on every hop from 0, and the last frames are empty
    padded = functional.pad(wave, (frame // 2, 2 * frame))
    spectrum = torch.stft(padded, frame, hop, window=window, center=False, return_complex=True)
    if band is not None:
        bins = torch.arange(spectrum.shape[1], device=wave.device)
        spectrum = spectrum * (bins <= band[:, None] * (spectrum.shape[1] - 1))[:, :, None]
    count = samples // hop + _OVERLAP
    return _sounded(vocoded(spectrum, rate, count), window, hop)[:, :samples]


def _sounded(spectrum: Tensor, window: Tensor, hop: int) -> Tensor:
    """The samples of ``spectrum [R, F, N]``, from the middle of the first frame on, to the end of the last one.

    As `torch.istft`, which makes the host wait for the device: it looks whether the sum of windows is 0 anywhere. With
    frames that overlap four times it is not, within the samples that `stretched` takes.
    """
    frame, (rows, _, count) = len(window), spectrum.shape
    length = frame + hop * (count - 1)
    frames = torch.fft.irfft(spectrum.transpose(1, 2), frame, dim=2) * window
    overlap_add = torch.ops.aten.unfold_backward  # of `Tensor.unfold`
    sound = overlap_add(frames, [rows, length], 1, frame, hop)
    weight = overlap_add(window.square().expand(1, count, frame), [1, length], 1, frame, hop)
    return (sound / weight)[:, frame // 2 :]  # type: ignore[no-any-return]


def vocoded(spectrum: Tensor, rate: Tensor, count: int) -> Tensor:
    """``spectrum [R, F, N]`` (complex) read at the times 0, ``rate``, 2 ``rate``, ... hops: ``[R, F, count]``.

    ``rate [R]`` is float64. After the last of the N frames, this frame is repeated. In the loudest frame that is read,
    the phases are those of ``spectrum``. From there they advance in both directions.
    """
    frames = spectrum.shape[2]
    spectrum = spectrum.transpose(1, 2)  # [R, N, F], the order in memory: a frame is copied in one piece
    size = spectrum.abs()
    turn = torch.where(size > _TINY, spectrum / size, 1.0)
    advance = turn[:, 1:] * turn[:, :-1].conj()
    time = torch.arange(count, device=spectrum.device, dtype=torch.float64) * rate[:, None]
    time = time.clamp_max(frames - 1)
    before = time.long().clamp_max(frames - 2)
    part = (time - before).float()[:, :, None]
    row = torch.arange(len(spectrum), device=spectrum.device)
    first = before[:, :1]
    read = torch.lerp(size[row[:, None], before], size[row[:, None], before + 1], part)
    # products of complex numbers of length 1, not sums of angles: nothing grows, and no angle has to be computed
    steps = torch.cat((turn[row[:, None], first], advance[row[:, None], before[:, :-1]]), dim=1).cumprod(dim=1)
    loudest = read.square().sum(dim=2).argmax(dim=1)
    right = turn[row, before[row, loudest]] * steps[row, loudest].conj()
    return (steps * right[:, None] * read).transpose(1, 2)


def read_at(wave: Tensor, times: Tensor) -> Tensor:
    """The values of ``wave [R, T]`` at ``times [R, S]``, interpolated by a windowed sinc; 0 after the end.

    ``times`` (float64, in samples, at least 0) are rounded to 1/4096 of a sample. Frequencies above half the rate of
    ``times`` are not removed.
    """
    steps = (times * _STEPS).round().long().clamp_max(wave.shape[1] * _STEPS)
    first, part = steps // _STEPS, steps % _STEPS
    padded = functional.pad(wave, (_TAPS // 2 - 1, _TAPS // 2 + 1))
    values = torch.zeros(times.shape, device=wave.device)
    for tap, weights in enumerate(_sinc_weights(wave.device)):
        values += weights[part] * padded.gather(1, first + tap)
    return values


def _sinc_weights(device: torch.device) -> Tensor:
    """Interpolation weights ``[taps, steps]``: of each neighbouring sample, for a value that lies step / steps of a
    sample period after a sample. The weights of a step sum to 1.
    """
    part = torch.arange(_STEPS, device=device, dtype=torch.float64) / _STEPS
    distance = part - torch.arange(1 - _TAPS // 2, _TAPS // 2 + 1, device=device)[:, None]
    weights = torch.sinc(distance) * torch.cos(distance * (math.pi / _TAPS)).square()
    return (weights / weights.sum(dim=0)).float()


def pitched(wave: Tensor, factor: Tensor, frame: int) -> Tensor:
    """``wave [R, T]`` with every frequency ``factor [R]`` times as high, with the same tempo and length.

    ``factor``, float64, lies on the host, because the largest one decides over a shape. First the row is made
    ``factor`` times as long with the same pitch. Then it is read ``factor`` times as fast. Frequencies that would get
    above half the sampling rate are removed.
    """
    samples = wave.shape[1]
    longest = math.ceil(samples * float(factor.max())) + _TAPS
    factor = transfer.send(factor, wave.device)
    slow = stretched(wave, 1.0 / factor, longest, frame, band=(1.0 / factor).clamp_max(1.0))
    times = torch.arange(samples, device=wave.device, dtype=torch.float64) * factor[:, None]
    return read_at(slow, times)
