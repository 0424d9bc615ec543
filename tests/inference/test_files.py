"""Plain audio files embedded as they are: which files, which rows, and what is told about those that cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

import rayssl
from rayssl.cli import main
from rayssl.errors import AudioError
from rayssl.inference.files import audio_files, embed_files
from tests.runs import experiment, tone, write_corpus, write_run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    write_corpus(folder / "corpus")
    write_run(experiment(folder / "run", folder / "corpus"))
    (folder / "rec/ann").mkdir(parents=True)
    soundfile.write(folder / "rec/ann/1.wav", tone(1, 1, 8000), 16000)
    soundfile.write(folder / "rec/ann/2.flac", np.stack([tone(2, 1, 7000)] * 2, 1), 8000)
    soundfile.write(folder / "rec/bo.ogg", tone(3, 2, 9000), 16000)
    (folder / "rec/notes.txt").write_text("not audio")
    return folder


def embed(home: Path, *words: object) -> int:
    return main(["embed", str(home / "run"), *map(str, words)])


def test_files_and_folders(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.parquet"
    assert embed(home, home / "rec/bo.ogg", home / "rec", "--out", out) == 0
    table = pq.read_table(out, use_threads=False)
    assert table.column_names == ["id", "name", "seconds", "embedding"]
    names = [str(home / "rec" / name) for name in ("bo.ogg", "ann/1.wav", "ann/2.flac")]
    assert table["name"].to_pylist() == names and table["id"].to_pylist() == [0, 1, 2]
    assert table["seconds"].to_pylist() == [0.5625, 0.5, 0.875]
    model = rayssl.load(home / "run", device="cpu")
    for name, row in zip(names, table["embedding"].to_pylist(), strict=True):
        assert np.array_equal(np.float32(row), model.embed_file(name).numpy())
    about = json.loads(table.schema.metadata[b"rayssl"])
    assert about["checkpoint"] == "step-0000000004" and about["rate"] == 16000
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{out}: 3 embeddings [16] by {model.source.uri}"
    assert printed[1].startswith(f"next: rayssl score {home}/run {names[0]} {names[1]}")


def test_arrays_without_pickle(home: Path, tmp_path: Path) -> None:
    assert embed(home, home / "rec", "--out", tmp_path / "x.npz") == 0
    with np.load(tmp_path / "x.npz", allow_pickle=False) as found:
        assert found["embedding"].shape == (3, 16) and found["embedding"].dtype == np.float32
        assert [Path(name).name for name in found["name"]] == ["1.wav", "2.flac", "bo.ogg"]
        assert json.loads(str(found["about"]))["normalised"] is False


def test_the_others_are_embedded_if_one_cannot_be(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "odd.wav").write_text("not audio")
    out = tmp_path / "x.npz"
    assert embed(home, tmp_path / "odd.wav", home / "rec", "--checkpoint", "last", "--out", out) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and f"{tmp_path}/odd.wav: unreadable" in printed.err
    assert printed.out.rstrip().endswith("; 1 of 4 files were left out")
    out.unlink()
    assert embed(home, tmp_path / "odd.wav", "--out", out) == 2 and not out.exists()
    with pytest.raises(AudioError, match=r"odd\.wav"):
        embed_files(rayssl.load(home / "run", device="cpu"), [str(tmp_path / "odd.wav")])


def test_mistakes(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    (tmp_path / "empty").mkdir()
    for words, told in {
        ("rec/no.wav",): "rec/no.wav: no such file or folder",
        ("rec/ann/1.wav", "rec/no.wav"): "rec/no.wav: no such file or folder",
        ("rec", "--out", "x.csv"): "--out x.csv: name a file that ends in .parquet or .npz",
        (str(tmp_path / "empty"),): "no audio files in this folder",
        ("rec", "training.batch=3"): "training.batch=3: no key of the run changes how",
        ("rec", "nowhere"): "rec: no prepared corpus there",
        ("corpus", "a", "b"): "corpus: is a prepared corpus; give one folder",
        ("corpus",): "corpus: is a prepared corpus; give one folder",
    }.items():
        assert main(["embed", "run", *words]) == 2
        error = capsys.readouterr().err
        assert error.startswith("rayssl embed: ") and error.count("\n") == 1 and told in error, error
    assert not (home / "embeddings.parquet").exists()


def test_no_file_twice(home: Path) -> None:
    one = str(home / "rec/bo.ogg")
    assert audio_files([one, one]) == [one]
