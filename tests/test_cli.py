"""A user's mistake that can be known before Ray starts: status 2, one line that names it and the way out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rayssl import storage
from rayssl.cli import main
from rayssl.experiment.build import build_method
from rayssl.experiment.config import Experiment
from rayssl.experiment.job import resolve
from rayssl.training import checkpoint
from tests.small_experiment import tree, write_config, write_corpus


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A configuration with its corpus and trials."""
    write_corpus(str(tmp_path / "corpus"), 64)
    write_config(tmp_path / "experiment.yaml", tree(str(tmp_path)))
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line on stderr of a verb that ends with status 2, without the program's and verb's name."""
    capsys.readouterr()
    assert main(argv) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1, printed.err
    start = f"rayssl {argv[0]}: "
    assert printed.err.startswith(start)
    return printed.err.removeprefix(start).rstrip("\n")


MISTAKES = {
    "training.epoch=2": ("unknown key 'training.epoch'", "did you mean 'epochs'"),
    "training.epochs=many": ("'training.epochs'", "integer", "got 'many'"),
    "training.batch=15": ("training.batch=15", "ray.workers=2", "change one of them"),
    "method.name=simclrr": ("'method.name'", "simclrr", "ssps"),
    "method.start_epoch=3": ("method.start_epoch=3", "training.epochs=3", "raise the second"),
    "method.clusters=65": ("method.clusters=65", "64", "/corpus"),
    "training.batch=66": ("64 utterances", "training.batch is 66", "lower training.batch"),
    "corpus.uri=/nowhere/at/all": ("/nowhere/at/all", "manifest.json", "run rayssl prepare"),
    "corpus.uri=nope://host/x": ("nope://host/x", "s3://bucket/key"),
    "seed": ("'seed'", "key.path=value"),
    "run.x=1": ("run.x=1", "holds a value"),
}


@pytest.mark.parametrize("override", MISTAKES)
def test_train_names_the_key_and_the_way_out(folder: Path, capsys: pytest.CaptureFixture[str], override: str) -> None:
    line = refused(capsys, "train", str(folder / "experiment.yaml"), override)
    assert [part for part in MISTAKES[override] if part not in line] == [], line
    assert not (folder / "run").exists()


def test_configuration_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    absent = str(tmp_path / "absent.yaml")
    assert refused(capsys, "train", absent).startswith(f"{absent}: no such file; ")
    (tmp_path / "broken.yaml").write_text("a: [1\nb: 2\n")
    assert "broken.yaml: not valid YAML" in refused(capsys, "show", str(tmp_path / "broken.yaml"))
    (tmp_path / "list.yaml").write_text("[1]")
    assert "has no keys at its top level" in refused(capsys, "show", str(tmp_path / "list.yaml"))


def test_supervised_needs_speakers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(str(tmp_path / "corpus"), 32, speakers=False)
    config = write_config(tmp_path / "experiment.yaml", tree(str(tmp_path)))
    line = refused(capsys, "train", config, "method={name: supervised}")
    assert "'supervised' needs a corpus with speaker labels" in line and "prepare it with speakers" in line


def save(folder: Path, values: dict[str, Any], **where: int) -> str:
    """A checkpoint of the untrained model of ``values``; returns its URI."""
    experiment = Experiment(**values)
    method = build_method(resolve(experiment))
    meta = checkpoint.Meta(architecture=experiment.architecture, **where)
    state = {"method": method.state_dict(), "encoder_prefix": method.encoder_prefix}
    write_config(folder / "run" / "config.yaml", values)
    return checkpoint.save(experiment.run, meta, state, None)


ALLOW = ("--allow-change",)


def test_run_folder_of_another_architecture(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "run").mkdir()
    uri = save(folder, tree(str(folder)), step=4, epoch=1, epoch_step=0)
    line = refused(capsys, "train", str(folder / "experiment.yaml"), "encoder.backbone.channels=24", *ALLOW, "encoder")
    assert line.startswith(f"{uri}: the checkpoint is of another architecture")
    assert "channels=24" in line and "another run folder" in line


def test_run_folder_of_other_settings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "run").mkdir()
    save(folder, tree(str(folder)), step=4, epoch=1, epoch_step=0)
    line = refused(capsys, "train", str(folder / "experiment.yaml"), "training.batch=8", "method.over.temperature=0.5")
    assert "its 4 steps were trained with other settings (" in line and "training.batch: 16 -> 8" in line
    assert "--allow-change method.over.temperature" in line and "another run folder" in line


def test_run_folder_of_another_batch(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Eight steps an epoch instead of four: the fifth step is no longer the first of the second epoch."""
    (folder / "run").mkdir()
    uri = save(folder, tree(str(folder)), step=5, epoch=1, epoch_step=1)
    line = refused(capsys, "train", str(folder / "experiment.yaml"), "training.batch=8", *ALLOW, "training.batch")
    assert line.startswith(f"{uri}: step 5 is not in epoch 2 of 8 steps") and "training.batch" in line


def test_damaged_checkpoint(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "run").mkdir()
    uri = save(folder, tree(str(folder)), step=4, epoch=1, epoch_step=0)
    state = Path(uri) / "state.pt"
    state.write_bytes(state.read_bytes()[:-100])
    line = refused(capsys, "train", str(folder / "experiment.yaml"))
    assert line.startswith(f"{uri}/state.pt: damaged") and "delete this folder" in line


def test_evaluate_needs_a_run_and_its_checkpoint(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "evaluate", str(folder))
    assert line.startswith(f"{folder}: no config.yaml there") and "rayssl train" in line
    (folder / "run").mkdir()
    write_config(folder / "run" / "config.yaml", tree(str(folder)))
    run = str(folder / "run")
    assert refused(capsys, "evaluate", run).startswith(f"{run}: no checkpoint there; train first")
    save(folder, tree(str(folder)), step=4, epoch=1, epoch_step=0)
    line = refused(capsys, "evaluate", run, "--checkpoint", "epoch-99")
    assert line == f"{run}: no checkpoint 'epoch-99'; there are step-4 (also: last, best, epoch-N)"
    line = refused(capsys, "evaluate", run, "encoder.backbone.channels=24")
    assert line.startswith(f"{run}/checkpoints/step-0000000004: the checkpoint is of another architecture")
    write_config(folder / "run" / "config.yaml", {**tree(str(folder)), "evaluation": None})
    assert "evaluation.trials=URI" in refused(capsys, "evaluate", run)
    (folder / "run" / "config.yaml").write_text("a: [1\n")
    assert f"{run}/config.yaml: not valid YAML" in refused(capsys, "evaluate", run)


TRIALS = {
    "1 s0/r0/000 s0/r1/008 extra\n": ("line 1", "label enrol test"),
    "1 s0/r0/000 s0/r1/008\n2 s0/r0/000 s1/r0/001\n": ("line 2",),
    "1 s0/r0/000 s0/r1/008\n0 s0/r0/000 s9/r0/001\n": ("trial 2", "'s9/r0/001'", "/corpus"),
    "1 s0/r0/000 s0/r1/008\n": ("only target trials", "both labels 1 and 0"),
    "\n": ("no trials",),
}


@pytest.mark.parametrize("text", TRIALS, ids=["fields", "label", "unknown", "one kind", "empty"])
def test_evaluate_names_the_trial_that_is_wrong(folder: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (folder / "run").mkdir()
    save(folder, tree(str(folder)), step=4, epoch=1, epoch_step=0)
    trials = str(folder / "wrong.txt")
    storage.write_text(trials, text)
    line = refused(capsys, "evaluate", str(folder / "run"), "--checkpoint", "last", f"evaluation.trials={trials}")
    assert line.startswith(f"{trials}: ")
    assert [part for part in TRIALS[text] if part not in line] == [], line


def test_overrides_before_and_after_an_option(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "run").mkdir()
    write_config(folder / "run" / "config.yaml", tree(str(folder)))
    for order in (["seed=x", "--checkpoint", "best"], ["--checkpoint", "best", "seed=x"]):
        assert "'seed'" in refused(capsys, "evaluate", str(folder / "run"), *order)
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(folder / "run"), "--chekpoint", "best"])
    assert ended.value.code == 2


def test_show_says_where_each_value_is_from(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(folder / "experiment.yaml"), "training.epochs=7", "views.segment_s=0.3"]) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert rows["training.epochs"] == ["7", "override"]
    assert rows["training.batch"] == ["16", "file"]
    assert rows["training.precision"] == ['"fp32"', "default"]


@pytest.mark.long
def test_no_word_of_ray_before_it_is_needed(folder: Path) -> None:
    """The verb in a process of its own: a mistake is told without starting, or even importing, Ray."""
    code = (
        "import sys; from rayssl.cli import main; status = main(sys.argv[1:]); "
        "sys.exit(9 if 'ray' in sys.modules else status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "train", str(folder / "experiment.yaml"), "method.clusters=65"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr


def test_the_verbs_are_imported_without_ray() -> None:
    """Ray reads its environment when it is imported: `cluster.connect` must have set it by then."""
    modules = "rayssl.runtime.cluster, rayssl.runtime.prepare, rayssl.runtime.train, rayssl.runtime.evaluation.evaluate"
    modules += ", rayssl.runtime.embedding.files"
    code = f"import sys, {modules}; sys.exit('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == 0


def test_help_imports_neither_ray_nor_torch() -> None:
    """``python -m rayssl.cli`` is the program too; its help does not wait for what only the verbs need."""
    command = [sys.executable, "-X", "importtime", "-m", "rayssl.cli", "--help"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[:2]) == (0, ["usage:", "rayssl"]), done.stderr
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "rayssl" in imported and not imported & {"ray", "torch", "numpy", "pydantic"}


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "no answer at RAY_ADDRESS=127.0.0.1:1 (connection refused); check that the head runs"),
        ("http://head:8265", "is the address of the jobs API; submit with `ray job submit"),
        ("ray://head:10001", "is an address of Ray Client, and training does not run through it"),
        ("nonsense", "RAY_ADDRESS=nonsense is not HOST:PORT; set it to the head node"),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_told_before_ray_starts(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, address: str, said: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert said in refused(capsys, "train", str(folder / "experiment.yaml"))


def test_a_reader_that_stops_reading_is_no_mistake() -> None:
    verb = [
        sys.executable,
        "-m",
        "rayssl.cli",
        "show",
        str(Path(__file__).parents[1] / "configs" / "gsc_ssps_simclr.yaml"),
    ]
    with subprocess.Popen(verb, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141
