"""A published encoder: what is in its folder, who reads it, and what it does not tell."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch
import yaml

import rayssl
from rayssl.cli import main
from rayssl.errors import CheckpointError
from rayssl.inference import publishing
from rayssl.inference.scoring import threshold_of
from rayssl.runs.reading import find
from rayssl.runtime.evaluation.evaluate import evaluate
from tests.data.sources.hub import hub
from tests.runs import experiment, tone, write_corpus, write_run, write_trials

ROOT = Path(__file__).parents[2]
FILES = ["README.md", "config.yaml", "model.safetensors", "rayssl.json"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secret-place")
    write_corpus(folder / "corpus")
    write_trials(folder / "trials.txt", 9)
    how = f"evaluation={{corpus: {folder}/corpus, trials: {folder}/trials.txt}}"
    write_run(experiment(folder / "run", folder / "corpus", how, "training.trackers=[{name: mlflow, uri: file:x}]"))
    write_run(experiment(folder / "bare", folder / "corpus"))
    evaluate(str(folder / "run"), local=True)
    for k in range(2):
        soundfile.write(folder / f"{k}.wav", tone(k, k, 8000), 16000)
    assert main(["publish", str(folder / "run"), str(folder / "out/voices")]) == 0
    return folder


def test_what_is_in_it(home: Path) -> None:
    folder = home / "out/voices"
    assert sorted(path.name for path in folder.iterdir()) == FILES and len(list(folder.parent.iterdir())) == 1
    data = (folder / "model.safetensors").read_bytes()
    about = json.loads((folder / "rayssl.json").read_text())
    assert about["sha256"] == hashlib.sha256(data).hexdigest()
    assert (about["step"], about["dim"], about["rate"], about["checkpoint"]) == (4, 16, 16000, "step-0000000004")
    tensors = safetensors.torch.load(data)
    own = rayssl.load(home / "run", device="cpu").encoder.state_dict()
    assert tensors.keys() == own.keys() and all(torch.equal(tensors[name], own[name]) for name in own)


def test_no_place_is_told(home: Path) -> None:
    """Folders, buckets and servers are nobody's business."""
    for name in FILES:
        assert b"secret-place" not in (home / "out/voices" / name).read_bytes(), name
    config = yaml.safe_load((home / "out/voices/config.yaml").read_text())
    assert (config["run"], config["corpus"]["uri"], config["evaluation"]["trials"]) == (
        "voices",
        "corpus",
        "trials.txt",
    )
    assert config["training"]["trackers"] == [] and config["method"]["over"]["temperature"] == 0.2


def test_the_card(home: Path) -> None:
    text = (home / "out/voices/README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["library_name"] == "rayssl" and "license" not in front
    result = json.loads((home / "run/evaluation/result.json").read_text())
    for part in (
        "# voices\n",
        'rayssl.load("voices")',
        "34 utterances, 0.00 hours, 4 speakers, at 16,000 Hz",
        "`ssps/simclr`, without labels",
        f"| EER (ROC convex hull) | {result['eer']:.2%}",
        f"| EER (max of FPR and FNR where nearest) | {result['eer_nearest']:.2%}",
        "| over | 36 trials |",
        "At a cosine of ",
        "## Licence\n\nNot chosen yet.",
    ):
        assert part in text, part


def test_it_is_loaded_like_a_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, folder = home / "run", home / "out/voices"
    own, other = rayssl.load(run, device="cpu"), rayssl.load(folder, device="cpu")
    wave = tone(3, 1, 9000)
    assert torch.equal(own.embed(wave), other.embed(wave))
    assert threshold_of(find(str(folder))) == threshold_of(find(str(run))) is not None
    capsys.readouterr()
    pair = [str(home / "0.wav"), str(home / "1.wav")]
    assert main(["score", str(run), *pair]) == main(["score", str(folder), *pair]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == lines[2] and "threshold" in lines[0]
    with pytest.raises(CheckpointError, match="is a published encoder, which has no checkpoint 'best'"):
        rayssl.load(folder, "best")


def test_without_an_evaluation(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["publish", str(home / "bare"), str(tmp_path / "bare")]) == 0
    printed = capsys.readouterr().out
    assert "without figures, because this checkpoint was not evaluated" in printed
    assert f"next: rayssl score {tmp_path}/bare A.wav B.wav" in printed
    assert "was not evaluated when it was published" in (tmp_path / "bare/README.md").read_text()


def test_nothing_is_half_written(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError("full")

    monkeypatch.setattr(publishing, "_compare", full)
    with pytest.raises(OSError, match="full"):
        publishing.publish(str(home / "run"), str(tmp_path / "x"))
    assert list(tmp_path.iterdir()) == []


def test_what_is_refused(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    for words, told in (
        ((home / "run", home / "corpus"), f"{home}/corpus: is there already; give a new folder"),
        ((home / "run", home / "out/voices"), "is there already"),
        ((home / "corpus", tmp_path / "x"), "no config.yaml there"),
        ((home / "run", tmp_path / "x", "--checkpoint", "best9"), "no checkpoint 'best9'"),
    ):
        assert main(["publish", *map(str, words)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and told in error, error
    damaged = tmp_path / "damaged"
    assert main(["publish", str(home / "run"), str(damaged)]) == 0
    model = damaged / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"\0")
    model.write_bytes(bytes(255 - each for each in model.read_bytes()))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged \(its hash differs"):
        rayssl.load(damaged)


_CODE = "import rayssl, sys; print(rayssl.load(sys.argv[1], device='cpu').embed([0.0, 0.1] * 4000)[:3].tolist())"


def loaded(tmp_path: Path, address: str) -> subprocess.CompletedProcess[str]:
    home = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "rayssl.cli", "score", "hf://us/voices", "a.wav", "b.wav"]
    if address.endswith(":1"):
        return subprocess.run(
            command, env={**os.environ, **home}, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
        )
    command = [sys.executable, "-c", _CODE, "hf://us/voices"]
    return subprocess.run(
        command, env={**os.environ, **home}, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.long
def test_by_its_address_on_a_hub(home: Path, tmp_path: Path) -> None:
    with hub(home / "out/voices", "us/voices", "models") as address:
        done = loaded(tmp_path, address)
    assert done.returncode == 0, done.stderr
    wanted = rayssl.load(home / "run", device="cpu").embed([0.0, 0.1] * 4000)[:3]
    np.testing.assert_array_equal(json.loads(done.stdout), wanted.tolist())


@pytest.mark.long
def test_a_closed_network_is_one_line(tmp_path: Path) -> None:
    done = loaded(tmp_path, "http://127.0.0.1:1")
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("rayssl score: hf://us/voices"), done.stderr
    assert "reach" in done.stderr
