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
    # verbs, options and arguments
    "tarin experiment.yaml": r"there is no verb 'tarin'; did you mean 'train'\?",
    "help": r"there is no verb 'help'; see rayssl --help",
    "--verison": r"give VERB; see rayssl --help",
    "train": r"give CONFIG; example: rayssl train ",
    "prepare --local": r"give CONFIG; example: rayssl prepare ",
    "show": r"give CONFIG; example: rayssl show ",
    "sweep": r"give CONFIG; example: rayssl sweep ",
    "evaluate": r"give RUN; example: rayssl evaluate ",
    "report": r"give RUN; example: rayssl report ",
    "export": r"give RUN; example: rayssl export ",
    "embed run": r"give FILE; example: rayssl embed ",
    "score": r"give RUN and FILE; example: rayssl score ",
    "publish run": r"give FOLDER; example: rayssl publish ",
    "init": r"give RECORDINGS; example: rayssl init ",
    "stage run a.wav": r"give --out; example: rayssl stage ",
    "bench": r"give WHAT; see rayssl bench --help",
    "bench memry": r"there is no 'memry'; did you mean 'memory'\?",
    "bench memory --rows many": r"--rows: invalid int value: 'many'; see rayssl bench memory --help",
    "bench memory --rows 0": r"--rows must be at least 1, got 0",
    "bench kmeans --rows 10 --clusters 20": r"--clusters 20 must lie in 1\.\.10",
    "bench judges nowhere": r"nowhere: neither a run nor a sweep",
    "list modles": r"there is no 'modles'; did you mean 'methods'\?",
    "schema expriment": r"there is no 'expriment'; did you mean 'experiment'\?",
    "completion fsh": r"there is no 'fsh'; did you mean 'zsh'\?",
    "keys trainig": r"trainig",
    "train experiment.yaml --epochs 3": r"no option '--epochs'; a key is written without dashes, as training\.epochs=3",
    "train experiment.yaml --training.epochs=3": r"is written without dashes: training\.epochs=3",
    "train experiment.yaml -x": r"no option '-x'; .*see rayssl train --help",
    "evaluate run --chekpoint best": r"no option '--chekpoint'; did you mean '--checkpoint'\?",
    "export run out.pt2": r"'out\.pt2' is too much; example: rayssl export ",
    # files
    "train experiment.yml": r"experiment\.yml: no such file; did you mean experiment\.yaml\?",
    "show absent": r"absent: no such file; rayssl list configs shows",
    "train empty.yaml": r"empty\.yaml: is empty; give a configuration",
    "train list.yaml": r"list\.yaml: has no keys at its top level, but is a list; give a configuration",
    "train tabs.yaml": r"tabs\.yaml: not valid YAML: .*line 2",
    "train bytes.yaml": r"bytes\.yaml: is no text; give a YAML file",
    "prepare texts": r"texts: is a folder; give a YAML file",
    "sweep experiment.yaml": r"is an experiment \(it has 'encoder'\); use rayssl train",
    "sweep prepare.yaml": r"is a preparation \(it has 'corpora'\); use rayssl prepare",
    "evaluate experiment.yaml --local": r"experiment\.yaml: no config\.yaml there; give the folder of a run",
    "report experiment.yaml": r"experiment\.yaml: no run here .*give the folder of a run",
    "export nowhere": r"nowhere: no config\.yaml there; give the folder of a run",
    "publish nowhere made": r"nowhere: no config\.yaml there; give the folder of a run",
    "embed nowhere a.wav": r"nowhere: no config\.yaml there; give the folder of a run",
    "init nowhere": r"nowhere: nothing is there; give a folder, a list",
    "init texts": r"texts: nothing that a source reads \(1 \.txt\); rayssl init takes",
    "init a.wav": r"a\.wav: is one recording; give the folder of many",
    "fetch speech-comands": r"speech-comands.*speech-commands",
    "fetch esc10 --from nowhere": r"nowhere",
    # keys and values
    "train experiment.yaml extra": r"override 'extra': write it as key\.path=value",
    "train experiment.yaml training.epochs": r"override 'training\.epochs': write it as key\.path=value",
    "train experiment.yaml training.epochs=": r"'training\.epochs': input should be a valid integer, got None",
    "train experiment.yaml training.epochs=many": r"'training\.epochs': input should be a valid integer",
    "train experiment.yaml training.epochs=0": r"'training\.epochs': .*greater than or equal to 1, got 0",
    "train experiment.yaml training.epochs=1.5": r"'training\.epochs': .*integer.*got 1\.5",
    "train experiment.yaml training.epoch=3": r"unknown key 'training\.epoch'; did you mean 'epochs'\?",
    "train experiment.yaml trainning.epochs=3": r"unknown key 'trainning'; did you mean 'training'\?",
    "train experiment.yaml training.optimizer.lr=0.1": r"'training\.optimizer'; did you mean 'optimiser'\?",
    "train experiment.yaml trackers=[tensorbord]": r"'trackers'; did you mean 'training\.trackers'\?",
    "train experiment.yaml method=simclr": r"'method': expected keys below it, got 'simclr'",
    "train experiment.yaml method.name=simcrl": r"unknown name 'simcrl' \(did you mean 'simclr'\?\)",
    "train experiment.yaml method.name=": r"'method\.name': choose one of 'simclr', ",
    "train experiment.yaml encoder.frontend.name=mel": r"unknown name 'mel' \(did you mean 'logmel'\?\)",
    "train experiment.yaml encoder.backbone.channels=17": r"'channels' \(17\) must be a multiple of 'scale' \(8\)",
    "train experiment.yaml training.optimiser.lr=fast": r"'training\.optimiser\.lr': .*valid number.*got 'fast'",
    "train experiment.yaml training.optimiser.name=adamw2": r"should be 'adam', 'adamw'.*got 'adamw2'",
    "train experiment.yaml training.precision=fp8": r"should be 'fp32' or 'bf16', got 'fp8'",
    "train experiment.yaml ray.workers=0": r"'ray\.workers': .*greater than or equal to 1.*got 0",
    "train experiment.yaml ray.workers=[3,1]": r"ray\.workers=\[3, 1\]: write the smaller number first",
    "train experiment.yaml memory.sync=sloppy": r"should be 'strict' or 'ahead', got 'sloppy'",
    "train experiment.yaml --local method.clusters=1000000": r"method\.clusters=1000000 must be above .* at most",
    "train experiment.yaml method.clusters=0": r"needs clusters \(K\) of at least 2; set method\.clusters",
    "train experiment.yaml run=s3://": r"s3://: names no bucket; write s3://bucket/key",
    "report runs/a runs/b --against band.json": r"--against: a band is for one run; name one",
    "train experiment.yaml views.segment_s=0": r"'views\.segment_s': .*greater than 0, got 0",
    "train experiment.yaml --local training.batch=100000": r"training\.batch is 100000: an epoch would be empty; lower",
    "train experiment.yaml training.checkpoints.best=accurracy --local": r"accurracy",
    "train experiment.yaml training.validate.metric=err": r"there is no figure 'err'; did you mean 'eer'\?",
    "train experiment.yaml training.validate.metric=eer": r"eer needs corpus and trials: a held-out corpus",
    "train experiment.yaml storage.patience_s=-5": r"'storage\.patience_s': .*greater than or equal to 0, got -5",
    "show experiment.yaml seed=x": r"'seed'.*got 'x'",
    "prepare prepare.yaml corpora.mine.source.name=fodler": r"unknown name 'fodler' \(did you mean 'folder'\?\)",
    "prepare prepare.yaml corpora.mine.out=": r"'corpora\.mine\.out': input should be a valid string, got None",
    "prepare prepare.yaml corpora.mine.uot=x": r"unknown key 'corpora\.mine\.uot'; did you mean 'out'\?",
    "prepare prepare.yaml corpora.yours.out=x": r"'corpora\.yours\.source' is required and not given",
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
    (folder / "a.wav").write_bytes(b"no audio")
    (folder / "empty.yaml").write_text("")
    (folder / "list.yaml").write_text("- a\n- b\n")
    (folder / "tabs.yaml").write_text("run: a\n\tx: 1\n")
    (folder / "bytes.yaml").write_bytes(bytes(range(256)))
    return folder


@pytest.mark.parametrize("typed", TYPED)
def test_a_mistake_is_one_line(
    home: Path, typed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    try:
        status = main(typed.split())
    except SystemExit as ended:  # what argparse finds
        status = int(ended.code or 0)
    said = capsys.readouterr().err
    assert status == 2 and said.startswith("rayssl") and said.count("\n") == 1, said
    assert re.search(TYPED[typed], said), said
