"""A recording of ten hours is divided in bounded memory: the peak of a fresh process, with the pages of its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from tests.data.segments.talks import talk
from tests.inference.test_night_memory import _VERB, fresh


def write(path: Path, hours: float, rate: int, format: str) -> None:
    """Talks one after the other, none twice."""
    path.parent.mkdir(parents=True)
    with soundfile.SoundFile(path, "w", rate, 1, format=format) as file:
        chance, speaker, seconds = np.random.default_rng(0), 0, 0.0
        said = [talk(each, (5.0, 9.0, 12.0), seed=7) for each in range(20)]
        while seconds < hours * 3600:
            # another level and order of samples: not a copy for the detector of duplicates
            samples = said[speaker % len(said)] * chance.uniform(0.3, 1.0)
            file.write(np.repeat(samples, rate // 16000) if rate > 16000 else samples)
            speaker, seconds = speaker + 1, seconds + len(samples) / 16000


def peak(folder: Path, detector: str, duplicates: str) -> dict[str, float]:
    keys = {"source": {"name": "folder", "uri": f"{folder}/in"}, "out": f"{folder}/out"}
    keys["segments"] = {"detector": detector, "duplicates": duplicates}
    (folder / "p.yaml").write_text(yaml.safe_dump({"corpora": {"long": keys}}))
    found: dict[str, float] = fresh(_VERB, "prepare", f"{folder}/p.yaml", "--local", "--quiet")
    print(found)  # noqa: T201
    assert found["status"] == 0
    return found


@pytest.mark.long
def test_half_an_hour(tmp_path: Path) -> None:
    write(tmp_path / "in/a.wav", 0.5, 48000, "WAV")  # 173 MB
    assert peak(tmp_path, "webrtc", "keep")["peak"] < 400


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("format", "rate"), [("FLAC", 16000), ("W64", 48000), ("MP3", 16000)])
def test_ten_hours(tmp_path: Path, format: str, rate: int) -> None:
    write(tmp_path / f"in/a.{format.lower()}", 10, rate, format)
    assert peak(tmp_path, "silero", "keep")["peak"] < 500
