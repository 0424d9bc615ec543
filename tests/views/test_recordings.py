"""Recorded noises and rooms from a real corpus on disk."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from rayssl.data import decode, shards
from rayssl.errors import ConfigError, CorpusError
from rayssl.random.draws import fold, keys_np, uniform_np
from rayssl.random.draws_torch import keys_torch
from rayssl.views import recordings
from rayssl.views.banks import RecordedBank, recorded
from rayssl.views.crops import cut
from rayssl.views.distort import build_distort
from rayssl.views.modules import build_recipes
from rayssl.views.recipes import DistortConfig, ViewsConfig

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
        written.append(shards.write_shard(uri, (index,), columns))
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


def test_cuts_are_those_of_the_whole_recordings(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    pcms = [(random.standard_normal(length) * 3000).astype(np.int16) for length in (40000, 700, 1000, 1001, 9, 25000)]
    uri = write_corpus(str(tmp_path), pcms[:4], pcms[4:])
    positions = uniform_np(keys_np(fold(1), np.arange(6)), 0)
    for found, pcm, position in zip(read(uri, 1000), pcms, positions, strict=True):
        assert np.array_equal(found, cut(pcm, 1000, float(position)))


def test_only_the_row_groups_of_the_recordings_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "MOST", 2)
    pcms = [np.full(20000, k + 1, dtype=np.int16) for k in range(4 * shards.GROUP_ROWS)]
    uri = write_corpus(str(tmp_path), pcms)
    place = tmp_path / shards.read_manifest(uri).shards[0].path
    whole = place.read_bytes()
    groups = pq.ParquetFile(place).metadata
    for middle in (1, 2):  # damaged, so that it shows if they are read
        column = groups.row_group(middle).column(1)
        start, size = column.data_page_offset, column.total_compressed_size
        whole = whole[:start] + bytes(size) + whole[start + size :]
    place.write_bytes(whole)
    assert [int(pcm[0]) for pcm in read(uri, 500)] == [1, len(pcms)]


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


def from_corpora(folder: Path) -> ViewsConfig:
    """Views with noises and rooms from two corpora below ``folder``."""
    noise = {
        "kinds": ["white", "corpus"],
        "clip_s": 0.1,
        "corpus": write_corpus(f"{folder}/noises", [TONE, TONE[:900]]),
    }
    reverb = {"corpus": write_corpus(f"{folder}/rooms", [TONE[:3000]], [TONE[:100]])}
    return ViewsConfig.model_validate({"distort": {"noise": noise, "reverb": reverb}})


def test_what_is_listed_is_what_the_recipes_ask_for(tmp_path: Path) -> None:
    views = from_corpora(tmp_path)
    asked: list[RecordedBank] = []

    def read(bank: RecordedBank) -> np.ndarray:
        asked.append(bank)
        return bank.read()

    build_recipes(views, RATE, 5, read)
    assert asked == recorded(views, RATE, 5)
    assert [(bank.kind, bank.read().shape) for bank in asked] == [("noises", (2, 1600)), ("rooms", (2, 4800))]
    off = {"noise": views.distort.noise.model_copy(update={"p": 0.0}), "reverb": {"p": 0.4}}
    without = ViewsConfig.model_validate({"distort": off})
    assert recorded(without, RATE, 5) == [] == recorded(ViewsConfig(), RATE, 5)
    build_recipes(without, RATE, 5, read)
    assert len(asked) == 2


def test_shared_banks_are_copied_and_give_the_same_bits(tmp_path: Path) -> None:
    """Ranks get read-only arrays of the object store, and must not keep them."""
    views = from_corpora(tmp_path)
    given: list[np.ndarray] = []

    def shared(bank: RecordedBank) -> np.ndarray:
        given.append(bank.read())
        view = given[-1].view()
        view.flags.writeable = False
        return view

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recipes = build_recipes(views, RATE, 5, shared)
    own = build_recipes(views, RATE, 5)
    for array in given:
        array[:] = 7.0
    mine, theirs = dict(own.named_buffers()), dict(recipes.named_buffers())
    assert {"distort.noise.bank", "distort.room_bank"} < mine.keys() == theirs.keys()
    assert all(torch.equal(buffer, theirs[name]) for name, buffer in mine.items())


def test_each_recorded_kind_has_its_corpus_and_its_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As MUSAN is used: noise, speech and music, each at its own level; a row is known by its tone."""
    kinds = {"noise": (0.2, [0, 15]), "speech": (0.4, [13, 20]), "music": (0.8, [5, 15])}
    tones = {kind: (np.sin(np.arange(24000) * turn) * 9000).astype(np.int16) for kind, (turn, _) in kinds.items()}
    monkeypatch.chdir(tmp_path)
    for kind, tone in tones.items():
        write_corpus(kind, [tone])
    settings = {"p": 1.0, "kinds": list(kinds), "corpora": {kind: kind for kind in kinds}, "snr_db_of": {}}
    settings["snr_db_of"] = {kind: bounds for kind, (_, bounds) in kinds.items()}
    views = ViewsConfig.model_validate({"distort": {"noise": settings, "reverb": {"p": 0.0}}}).located()
    assert views.distort.noise.corpora == {kind: f"{tmp_path}/{kind}" for kind in kinds}
    wanted = recorded(views, RATE, 5)
    assert [bank.key for bank in wanted] == [f"views.distort.noise.corpora.{kind}" for kind in kinds]
    assert build_recipes(views, RATE, 5, lambda bank: wanted[wanted.index(bank)].read())
    wave = torch.randn(120, 4000, generator=torch.Generator().manual_seed(0)) * 0.01
    noise = build_distort(views.distort, RATE, 5)(wave, keys_torch(fold(1), torch.arange(120))) - wave
    turns = torch.fft.rfft(noise).abs().argmax(dim=1) / 4000 * 2 * torch.pi
    reached = 10 * torch.log10(wave.square().mean(1) / noise.square().mean(1))
    seen = 0
    for turn, (low, high) in kinds.values():
        own = reached[(turns - turn).abs() < 2e-3]
        assert low - 0.1 < own.min() < low + 2 and high - 2 < own.max() < high + 0.1
        seen += len(own)
    assert seen == 120


def test_a_task_that_reads_banks_starts_without_torch() -> None:
    code = "import sys, rayssl.views.banks, rayssl.runtime.banks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
