"""Recorded noises and rooms from a real corpus on disk."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rayssl.data import decode, shards
from rayssl.errors import ConfigError, CorpusError
from rayssl.random.draws import fold
from rayssl.random.draws_torch import keys_torch
from rayssl.views import recordings
from rayssl.views.distort import build_distort
from rayssl.views.recipes import DistortConfig

RATE = 16000
TONE = (np.sin(np.arange(24000) * 0.3) * 9000).astype(np.int16)
SILENCE = np.zeros(500, dtype=np.int16)


def write_corpus(uri: str, *parts: list[np.ndarray]) -> str:
    written = []
    for index, pcms in enumerate(parts):
        columns = {
            "name": [f"{index}-{row}" for row in range(len(pcms))],
            "audio": [decode.encode(pcm, "flac") for pcm in pcms],
            "samples": [len(pcm) for pcm in pcms],
            **{kind: [0] * len(pcms) for kind in shards.KINDS},
        }
        written.append(shards.write_shard(uri, index, columns))
    names = {kind: ["a"] for kind in shards.KINDS}
    shards.write_manifest(uri, written, format="flac", names=names, rejected=0, settings={})
    return uri


def read(uri: str, samples: int | None, rate: int = RATE) -> list[np.ndarray]:
    return recordings.read_recordings(uri, "views.distort.noise.corpus", rate, samples, 1)


def test_recordings_of_all_shards_without_the_silent(tmp_path: Path) -> None:
    uri = write_corpus(str(tmp_path), [TONE, SILENCE], [TONE[:700]])
    whole = read(uri, None)
    assert [len(pcm) for pcm in whole] == [24000, 700]
    assert np.array_equal(whole[0], TONE)
    cuts = read(uri, 1000)
    assert [len(pcm) for pcm in cuts] == [1000, 1000]
    assert all(np.array_equal(a, b) for a, b in zip(cuts, read(uri, 1000), strict=True))


def test_at_most_so_many_spaced_over_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "MOST", 3)
    rows = [np.full(50, k + 1, dtype=np.int16) for k in range(11)]
    uri = write_corpus(str(tmp_path), rows[:2], rows[2:4], rows[4:])
    assert [int(pcm[0]) for pcm in read(uri, None)] == [1, 6, 11]


def test_corpora_that_cannot_serve(tmp_path: Path) -> None:
    uri = write_corpus(str(tmp_path), [SILENCE])
    with pytest.raises(ConfigError, match=r"'views\.distort\.noise\.corpus'.*no sound"):
        read(uri, None)
    with pytest.raises(ConfigError, match="16000 Hz, the run's at 8000 Hz"):
        read(uri, None, rate=8000)
    with pytest.raises(CorpusError, match="absent"):
        read(str(tmp_path / "absent"), None)


def test_distortion_from_corpora(tmp_path: Path) -> None:
    room = np.zeros(2000, dtype=np.int16)
    room[[300, 1100]] = [20000, 10000]
    config = DistortConfig.model_validate(
        {
            "noise": {
                "p": 1.0,
                "kinds": ["corpus"],
                "corpus": write_corpus(str(tmp_path / "noises"), [TONE]),
                "snr_db": [0, 0],
            },
            "reverb": {"p": 1.0, "corpus": write_corpus(str(tmp_path / "rooms"), [room])},
        }
    )
    wave, keys = torch.zeros(4, 8000), keys_torch(fold(1), torch.arange(4))
    wave[:, 1000] = 0.9
    only_reverb = config.model_copy(update={"noise": config.noise.model_copy(update={"p": 0.0})})
    wet = build_distort(only_reverb, RATE, 5)(wave, keys)
    assert wet.abs()[0].topk(2).indices.tolist() == [1000, 1800]
    torch.testing.assert_close(wet[:, 1800] / wet[:, 1000], torch.full((4,), 0.5), rtol=0, atol=1e-4)
    noise = build_distort(config, RATE, 5)(wave, keys) - wet
    frequency = torch.fft.rfft(noise).abs().argmax(dim=1) / 8000 * 2 * torch.pi
    torch.testing.assert_close(frequency, torch.full((4,), 0.3), rtol=0, atol=2e-3)
