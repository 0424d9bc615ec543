"""Speech-like utterances generated from a seed: speakers x recordings x utterances, without any data.

It is a source-filter model. Glottal pulses and breath noise are filtered, frame by frame, by the resonances of a vocal
tract that moves through vowels and fricatives. A speaker has a pitch and its movement, a length of the vocal tract,
factors on the resonances, a glottal slope, breathiness and a speaking rate. A recording has one condition of
`rayssl.data.conditions`, drawn for this recording only. So the recording is a confound, as in real data: utterances of
one recording share a channel, and other recordings of the same speaker have other channels. The utterances of a speaker
differ in the sounds spoken, as real ones do: in free speech they are drawn for each utterance. A word fixes its sounds
for all speakers; how much they differ between words can be set.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import fft

from rayssl.data import conditions
from rayssl.data.decode import RATE

_SPEAKER, _UTTERANCE, _CHANNEL, _NOISE, _WORD = 1, 2, 3, 4, 5  # purposes of the seeds
_HOP, _FFT = 160, 640
# Resonances of ten vowels in Hz: averages of published measurements of adults, rounded.
_VOWELS = np.array(
    [
        [300, 2300, 3000, 3600], [400, 2000, 2600, 3500], [550, 1800, 2500, 3500], [700, 1700, 2450, 3450],
        [750, 1150, 2500, 3400], [600, 900, 2500, 3350], [450, 1050, 2300, 3300], [320, 900, 2300, 3300],
        [640, 1200, 2400, 3350], [480, 1350, 1750, 3300],
    ],
    dtype=float,
)  # fmt: skip
_FRICTION = 0.25  # level of fricatives relative to vowels
_FRICATIVES = np.array([[5500, 900], [3200, 800], [4500, 2500], [2200, 1200]], dtype=float)  # centre and width in Hz
_VOWEL, _FRICATIVE, _PAUSE = 0, 1, 2
_WORD_KINDS = np.array([_VOWEL, _FRICATIVE, _VOWEL, _VOWEL, _FRICATIVE, _VOWEL])


@dataclass(frozen=True)
class Voice:
    """The constants of a speaker. Frequencies in Hz, slopes in dB per octave, ``rate`` in sounds per second."""

    pitch: float
    pitch_range: float  # standard deviation of the melody, in octaves
    pitch_fall: float  # octaves over an utterance
    tract: float  # factor on all resonances; shorter tracts resonate higher
    resonances: np.ndarray  # [4] factors on F1..F4
    sharpness: float  # factor on the resonances' bandwidths
    fifth: float
    nasal: float
    nasal_db: float
    slope: float
    breath: float
    jitter: float
    rate: float
    hiss: float  # factor on the centres of fricatives


@dataclass(frozen=True)
class Word:
    """The sounds of a word: ``kinds [n]``, and in Hz the resonances of a vowel, ``vowels [n, 4]``, and centre and width
    of a fricative, ``places [n, 2]``, before a speaker's own factors. ``lengths [n]`` are relative.
    """

    kinds: np.ndarray
    vowels: np.ndarray
    places: np.ndarray
    lengths: np.ndarray


def draw_word(seed: int, number: int, likeness: float) -> Word:
    """The word ``number``. All words have the same kinds of sounds, in the same order.

    ``likeness``, from 0 to 1: how near the sounds are to those that all words of the seed have in common, on a
    logarithmic scale; with 1 all words are the same.
    """
    common, own = (_word_sounds(np.random.default_rng([seed, _WORD, which])) for which in (0, 1 + number))
    sounds = (one**likeness * other ** (1 - likeness) for one, other in zip(common, own, strict=True))
    return Word(_WORD_KINDS, *sounds)


def _word_sounds(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    count = len(_WORD_KINDS)
    vowels, places = (all_of[rng.integers(len(all_of), size=count)] for all_of in (_VOWELS, _FRICATIVES))
    return vowels, places, rng.uniform(0.6, 1.6, count)


def speak(
    seed: int, speaker: int, recording: int, utterance: int, *, seconds: float, channel: float, word: Word | None = None
) -> np.ndarray:
    """One utterance as float32 ``[seconds * 16000]`` in [-1, 1], heard through the channel of its recording.

    ``channel`` is the strength of the channel (0: none), like `conditions.strength`. ``word`` is what is said, once;
    None is free speech.
    """
    rng = np.random.default_rng([seed, _UTTERANCE, speaker, recording, utterance])
    clean = synthesise(draw_voice(seed, speaker), rng, round(seconds * RATE), word)
    heard = _channel(seed, speaker, recording, channel)
    return conditions.render(clean, heard, [seed, _NOISE, speaker, recording, utterance])


def draw_voice(seed: int, speaker: int) -> Voice:
    """The voice of speaker number ``speaker``."""
    rng = np.random.default_rng([seed, _SPEAKER, speaker])
    size = rng.normal(0, 1)  # long tracts and low voices tend to go together
    return Voice(
        pitch=float(150 * 2 ** (0.42 * size + rng.normal(0, 0.16))),
        pitch_range=float(rng.uniform(0.06, 0.22)),
        pitch_fall=float(rng.uniform(0.05, 0.45)),
        tract=float(2 ** (0.10 * size + rng.normal(0, 0.045))),
        resonances=2 ** rng.normal(0, [0.06, 0.05, 0.05, 0.05]),
        sharpness=float(2 ** rng.normal(0, 0.35)),
        fifth=float(rng.uniform(4200, 5200)),
        nasal=float(rng.uniform(700, 2600)),
        nasal_db=float(rng.uniform(3, 12)),
        slope=float(rng.uniform(-12, -5)),
        breath=float(10 ** rng.uniform(-2.2, -0.7)),
        jitter=float(rng.uniform(0.002, 0.02)),
        rate=float(rng.uniform(7, 14)),
        hiss=float(2 ** rng.normal(0, 0.15)),
    )


def synthesise(voice: Voice, rng: np.random.Generator, samples: int, word: Word | None = None) -> np.ndarray:
    """Speech by ``voice``, float32 ``[samples]`` with an RMS of 0.06. ``rng`` draws the sounds and the melody."""
    frames = samples // _HOP + 2
    spoken_sounds = _free_sounds(voice, rng, frames) if word is None else _word_said(word, rng, frames)
    resonances, voicing, fricative, loudness = _articulation(voice, rng, frames, spoken_sounds)
    source = _glottis(voice, rng, frames, samples) * np.repeat(voicing, _HOP)[:samples]
    noise = rng.standard_normal(samples)
    breath = noise * np.repeat(voicing, _HOP)[:samples] * voice.breath
    friction = noise * np.repeat(1 - voicing, _HOP)[:samples] * _FRICTION
    # equal power for every voice: otherwise, with a steep glottal slope, almost only fricatives would be heard
    tract, mouth = _unit_power(_tract_response(voice, resonances)), _unit_power(_friction_response(fricative))
    spoken = _filter_frames([(source + breath, tract), (friction, mouth)], samples)
    spoken *= np.interp(np.arange(samples) / _HOP, np.arange(frames), loudness)
    return np.asarray(spoken * (0.06 / max(float(np.sqrt(np.mean(spoken**2))), 1e-9)), dtype=np.float32).clip(-1, 1)


def _free_sounds(voice: Voice, rng: np.random.Generator, frames: int) -> Word:
    """Sounds for all ``frames``, drawn one by one, with lengths in frames."""
    sounds = max(2, int(np.ceil(frames * _HOP / RATE * voice.rate * 1.6)))
    lengths = rng.lognormal(0, 0.35, sounds) * RATE / _HOP / voice.rate
    kinds = rng.choice(3, sounds, p=[0.66, 0.24, 0.10])  # vowel, fricative, pause
    kinds[0] = _VOWEL
    vowels = _said_freely(_VOWELS[rng.integers(len(_VOWELS), size=sounds)], rng)
    return Word(kinds, vowels, _FRICATIVES[rng.integers(len(_FRICATIVES), size=sounds)], lengths)


def _said_freely(vowels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Nobody says a vowel twice alike."""
    return np.asarray(vowels * 2 ** rng.normal(0, 0.03, vowels.shape))


def _word_said(word: Word, rng: np.random.Generator, frames: int) -> Word:
    """The word with pauses around it, in lengths of frames: it takes 60 to 90 % of them, and begins anywhere."""
    lengths = word.lengths * rng.lognormal(0, 0.15, len(word.lengths))
    taken = rng.uniform(0.6, 0.9)
    before = (1 - taken) * rng.uniform()
    lengths = np.concatenate([[before], taken * lengths / lengths.sum(), [1 - taken - before]]) * frames
    kinds = np.concatenate([[_PAUSE], word.kinds, [_PAUSE]])
    vowels, places = (np.concatenate([x[:1], x, x[-1:]]) for x in (word.vowels, word.places))
    return Word(kinds, _said_freely(vowels, rng), places, lengths)


def _articulation(
    voice: Voice, rng: np.random.Generator, frames: int, said: Word
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Per frame: resonances [frames, 4] in Hz, voicing in 0..1, fricative [frames, 2] in Hz, loudness in 0..1."""
    kind, sounds = said.kinds, len(said.kinds)
    ends = np.cumsum(said.lengths)
    centres = ends - said.lengths / 2
    vowels = said.vowels * voice.tract * voice.resonances
    place = said.places * voice.hiss
    stress = np.where(kind == _PAUSE, 0.0, rng.uniform(0.45, 1.0, sounds))
    frame = np.arange(frames)
    sound = np.minimum(np.searchsorted(ends, frame), sounds - 1)
    smooth = np.hanning(7) / np.hanning(7).sum()
    moving = np.stack([np.interp(frame, centres, vowels[:, k]) for k in range(4)], axis=1)
    voicing = np.convolve((kind == _VOWEL)[sound], smooth, mode="same")
    loudness = np.convolve(stress[sound], smooth, mode="same")
    return moving, voicing, place[sound], loudness


def _glottis(voice: Voice, rng: np.random.Generator, frames: int, samples: int) -> np.ndarray:
    """Glottal pulses ``[samples]`` of unit power, one per period; a pulse between two samples is divided among them."""
    knots = np.linspace(0, frames, max(3, frames // 25))
    melody = np.interp(np.arange(frames), knots, rng.normal(0, voice.pitch_range, len(knots)))
    fall = voice.pitch_fall * (0.5 - np.arange(frames) / frames)
    flutter = rng.normal(0, voice.jitter, frames)
    pitch = np.clip(voice.pitch * 2 ** (melody + fall + flutter), 50, 500)
    phase = np.cumsum(np.interp(np.arange(samples) / _HOP, np.arange(frames), pitch) / RATE)
    place = np.interp(np.arange(1, int(phase[-1]) + 1), phase, np.arange(samples))
    index = np.minimum(place.astype(int), samples - 2)
    fraction = place - index
    pulses = np.zeros(samples)
    np.add.at(pulses, index, 1 - fraction)
    np.add.at(pulses, index + 1, fraction)
    return np.asarray(pulses * np.sqrt(RATE / voice.pitch))


@lru_cache(maxsize=1)
def _bins() -> tuple[np.ndarray, np.ndarray]:
    """The frequencies of the FFT bins in Hz, and z^-1 at each of them."""
    hertz = np.arange(_FFT // 2 + 1) * RATE / _FFT
    return hertz, np.exp(-2j * np.pi * hertz / RATE).astype(np.complex64)


def _tract_response(voice: Voice, resonances: np.ndarray) -> np.ndarray:
    """The vocal tract over frequency for each frame, complex ``[frames, bins]``: glottal slope times resonators."""
    hertz, delay = _bins()
    octaves = np.log2(np.maximum(hertz, 80) / 200)
    fixed = 10 ** (voice.slope * np.maximum(octaves, 0) / 20)
    fixed = fixed * 10 ** (-voice.nasal_db / 20 * np.exp(-0.5 * ((hertz - voice.nasal) / 160) ** 2))
    fixed = (fixed * _resonator(np.array([[voice.fifth]]), 250 * voice.sharpness, delay)[0]).astype(np.complex64)
    response = np.broadcast_to(fixed, (len(resonances), len(fixed))).copy()
    for k, width in enumerate((60, 90, 140, 200)):
        response *= _resonator(resonances[:, k : k + 1], width * voice.sharpness, delay)
    return response


def _resonator(centre: np.ndarray, width: float, delay: np.ndarray) -> np.ndarray:
    """A two-pole resonance at ``centre [frames, 1]`` Hz, ``width`` Hz wide, with gain 1 at 0 Hz; ``[frames, bins]``."""
    radius = np.exp(-np.pi * width / RATE)
    first = (-2 * radius * np.cos(2 * np.pi * np.minimum(centre, 0.48 * RATE) / RATE)).astype(np.complex64)
    second = np.complex64(radius**2)
    return np.asarray((1 + first + second) / (1 + delay * (first + delay * second)))


def _friction_response(fricative: np.ndarray) -> np.ndarray:
    """The frequency response of each frame's fricative, ``[frames, bins]``."""
    hertz, _ = _bins()
    distance = (hertz.astype(np.float32) - fricative[:, :1].astype(np.float32)) / fricative[:, 1:].astype(np.float32)
    return np.asarray(np.exp(-0.5 * distance**2))


def _unit_power(response: np.ndarray) -> np.ndarray:
    return np.asarray(response / np.sqrt(np.mean(np.abs(response) ** 2)))


def _filter_frames(pairs: list[tuple[np.ndarray, np.ndarray]], samples: int) -> np.ndarray:
    """The sum of signals ``[samples]``. Each passes a filter ``[frames, bins]`` that changes from frame to frame.

    Overlap-add: each windowed frame of two hops is filtered in the frequency domain, and decays over two more hops.
    """
    window = np.hanning(2 * _HOP + 1)[: 2 * _HOP].astype(np.float32)
    spectra: np.ndarray | None = None
    for signal, response in pairs:
        padded = np.zeros((len(response) + 1) * _HOP, dtype=np.float32)
        padded[_HOP : _HOP + samples] = signal
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * _HOP)[::_HOP]
        part = fft.rfft(windows * window, _FFT) * response
        spectra = part if spectra is None else spectra + part
    assert spectra is not None
    pieces = fft.irfft(spectra, _FFT).reshape(len(spectra), _FFT // _HOP, _HOP)
    rows = np.zeros((len(pieces) + pieces.shape[1], _HOP), dtype=np.float32)
    for k in range(pieces.shape[1]):
        rows[k : k + len(pieces)] += pieces[:, k]
    return rows.reshape(-1)[_HOP : _HOP + samples]


@lru_cache(maxsize=64)
def _channel(seed: int, speaker: int, recording: int, strength: float) -> conditions.Condition:
    return conditions.draw([seed, _CHANNEL, speaker, recording], strength)
