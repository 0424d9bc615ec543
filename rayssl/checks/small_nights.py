"""A corpus of a few short nights whose sound says the stage, made in a second: for checks and tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rayssl.data import corpus, units
from rayssl.data.corpus import PreparedCorpusConfig
from rayssl.data.decode import RATE, Format
from rayssl.data.mel import MelConfig
from rayssl.data.shards import Manifest
from rayssl.data.sources.base import Reference
from rayssl.data.sources.nights import EPOCH_S, UNSCORED, Dropped, Epoch, NightSource, NightSourceConfig

NIGHTS_SPLIT: dict[str, Any] = {"nights": {"labelled": ["hospital/*"], "unlabelled": ["home/*"]}}
MEL: dict[str, Any] = {"n_mels": 8, "hop_ms": 1000}  # pictures of 8 x 31
NIGHT_METHOD: dict[str, Any] = {"name": "sleep", "noise": {"weight": 1.0}}
# stages as they follow each other in every night, from another place in each; most are Light
_STAGES = (0, 1, 1, 2, 2, 1, 0, 1, 3, 3, 1, 1)


class SmallNightsConfig(NightSourceConfig):
    """``hospital`` and ``home``: the number of epochs of each night; each night is a subject of its own.

    Every seventh epoch is unscored. A night of 9 epochs or more lacks the one in its middle.
    """

    hospital: list[int] = []
    home: list[int] = []
    seed: int = 0


class SmallNights(NightSource):
    """Tones in noise; the stage decides about pitch and loudness."""

    Config = SmallNightsConfig
    config: SmallNightsConfig

    def list(self) -> Iterator[Reference]:
        """The nights ``hospital/0``, ``hospital/1``, ..., ``home/0``, ...; subjects are numbered over both."""
        subject = 0
        for domain in ("hospital", "home"):
            for number, epochs in enumerate(getattr(self.config, domain)):
                yield Reference(f"{domain}/{number}", f"s{subject}", "n", None, (subject, epochs))
                subject += 1

    def epochs(self, reference: Reference) -> Iterator[Epoch | Dropped]:
        """The epochs of a night."""
        subject, count = map(int, reference.locator)
        missing = (count + 1) // 2 if count >= 9 else None
        for index in range(count + (missing is not None)):
            if index == missing:
                yield Dropped("gap: between two parts", 1)
                continue
            stage = _STAGES[(index + 5 * subject) % len(_STAGES)]
            label = UNSCORED if (index + subject) % 7 == 3 else stage
            yield Epoch(index, label, self._sound(subject, index, stage))

    def _sound(self, subject: int, index: int, stage: int) -> np.ndarray:
        """One second of sound, which swells over the 30 s of the epoch."""
        drawn = np.random.default_rng([self.config.seed, subject, index])
        time = np.arange(RATE) / RATE
        pitch = 200 + 350 * stage + 20 * subject
        second = 0.2 * np.sin(2 * np.pi * pitch * time) + 0.05 * drawn.standard_normal(RATE)
        swell = 0.2 + 0.8 * drawn.random(EPOCH_S)
        return (swell[:, None] * second).astype(np.float32).clip(-1, 1).ravel()


def write_nights(
    folder: str,
    mel: MelConfig | None,
    *,
    hospital: Sequence[int] = (14, 9, 11, 3),
    home: Sequence[int] = (13, 10, 2, 12, 9),
    splits: dict[str, Any] | None = None,
    audio: Format = "pcm16",
) -> Manifest:
    """Prepares a corpus of `SmallNights` at ``folder``, in this process.

    With ``mel`` it holds pictures, without it sound in the format ``audio``. ``splits``: by default ``few``, whose
    labelled nights are those of the hospital.
    """
    source = SmallNightsConfig(hospital=list(hospital), home=list(home))
    tree = {
        "out": folder,
        "source": source,
        "format": audio if mel is None else "mel",
        "nights": {"mel": (mel or MelConfig()).model_dump()},
        "splits": {"few": NIGHTS_SPLIT} if splits is None else splits,
    }
    settings = PreparedCorpusConfig.model_validate(tree)
    plan = corpus.plan(settings, seed=0)
    return corpus.finish(settings, plan, [units.process(plan.work, unit) for unit in plan.units])
