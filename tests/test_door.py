"""The verbs as Python functions, without Ray: prepared, trained, resumed, evaluated, in this process alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import rayssl
from rayssl.cli import main
from rayssl.errors import ConfigError, CorpusError
from rayssl.experiment.config import Experiment
from rayssl.training import checkpoint
from tests.small_experiment import tree, write_config, write_corpus

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("door")
    write_corpus(str(path / "corpus"))
    write_config(path / "experiment.yaml", tree(str(path)))
    return path


@pytest.mark.long
def test_all_verbs_without_ray(tmp_path: Path) -> None:
    """In a fresh process: it imports no Ray, from raw audio to figures."""
    values = tree(str(tmp_path), corpus={"uri": f"{tmp_path}/made"})
    values["evaluation"] |= {"corpus": f"{tmp_path}/made", "trials": f"{tmp_path}/made.txt"}
    source = {"name": "synthetic", "speakers": 8, "recordings": 2, "utterances": 5, "seconds": 0.5}
    trials = {"across": {"out": f"{tmp_path}/made.txt"}}
    made = {"corpora": {"made": {"source": source, "out": f"{tmp_path}/made", "trials": trials}}}
    code = (
        "import sys, rayssl\n"
        f"summary = rayssl.prepare({made!r}, local=True, progress=False)\n"
        "assert summary.corpora['made'].manifest.rows == 80\n"
        f"metrics = rayssl.train({values!r}, local=True, training={{'epochs': 2}})\n"
        f"result = rayssl.evaluate({values['run']!r}, local=True, **{{'evaluation.resamples': 0}})\n"
        "assert 0 <= result.eer <= 1 and metrics['loss'] > 0\n"
        "assert 'ray' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_what_a_configuration_may_be(folder: Path) -> None:
    """A file, a mapping or settings, each with changes on top; the run's folder has what was trained."""
    path = folder / "experiment.yaml"
    mapping: dict[str, Any] = {**yaml.safe_load(path.read_text()), "method": {"name": "simclr"}}
    settings = Experiment(**{**mapping, "run": str(folder / "c"), "training": {"epochs": 1, "batch": 16}})
    rayssl.train(str(path), local=True, run=str(folder / "a"), training={"epochs": 2, "log_every": 1})
    rayssl.train(mapping, local=True, run=str(folder / "b"), **{"training.epochs": 1})
    rayssl.train(settings, local=True)
    saved = {name: yaml.safe_load((folder / name / "config.yaml").read_text()) for name in "abc"}
    assert saved["a"]["training"]["epochs"] == 2 and saved["a"]["training"]["batch"] == 16
    assert [saved[name]["method"]["name"] for name in "abc"] == ["ssps", "simclr", "simclr"]
    with pytest.raises(ConfigError, match=r"unknown key 'training\.epoch'; did you mean 'epochs'"):
        rayssl.train(path, local=True, **{"training.epoch": 3})
    with pytest.raises(CorpusError, match="none"):
        rayssl.train(path, local=True, corpus={"uri": str(folder / "none")})
    with pytest.raises(ConfigError, match=r"'corpora' is required"):
        rayssl.prepare({})


@pytest.mark.long
def test_a_finished_run_is_not_trained_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(folder / "twice")
    first = rayssl.train(folder / "experiment.yaml", local=True, run=run, training={"epochs": 2})
    capsys.readouterr()
    assert rayssl.train(folder / "experiment.yaml", local=True, run=run, training={"epochs": 2}) == first
    assert f"{run}: already trained to epoch 2" in capsys.readouterr().out
    assert main(["train", str(folder / "experiment.yaml"), "--local", f"run={run}"]) == 0
    assert checkpoint.read_meta(checkpoint.locate(run, "last")).epoch == 3


@pytest.mark.long
def test_a_runs_record_stays_true(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Settings that the weights never saw are not written; a change is refused, or recorded with its step."""
    run = folder / "true"
    argv = ["train", "--local", str(folder / "experiment.yaml"), f"run={run}"]
    assert main([*argv, "training.epochs=2"]) == 0
    before = {name: (run / name).read_bytes() for name in ("config.yaml", "origin.json")}
    changed = ["seed=7", "training.optimiser.lr=0.5"]
    capsys.readouterr()
    for epochs in (2, 3):
        assert main([*argv, f"training.epochs={epochs}", *changed]) == 2
        said = capsys.readouterr().err
        assert f"{run}: its 12 steps were trained with other settings (seed: 3 -> 7, training.optimiser.lr: " in said
        assert said.endswith(
            " -> 0.5); use another run folder, change them back, or add --allow-change seed "
            "--allow-change training.optimiser.lr\n"
        )
    assert main([*argv, "training.epochs=2", "ray.workers=4", "training.log_every=3"]) == 0  # nothing to train
    assert {name: (run / name).read_bytes() for name in before} == before
    allowed = ["--allow-change", "seed", "--allow-change", "training.optimiser"]
    assert main([*argv, "training.epochs=3", *changed, *allowed]) == 0
    config, origin = yaml.safe_load((run / "config.yaml").read_text()), json.loads((run / "origin.json").read_text())
    assert config["seed"] == 7 and config["training"]["optimiser"]["lr"] == 0.5
    assert [(each["step"], each["key"], each["after"]) for each in origin["changes"]] == [
        (12, "seed", 7),
        (12, "training.optimiser.lr", 0.5),
    ]
    assert main([*argv, "training.epochs=4", *changed, *allowed]) == 0  # the same command again is no change
    assert len(json.loads((run / "origin.json").read_text())["changes"]) == 2


@pytest.mark.long
def test_a_signal_saves_and_the_same_command_resumes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder / "stopped"
    argv = ["train", "--local", str(folder / "experiment.yaml"), f"run={run}", "training.epochs=40"]

    def stop() -> None:
        while not checkpoint.steps(str(run)):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    assert main(argv) == 128 + signal.SIGTERM
    printed = capsys.readouterr()
    step = checkpoint.steps(str(run))[-1]
    assert f"{run}: stopped at step {step}; the same command resumes" in printed.err
    assert "SIGTERM: saves after the current step" in printed.out
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL and step < 40 * 6
    epoch = max(2, step // 6 + 1)  # SSPS begins with the second one
    assert main([*argv[:-1], f"training.epochs={epoch}"]) == 0
    assert f"resumed from {run}/checkpoints/step-{step:010d} (step {step} of {6 * epoch})" in capsys.readouterr().out
    assert checkpoint.read_meta(checkpoint.locate(str(run), "last")).epoch == epoch


def test_damaged_audio_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the reading thread raises reaches the caller; nothing hangs."""
    write_corpus(str(tmp_path / "corpus"), 64, damaged=37)
    config = write_config(tmp_path / "experiment.yaml", tree(str(tmp_path)))
    assert main(["train", "--local", config]) == 2
    assert "utterance 's5/r0/037': damaged audio in a shard" in capsys.readouterr().err
    assert not [thread for thread in threading.enumerate() if thread.name == "rayssl-read"]


def change(folder: Path, **keys: Any) -> dict[str, Any]:
    """The experiment of ``folder`` with other values of some sections, in a run of its own."""
    values = tree(str(folder))
    for section, changes in keys.items():
        before = {} if section == "method" else values.get(section, {})
        values[section] = {**before, **changes}
    return {**values, "run": f"{folder}/ahead"}


AHEAD: dict[str, dict[str, Any]] = {
    r"evaluation\.corpus: .*/none: no prepared corpus there .*; to train without an evaluation, leave its sec": {
        "evaluation": {"corpus": "{}/none"}
    },
    r"evaluation\.trials: .*/none\.txt: no such file": {"evaluation": {"trials": "{}/none.txt"}},
    r"evaluation\.trials: .*odd\.txt: trial 2: 'zzz' is not an utterance of .*/corpus": {
        "evaluation": {"trials": "{}/odd.txt"}
    },
    r"evaluation\.trials: .*one\.txt: has only target trials": {"evaluation": {"trials": "{}/one.txt"}},
    r"evaluation\.as_norm\.cohort: .*/none: no prepared": {"evaluation": {"as_norm": {"cohort": "{}/none"}}},
    r"evaluation\.centre\.corpus: .*/none: no prepared": {"evaluation": {"centre": {"corpus": "{}/none"}}},
    r"^evaluation\.corpus: .*/a: no prepared corpus.*; evaluation\.trials: .*/b: no such file.*; to train without": {
        "evaluation": {"corpus": "{}/a", "trials": "{}/b"}
    },
    r"^views\.distort\.noise\.corpus: .*/none: no prepared corpus there": {
        "views": {"distort": {"noise": {"kinds": ["corpus"], "corpus": "{}/none"}}}
    },
    r"^training\.checkpoints\.best: this run has no figure 'accuracy'; choose one of .*loss.*, or null": {
        "training": {"checkpoints": {"best": "accuracy"}},
        "method": {"name": "simclr"},
    },
}  # fmt: skip


@pytest.mark.parametrize("message", AHEAD)
def test_what_a_training_needs_later_is_looked_for_before_it_starts(folder: Path, message: str) -> None:
    names = [f"{line.split()[1]}" for line in (folder / "trials.txt").read_text().splitlines()]
    (folder / "odd.txt").write_text(f"1 {names[0]} {names[1]}\n0 {names[0]} zzz\n")
    (folder / "one.txt").write_text(f"1 {names[0]} {names[1]}\n")
    given = json.loads(json.dumps(AHEAD[message]).replace("{}", str(folder)))
    with pytest.raises(ConfigError, match=message):
        rayssl.train(change(folder, **given), local=True)
    if "best" not in message:
        assert not (folder / "ahead").exists()


def test_milestones_that_will_not_come_are_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = change(folder, training={"checkpoints": {"milestones": [1, 7, 9]}})
    write_config(tmp_path / "late.yaml", {**values, "run": f"{tmp_path}/late"})
    assert main(["train", f"{tmp_path}/late.yaml", "--local", "training.epochs=2"]) == 0
    told = "training.checkpoints.milestones: 7, 9 will not be kept, training.epochs is 2"
    assert told in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"milestones"):
        rayssl.train(change(folder, training={"checkpoints": {"milestones": [0]}}), local=True)
