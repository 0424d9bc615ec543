"""The first mistakes of a newcomer, as typed: each is one line on the terminal, with the way out, and the status 2."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rayssl.cli import main
from tests.small_experiment import tree, write_config, write_corpus

#: What is typed, in a folder of `home`, and what is answered.
TYPED = {
    "train exp.yaml": r"exp\.yaml: no such file",
    "train prepare.yaml": r"prepare\.yaml: is a preparation \(it has 'corpora'\); use rayssl prepare",
    "prepare experiment.yaml": r"experiment\.yaml: is an experiment \(it has 'encoder'\); use rayssl train",
    "train run": r"run: is a folder; give a YAML file",
    "prepare prepare.yaml --local corpora.mine.source.uri=nowhere": r"nowhere: no such folder; correct the",
    "prepare prepare.yaml --local": r"texts: no utterances found, 1 \.txt passed over; correct the keys of",
    "train experiment.yaml --local corpus.uri=unprepared": r"unprepared: no prepared corpus there .* run rayssl",
    "train experiment.yaml --local epochs=3": r"'epochs'.*did you mean 'training\.epochs'",
    "train experiment.yaml --local method.over.temperture=0.2": r"'method\.over\.temperture'; did you mean 'temp",
    "train experiment.yaml --local training.batch=15": r"training\.batch=15 is not divisible by ray\.workers=2",
    "train experiment.yaml --local evaluation.trials=list.txt": r"evaluation\.trials: .*list\.txt: no such file",
    "evaluate corpus --local": r"corpus: no config\.yaml there; give the folder of a run",
    "evaluate run --local": r"run: no config\.yaml there; give the folder of a run",
    "report nowhere": r"nowhere: no run here",
    "train experiment.yaml --local encoder.start_from=nowhere": r"encoder\.start_from: .*/nowhere: no checkpoint there",
    "score run a.wav": r"give two audio files, or a list of pairs with --trials",
    "score nowhere a.wav b.wav": r"nowhere: no config\.yaml there; give the folder of a run",
    "embed run texts": r"texts: no audio files in this folder",
    "embed run absent.wav": r"absent\.wav: no such file or folder",
    "publish run made": r"run: no config\.yaml there; give the folder of a run",
    "train experiment.yaml --local seed": r"override 'seed': write it as key\.path=value",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_corpus(f"{folder}/corpus", 64)
    write_config(folder / "experiment.yaml", tree(str(folder)))
    write_config(
        folder / "prepare.yaml", {"corpora": {"mine": {"source": {"name": "folder", "uri": "texts"}, "out": "made"}}}
    )
    (folder / "texts").mkdir()
    (folder / "texts/notes.txt").write_text("not audio")
    (folder / "run").mkdir()
    return folder


@pytest.mark.parametrize("typed", TYPED)
def test_a_mistake_is_one_line(
    home: Path, typed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    assert main(typed.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"rayssl {typed.split()[0]}: ") and said.count("\n") == 1, said
    assert re.search(TYPED[typed], said), said
