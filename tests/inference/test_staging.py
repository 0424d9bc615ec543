"""Nights in, hypnograms out: by the verb and in Python, the same stages as `rayssl evaluate` gives, and mistakes."""

from __future__ import annotations

import csv
import json
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

import rayssl
from rayssl.cli import main
from rayssl.data.nights.scores import NightScores, read_stages
from rayssl.data.sources.night_files import NightFilesConfig
from rayssl.errors import CheckpointError, CorpusError
from tests.conftest import S3Server
from tests.data.nights.edf_files import START, Signal, edf_bytes
from tests.runs import experiment, write_corpus, write_run
from tests.small_nights import EPOCHS, NIGHTS

pytestmark = pytest.mark.long
RATE = 16000


def evaluated(folder: Path, corpus: str, tmp_path: Path) -> dict[str, NightScores]:
    """The nights of `rayssl evaluate`, on a copy of the run's folder."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text((folder / "run/config.yaml").read_text())
    (run / "checkpoints").symlink_to(folder / "run/checkpoints")
    rayssl.evaluate(run, local=True, **{"evaluation.corpus": f"{folder}/{corpus}"})
    return {night.name: night for night in read_stages(pq.read_table(run / "evaluation/stages.parquet"))}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("corpus", "tolerance"), [("mel", 2e-6), ("flac", 1e-3)])
def test_the_same_probabilities_as_evaluation(
    night_folder: Path, corpus: str, tolerance: float, tmp_path: Path
) -> None:
    """Pictures are the same bits. FLAC rounds the night in floats to 16 bits; the others are the same bits."""
    wanted = evaluated(night_folder, corpus, tmp_path)
    model = rayssl.load(night_folder / "run", device="cpu")
    found = {night.scores.name: night.scores for night in model.stage(night_folder / "nights", stride=2)}
    assert sorted(found) == sorted(wanted) == list(NIGHTS)
    for name, night in wanted.items():
        assert (night.truth >= 0).all() and (found[name].truth == -1).all()
        np.testing.assert_array_equal(found[name].index, night.index)
        bound = tolerance if name == NIGHTS[1] else 2e-6  # of products of other batch sizes
        np.testing.assert_allclose(found[name].probabilities, night.probabilities, rtol=0, atol=bound)
    spread = np.concatenate([night.probabilities for night in wanted.values()])
    assert spread.std(axis=0).max() > 1e-3  # else an output that does not depend on the input would pass


def test_the_files_of_the_verb(night_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    verb = ["stage", f"{night_folder}/run", f"{night_folder}/nights/a-1.wav", "--out", str(out), "--stride", "2"]
    assert main(verb) == 0
    assert capsys.readouterr().out == f"{out}/a-1.png\nnext: rayssl report {night_folder}/run\n"
    assert sorted(path.name for path in out.iterdir()) == ["a-1.csv", "a-1.json", "a-1.png"]
    (night,) = rayssl.load(night_folder / "run").stage(night_folder / "nights/a-1.wav", stride=2)
    rows, scores = rows_of(out / "a-1.csv"), night.scores
    assert list(rows[0]) == ["epoch", "seconds", "stage", "wake", "light", "deep", "rem"]  # a WAV has no clock
    assert [int(row["epoch"]) for row in rows] == list(range(EPOCHS))
    assert [int(row["seconds"]) for row in rows] == list(range(0, 30 * EPOCHS, 30))
    names = ("Wake", "Light", "Deep", "REM")
    assert [row["stage"] for row in rows] == [names[stage] for stage in scores.predicted]
    written = np.array([[float(row[name.lower()]) for name in names] for row in rows])
    np.testing.assert_allclose(written, scores.probabilities, rtol=0, atol=5.1e-5)
    summary = json.loads((out / "a-1.json").read_text())
    assert (summary["night"], summary["epochs"], summary["missing"], summary["begins"]) == ("a-1", EPOCHS, 0, None)
    minutes = {name: float((scores.predicted == k).sum()) / 2 for k, name in enumerate(names)}
    assert summary["minutes"] == minutes and sum(minutes.values()) == EPOCHS / 2
    assert summary["tst"] == EPOCHS / 2 - minutes["Wake"]
    assert (out / "a-1.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def part(folder: Path, number: int, second: float, samples: np.ndarray, channel: str = "Mic") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    start = START + timedelta(seconds=second)
    signals = [Signal("Flow", np.zeros(len(samples) // 160, np.int16), 100), Signal(channel, samples, RATE)]
    (folder / f"9-1[{number:03d}].edf").write_bytes(edf_bytes(signals, start=start))


def test_hourly_parts_with_a_gap_have_the_clock(
    night_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two parts of 90 s, 60 s apart, in a folder of a folder: epochs 0 to 2 and 5 to 7, and a second night alone."""
    noise = np.random.default_rng(0).normal(0, 2000, 180 * RATE).astype(np.int16)
    part(tmp_path / "in/x", 1, 0, noise[: 90 * RATE])
    part(tmp_path / "in/x", 2, 150, noise[90 * RATE :])
    soundfile.write(tmp_path / "in/y.flac", noise[: 60 * RATE], RATE)
    verb = ["stage", f"{night_folder}/run", f"{tmp_path}/in", "--out", f"{tmp_path}/out"]
    assert main(verb) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[:-1] == [f"{tmp_path}/out/x/9-1.png", f"{tmp_path}/out/y.png"]
    assert printed.err.startswith("rayssl stage: x/9-1: gap: ") and printed.err.count("\n") == 1
    rows = rows_of(tmp_path / "out/x/9-1.csv")
    assert [(row["epoch"], row["clock"]) for row in rows] == [
        (str(k), str(START + timedelta(seconds=30 * k))) for k in (0, 1, 2, 5, 6, 7)
    ]
    summary = json.loads((tmp_path / "out/x/9-1.json").read_text())
    assert (summary["epochs"], summary["missing"], summary["begins"]) == (6, 2, "2019-03-01 22:15:00")
    assert len(rows_of(tmp_path / "out/y.csv")) == 2


def test_the_clock_is_that_of_the_labels_grid(tmp_path: Path) -> None:
    """`begins` is where epoch 0 begins: at the first boundary of the labels, or of the audio if there are none."""
    noise = np.random.default_rng(0).normal(0, 2000, 100 * RATE).astype(np.int16)
    part(tmp_path, 1, 0, noise)
    (tmp_path / "9-1.csv").write_text("onset,duration,stage\n22:15:12,30,W\n22:15:42,30,N2\n22:16:12,30,N2\n")
    for scoring, second, epochs in (("auto", 12, 2), ("none", 0, 3)):
        source = NightFilesConfig(uri=str(tmp_path), scoring=scoring).build()
        (reference,) = source.list()
        assert source.begins(reference) == START + timedelta(seconds=second)
        assert len(list(source.epochs(reference))) >= epochs
    hidden = edf_bytes([Signal("Mic", noise, RATE)], start=START.replace(year=1985, month=1, day=1))
    (tmp_path / "9-1[001].edf").write_bytes(hidden)
    source = NightFilesConfig(uri=str(tmp_path), scoring="none").build()
    begins = source.begins(next(iter(source.list())))
    assert begins is not None and (begins.year, begins.time()) == (1, START.time())


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of a verb that ends with status 2."""
    capsys.readouterr()
    assert main(["stage", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rayssl stage: ") and error.count("\n") == 1, error
    return error.removeprefix("rayssl stage: ").rstrip("\n")


def test_mistakes(night_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out, folder = night_folder / "run", tmp_path / "out", tmp_path / "in"
    noise = np.random.default_rng(0).normal(0, 2000, 60 * RATE).astype(np.int16)
    part(folder, 1, 0, noise, channel="Snore")
    edf = folder / "9-1[001].edf"
    assert told(capsys, run, tmp_path / "no.edf", "--out", out).startswith(f"{tmp_path}/no.edf: no such f")
    line = told(capsys, run, edf, "--out", out)
    assert line == f"{edf}: no channel: 9-1[001].edf has no channel 'Mic'; set channel to one of: Flow, Snore"
    assert main(["stage", str(run), str(edf), "--out", str(out), "--channel", "snore"]) == 0
    (out / "9-1.csv").unlink()
    (folder / "9-1[001].edf").write_bytes(edf_bytes([Signal("Mic", noise[:RATE], RATE)])[: 256 * 2])
    assert told(capsys, run, edf, "--out", out) == f"{edf}: empty: 9-1[001].edf has no samples"
    (folder / "9-1[001].edf").write_bytes(b"")
    assert told(capsys, run, edf, "--out", out).startswith(f"{edf}: unreadable: 9-1[001].edf is not EDF")
    short = tmp_path / "short.wav"
    soundfile.write(short, noise[: 30 * RATE - 1], RATE)
    assert told(capsys, run, short, "--out", out) == f"{short}: too short: it has no whole epoch of 30 s"
    (tmp_path / "text.wav").write_text("no audio")
    assert told(capsys, run, tmp_path / "text.wav", "--out", out).startswith(f"{tmp_path}/text.wav: unreadable: ")
    (tmp_path / "none").mkdir()
    line = told(capsys, run, tmp_path / "none", "--out", out)
    assert line.startswith(f"{tmp_path}/none: no .edf or audio file")
    assert sorted(path.name for path in out.iterdir()) == ["9-1.json", "9-1.png"]


def test_other_nights_go_on(night_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is no audio and one that is too short, before and between two nights."""
    noise = np.random.default_rng(0).normal(0, 2000, 60 * RATE).astype(np.int16)
    for name, samples in (("b", noise), ("c", noise[:RATE]), ("d", noise[: 31 * RATE])):
        soundfile.write(tmp_path / f"{name}.wav", samples, RATE)
    (tmp_path / "a.wav").write_text("no audio")
    assert main(["stage", f"{night_folder}/run", str(tmp_path), "--out", f"{tmp_path}/out"]) == 2
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [f"{tmp_path}/out/b.png", f"{tmp_path}/out/d.png"]
    starts = [line.split(": ")[:3] for line in printed.err.splitlines()]
    assert starts == [
        ["rayssl stage", f"{tmp_path}/a.wav", "unreadable"],
        ["rayssl stage", f"{tmp_path}/c.wav", "too short"],
    ]


def test_a_run_of_something_else(night_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(tmp_path / "corpus")
    run = write_run(experiment(tmp_path / "run", tmp_path / "corpus"))
    line = told(capsys, run, night_folder / "nights", "--out", tmp_path / "out")
    uri = f"{run}/checkpoints/step-0000000004"
    assert line == f"{uri}: a run of method.name=ssps does not stage nights; give one of method sleep"
    assert not (tmp_path / "out").exists()
    with pytest.raises(CheckpointError, match="does not stage nights"):
        rayssl.load(run).stage(night_folder / "nights")
    with pytest.raises(CorpusError, match="no such f"):
        list(rayssl.load(night_folder / "run").stage(tmp_path / "absent"))


@pytest.mark.s3
def test_a_night_in_s3(night_folder: Path, tmp_path: Path, s3_server: S3Server) -> None:
    """Read from S3 and written there: the same files as of the local night."""
    from rayssl import storage

    uri = s3_server.bucket("stage-nights")
    storage.write_bytes(f"{uri}/in/a-1.wav", (night_folder / "nights/a-1.wav").read_bytes())
    assert main(["stage", f"{night_folder}/run", f"{uri}/in/a-1.wav", "--out", f"{uri}/out"]) == 0
    assert main(["stage", f"{night_folder}/run", f"{night_folder}/nights/a-1.wav", "--out", f"{tmp_path}"]) == 0
    for name in ("a-1.csv", "a-1.json"):
        assert storage.read_text(f"{uri}/out/{name}") == (tmp_path / name).read_text()
