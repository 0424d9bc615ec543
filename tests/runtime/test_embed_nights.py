"""Embeddings of the epochs of nights: among their neighbours, from pictures and from audio; export; mistakes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import rayssl
from rayssl.cli import main
from rayssl.data import mel, shards
from rayssl.data.decode import pcm
from rayssl.errors import AudioError
from rayssl.evaluation.embeddings import encode_epochs
from rayssl.evaluation.settings import StagingConfig
from rayssl.inference import export as exporting
from rayssl.inference.encoder import load_encoder
from rayssl.models.encoder import NightEncoder
from rayssl.models.nightmel import NightMel
from rayssl.runs.reading import find
from rayssl.runtime.embedding import files
from rayssl.runtime.embedding.actors import Embedder, EmbeddingTask, decode_shard, embed, matrix, unit_rows
from rayssl.runtime.evaluation.staging import NightStager
from tests.runs import experiment, write_corpus, write_run
from tests.small_nights import EPOCHS, NIGHTS

pytestmark = pytest.mark.long
RATE = 16000


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeds in this process."""

    def over(job: EmbeddingTask, which: Sequence[int], embedder: type[Embedder], *extra: Any) -> Iterator[bytes]:
        actor = embedder(job, *extra)
        yield from (actor.answer(index) for index in which)

    monkeypatch.setattr(files, "over_shards", over)


def pictures_of(folder: Path, corpus: str, shard: shards.Shard, settings: mel.MelConfig) -> np.ndarray:
    """The pictures of a shard, ``[n, F, frames]``."""
    manifest = shards.read_manifest(f"{folder}/{corpus}")
    table = shards.read_shard(f"{folder}/{corpus}", shard, ["audio"])
    if corpus == "mel":
        flat = [np.frombuffer(audio, np.float16) for audio in table["audio"].to_pylist()]
        return np.stack([each.reshape(manifest.epoch_shape) for each in flat])
    waves = [pcm(audio, "flac").astype(np.float32) / 32768 for audio in table["audio"].to_pylist()]
    return np.stack([mel.picture(wave, settings, RATE) for wave in waves])


def alone(encoder: NightEncoder, pictures: np.ndarray, stride: int) -> np.ndarray:
    """The definition, in plain loops: each window by itself, and the mean of what an epoch gets."""
    count, window = len(pictures), encoder.window
    found: list[list[np.ndarray]] = [[] for _ in range(count)]
    starts = sorted({*range(0, max(1, count - window), stride), max(0, count - window)})
    for start in starts:
        places = [min(start + k, count - 1) for k in range(window)]
        with torch.no_grad():
            z, _ = encoder.sequence(torch.from_numpy(pictures[places]).float()[None])
        for k in range(window):
            if start + k < count:
                found[start + k].append(z[0, k].numpy())
    return np.stack([np.mean(each, axis=0) for each in found])


@pytest.mark.parametrize("corpus", ["mel", "flac"])
def test_an_embedding_for_each_epoch_among_its_neighbours(night_folder: Path, corpus: str, tmp_path: Path) -> None:
    """Shards of 5, 5 and 1 epochs, windows of 4 with stride 2; the last one repeats its only epoch."""
    assert main(["embed", f"{night_folder}/run", f"{night_folder}/{corpus}", str(tmp_path)]) == 0
    table = pq.read_table(tmp_path)
    rows = np.stack(table["embedding"].to_pylist()).astype(np.float32)
    model = rayssl.load(night_folder / "run", device="cpu")
    assert isinstance(model.encoder, NightEncoder) and rows.shape == (3 * EPOCHS, model.dim)
    frontend = model.encoder.frontend
    assert isinstance(frontend, NightMel)
    assert sorted(table["name"].to_pylist()) == sorted(f"{n}/{k:04d}" for n in NIGHTS for k in range(EPOCHS))
    assert table["id"].to_pylist() == list(range(3 * EPOCHS)) and set(table["label"].to_pylist()) == {0, 1, 2, 3}
    scale = float(np.sqrt(np.mean(rows**2)))
    assert rows.std(axis=0).max() > 1e-2 * scale
    for shard in shards.read_manifest(f"{night_folder}/{corpus}").shards:
        pictures = pictures_of(night_folder, corpus, shard, frontend.config.mel)
        wanted, mine = alone(model.encoder, pictures, 2), rows[shard.first_id :][: shard.rows]
        # other numbers of epochs at once are rounded otherwise
        np.testing.assert_allclose(mine / scale, wanted / scale, rtol=0, atol=5e-5)
    record = json.loads((tmp_path / "_embeddings.json").read_text())
    assert record["stride"] == 2 and record["complete"]


@pytest.mark.parametrize("corpus", ["mel", "flac"])
def test_pictures_made_elsewhere_are_embedded_and_staged_the_same(night_folder: Path, corpus: str) -> None:
    """What tasks read for actors with GPUs, and what an actor reads itself: a shard, and a night of three shards."""
    source = find(f"{night_folder}/run")
    uri = f"{night_folder}/{corpus}"
    manifest = shards.read_manifest(uri)
    job = EmbeddingTask(source.experiment, source.uri, uri, manifest)
    settings = StagingConfig(task="staging", corpus=uri, stride=2)
    nights = [[0, 1, 2], [3]]
    cases: list[tuple[type[Embedder], tuple[Any, ...]]] = [(Embedder, ()), (NightStager, (settings, nights))]
    for kind, extra in cases:
        actor = kind(job, *extra)
        for index in range(2):
            items = {"shard": np.array([index])}
            sent = decode_shard(items, job, kind, *extra)
            assert sent["error"] == [""] and len(sent["decoded"][0]) > 1000
            found = actor({name: np.array(values, dtype=object) for name, values in sent.items()})
            assert found == actor(items) and found["error"] == [""]


class Flat(torch.nn.Module):
    """An encoder that keeps the pictures as they reach it."""

    apart, window = True, 3

    def alone(self, pictures: torch.Tensor) -> torch.Tensor:
        self.seen = pictures
        return pictures.flatten(1)


def test_pictures_have_one_layout() -> None:
    """`rayssl.data.mel.picture` gives a transposed one. Some processors have kernels for it that round otherwise."""
    made = mel.picture(np.random.default_rng(0).standard_normal(RATE).astype(np.float32), mel.MelConfig(), RATE)
    encoder: Any = Flat()
    encode_epochs(encoder, [np.asfortranarray(made)] * 3, "cpu")
    assert encoder.seen.is_contiguous() and np.array_equal(encoder.seen.numpy(), np.stack([made] * 3))


def test_neighbours_matter(night_folder: Path) -> None:
    """Of length 1, if asked for. An epoch among others has another embedding than alone."""
    source = find(f"{night_folder}/run")
    rows = matrix(embed(source.experiment, source.uri, f"{night_folder}/mel", local=True))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    encoder = rayssl.load(night_folder / "run", device="cpu").encoder
    assert isinstance(encoder, NightEncoder) and isinstance(encoder.frontend, NightMel)
    shard = shards.read_manifest(f"{night_folder}/mel").shards[0]
    pictures = pictures_of(night_folder, "mel", shard, encoder.frontend.config.mel)
    lonely = unit_rows(np.concatenate([alone(encoder, picture[None], 2) for picture in pictures]))
    assert np.abs(lonely - rows[: shard.rows]).max() > 1e-3


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main(["embed", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rayssl embed: ") and error.count("\n") == 1, error
    return error.removeprefix("rayssl embed: ").rstrip("\n")


def test_mistakes(night_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, pictures, out = night_folder / "run", night_folder / "mel", tmp_path / "out"
    write_corpus(tmp_path / "speech")
    other = write_run(experiment(tmp_path / "other", tmp_path / "speech"))
    line = told(capsys, other, pictures, out)
    said = (
        "holds pictures of epochs of sleep, and encoder.frontend.name=logmel needs audio; prepare it with format flac"
    )
    assert line == f"{pictures}: {said}"
    assert main(["embed", str(other), f"{night_folder}/flac", str(tmp_path / "spoken")]) == 0
    line = told(capsys, run, pictures, out, "encoder.frontend.mel.hop_ms=500")
    assert "(hop_ms is 1000.0, not 500.0); prepare it with those of the run" in line
    assert "at least 480000" in told(capsys, run, tmp_path / "speech", tmp_path / "out2")
    assert main(["embed", str(run), str(pictures), str(out)]) == 0
    line = told(capsys, run, pictures, out, "evaluation.stride=3")
    assert line.endswith("with another evaluation.stride; give another folder, or delete this one")
    damaged = Path(shutil.copytree(night_folder / "flac", tmp_path / "flac"))
    manifest = shards.read_manifest(str(damaged))
    table = shards.read_shard(str(damaged), manifest.shards[1])
    columns = {name: table[name].to_pylist() for name in table.column_names}
    columns["audio"][2] = b"noise"
    parts = list(manifest.shards)
    parts[1] = shards.write_shard(str(damaged), (9, 9), columns, seconds=150.0)
    text = (damaged / "manifest.json").read_text()
    changed = json.loads(text)
    changed["shards"][1] |= {"path": parts[1].path, "sha256": parts[1].sha256, "bytes": parts[1].bytes}
    changed["fingerprint"] = shards.fingerprint(parts)
    (damaged / "manifest.json").write_text(json.dumps(changed))
    line = told(capsys, run, damaged, tmp_path / "out3")
    assert line.startswith(
        f"{damaged}/{parts[1].path}: epoch '{columns['name'][2]}': damaged audio in a shard: not FLAC"
    )


def test_the_exported_file_agrees_for_more_than_a_window(night_folder: Path, tmp_path: Path) -> None:
    """Pictures cannot be compared on: noise is, or the audio of another corpus."""
    source = find(f"{night_folder}/run")
    clips, origin = exporting._audio(source, load_encoder(source.experiment, source.uri, RATE))
    assert origin == f"noise, as {night_folder}/train holds pictures and {night_folder}/mel holds pictures"
    assert [len(clip) for clip in clips] == [480000, 1200000, 6 * 480000 - 160000]
    run = Path(shutil.copytree(night_folder / "run", tmp_path / "run"))
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(f"{night_folder}/mel", f"{night_folder}/flac"))
    done = exporting.export(str(run), f"{tmp_path}/x.pt2")
    assert (done.minimum_samples, done.clips, done.difference <= 1e-5) == (480000, 3, True)
    assert done.compared_on == f"{night_folder}/flac"
    module = torch.export.load(tmp_path / "x.pt2").module()
    model = rayssl.load(night_folder / "run", device="cpu")
    noise = torch.randn(1, 165 * RATE + 5, generator=torch.Generator().manual_seed(1)) * 0.1
    for samples in (480000, 60 * RATE, 165 * RATE + 5):  # an epoch, two, and a part more than a window of four
        found, wanted = module(noise[:, :samples]), model.embed(noise[:, :samples])
        scale = wanted.square().mean().sqrt()
        torch.testing.assert_close(found / scale, wanted / scale, rtol=0, atol=1e-5)


def test_a_minute_of_audio_in_python(night_folder: Path) -> None:
    """Two epochs: the mean of their embeddings. Less than one epoch is refused; a part of an epoch is repeated."""
    model = rayssl.load(night_folder / "run", device="cpu")
    assert isinstance(model.encoder, NightEncoder)
    minute = np.random.default_rng(0).normal(0, 0.1, 60 * RATE).astype(np.float32)
    found = model.embed(minute)
    assert found.shape == (model.dim,) and model.minimum_samples == 480000
    with torch.no_grad():
        z, _ = model.encoder.sequence(torch.from_numpy(minute)[None])
    torch.testing.assert_close(found, z[0].mean(dim=0), rtol=0, atol=1e-6)
    assert z.shape[1] == 2 and model.encoder.sequence(torch.from_numpy(minute[: 31 * RATE])[None])[0].shape[1] == 2
    with pytest.raises(AudioError, match=r"479999 samples at 16000 Hz, but .* needs at least 480000"):
        model.embed(minute[:479999])
