"""What `rayssl init` makes of a folder, a list, a tar, a Parquet file, long recordings and damaged ones."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rayssl import storage
from rayssl.cli import main
from rayssl.data.corpus import PrepareConfig
from rayssl.data.taking import TakeConfig
from rayssl.errors import ConfigError, CorpusError
from rayssl.experiment.config import Experiment
from rayssl.schema import parse
from rayssl.start import finding, prepare_file, testing, train_file, writing
from rayssl.start.machine import Machine
from rayssl.start.plan import Plan, plan
from tests.data import corpora
from tests.start.voices import noise, write

TWO = Machine(2)


def planned(uri: Path | str, tmp_path: Path, purpose: Any = None, machine: Machine = TWO) -> Plan:
    return plan(str(uri), str(tmp_path / "out"), purpose, machine)


def read(made: Plan) -> tuple[PrepareConfig, Experiment]:
    """Both files as `prepare` and `train` read them. Each key at the top of a file has a comment."""
    texts = prepare_file.text(made), train_file.text(made)
    for text in texts:
        lines = text.splitlines()
        assert lines[0].startswith("# Shows: ") and max(map(len, lines[:6])) <= 120
        for number, line in enumerate(lines):
            if (
                line
                and line[0] not in "# "
                and line.partition(":")[0] not in ("corpora", "encoder", "training", "method")
            ):
                assert lines[number - 1].startswith("#"), line
    prepare, train = map(yaml.safe_load, texts)
    return parse(PrepareConfig, prepare, "prepare.yaml"), parse(Experiment, train, "train.yaml")


def names(folder: str, *groups: str, files: int = 3) -> list[str]:
    return [f"{folder}{group}/{k}.wav" for group in groups for k in range(files)]


def test_speakers(tmp_path: Path) -> None:
    made = planned(noise(tmp_path / "in", *names("", *[f"spk{k}" for k in range(10)], files=4)), tmp_path)
    prepare, train = read(made)
    both = prepare.corpora["train"].take, prepare.corpora["test"].take
    assert both[0] is not None and both[1] is not None
    assert both[0].model_copy(update={"part": "held_out"}) == both[1] and len(both[0].held_out) == 2  # type: ignore[arg-type]
    assert prepare.corpora["test"].trials["all"].across == "any"
    assert train.evaluation is not None and train.evaluation.corpus == prepare.corpora["test"].out
    assert train.corpus.uri == prepare.corpora["train"].out
    said = writing.summary(made)
    assert "40 recordings of 10 speakers" in said and "2 of 10 speakers are held out" in said


def test_recordings_of_speakers_give_trials_across_them(tmp_path: Path) -> None:
    folders = [f"id{k:05d}/{video}" for k in range(5) for video in ("x1", "y2")]
    made = planned(noise(tmp_path / "in", *names("", *folders, files=2)), tmp_path)
    prepare, _ = read(made)
    assert prepare.corpora["train"].source.layout == ["speaker", "recording"]  # type: ignore[attr-defined]
    assert prepare.corpora["test"].trials["all"].across == "condition"


def test_a_flat_folder_has_no_error_rate_and_says_so(tmp_path: Path) -> None:
    made = planned(noise(tmp_path / "in", *[f"{who}_{k}.wav" for who in ("ada", "bob") for k in range(20)]), tmp_path)
    prepare, train = read(made)
    assert [*prepare.corpora] == ["train"] and train.evaluation is None
    said = writing.summary(made)
    assert "no test and no error rate" in said and "begin with 2 different words (ada, bob)" in said


def test_classes(tmp_path: Path) -> None:
    made = planned(noise(tmp_path / "in", *names("", "dog", "rain", "siren", files=12)), tmp_path)
    prepare, train = read(made)
    assert (
        train.method.name == "clar"
        and train.labels is not None
        and train.labels.split in prepare.corpora["train"].splits
    )
    assert train.evaluation is not None and train.evaluation.task == "classification"
    test = prepare.corpora["test"].take
    assert test is not None
    held = test.of(made.usable)
    assert {one.label for one in held} == {"dog", "rain", "siren"} and 4 <= len(held) <= 12


def test_unlabelled_clips_among_classes_are_learned_from(tmp_path: Path) -> None:
    rows = [f"c/{k}.wav,{'dog' if k % 2 else 'cat'}" for k in range(40)] + [f"c/{k}.wav," for k in range(40, 100)]
    noise(tmp_path, *[f"c/{k}.wav" for k in range(100)], seconds=0.2)
    (tmp_path / "list.csv").write_text("wav,category\n" + "\n".join(rows) + "\n")
    made = planned(tmp_path / "list.csv", tmp_path)
    prepare, train = read(made)
    assert train.method.name == "fixmatch" and prepare.corpora["train"].splits["all"].unknown
    assert train.training.batch % (train.ray.most * 2) == 0


def test_a_list_with_columns_of_other_names(tmp_path: Path) -> None:
    noise(tmp_path / "set/clips", *[f"{k}.wav" for k in range(40)], seconds=0.2)
    lines = [f"{k}.wav\tp{k % 8}\thello {k}" for k in range(40)]
    (tmp_path / "set/train.tsv").write_text("path\tclient_id\tsentence\n" + "\n".join(lines) + "\n")
    made = planned(tmp_path / "set/train.tsv", tmp_path)
    prepare, _ = read(made)
    source = prepare.corpora["train"].source
    assert source.uri == str(tmp_path / "set/clips")  # type: ignore[attr-defined]
    assert source.columns == {"path": "path", "speaker": "client_id"}  # type: ignore[attr-defined]
    assert made.speakers == 8 and "columns that are not used: sentence" in writing.summary(made)


def test_absolute_paths_and_a_list_without_files(tmp_path: Path) -> None:
    noise(tmp_path / "far", *[f"{k}.wav" for k in range(8)], seconds=0.2)
    rows = [f"{tmp_path}/far/{k}.wav,s{k % 4}" for k in range(8)]
    (tmp_path / "a.csv").write_text("path,speaker\n" + "\n".join(rows) + "\n")
    made = planned(tmp_path / "a.csv", tmp_path)
    assert made.speakers == 4 and not made.heard.unreadable
    (tmp_path / "b.csv").write_text("path,speaker\nnowhere.wav,a\n")
    with pytest.raises(CorpusError, match=r"b\.csv: no file 'nowhere\.wav' in .* paths in a list are relative"):
        planned(tmp_path / "b.csv", tmp_path)
    (tmp_path / "c.csv").write_text("x,y\n1,2\n")
    with pytest.raises(CorpusError, match=r"c\.csv: no column with paths of audio files \(columns: x, y\)"):
        planned(tmp_path / "c.csv", tmp_path)


def test_parquet_and_tar(tmp_path: Path) -> None:
    files = {f"spk{k % 8}/rec{k % 2}/{k:02d}.flac": corpora.encoded(corpora.sine(k)) for k in range(40)}
    made = planned(corpora.write_parquet(tmp_path / "pq/a.parquet", files, structs=True), tmp_path)
    prepare, _ = read(made)
    assert made.speakers == 8 and prepare.corpora["train"].source.recording == "session"  # type: ignore[attr-defined]
    (tmp_path / "tar").mkdir()
    with tarfile.open(tmp_path / "tar/a.tar", "w") as tar:
        for number, data in enumerate(files.values()):
            for name, content in (
                (f"{number}.flac", data),
                (f"{number}.json", json.dumps({"spk": f"s{number % 8}"}).encode()),
            ):
                (tmp_path / "member").write_bytes(content)
                tar.add(tmp_path / "member", name)
    made = planned(tmp_path / "tar", tmp_path)
    read(made)
    assert made.found.source == {"name": "webdataset", "uri": str(tmp_path / "tar"), "speaker": "spk"}
    assert made.speakers == 8


def test_long_recordings_are_divided(tmp_path: Path) -> None:
    made = planned(noise(tmp_path / "in", *[f"show {k}.wav" for k in range(10)], seconds=60, rate=4000), tmp_path)
    prepare, train = read(made)
    assert prepare.corpora["train"].segments is not None
    assert made.utterances == 75 and train.training.batch <= 75
    assert "they are long: divided into segments" in writing.summary(made)
    assert "some have a rate of 4,000 Hz" in writing.summary(made)


def test_unreadable_recordings_are_counted_and_let_through(tmp_path: Path) -> None:
    folder = noise(tmp_path / "in", *names("", *[f"spk{k}" for k in range(8)], files=5), seconds=0.3)
    (folder / "spk3/0.wav").write_bytes(b"no audio")
    (folder / "spk4/1.wav").write_bytes(b"")
    write(folder, "spk5/2.wav", np.zeros(16))
    (folder / "notes.txt").write_text("x")
    made = planned(folder, tmp_path)
    prepare, _ = read(made)
    assert len(made.heard.unreadable) == 3
    for settings in prepare.corpora.values():
        part = settings.take.of(made.found.references) if settings.take else []
        bad = sum(one.name in made.heard.unreadable for one in part) / len(part)
        assert settings.max_reject_share is not None and bad <= settings.max_reject_share < 0.4
    said = writing.summary(made)
    assert "3 of 40 cannot be read and are left out, first 'spk3/0.wav'" in said and "passed over: 1 .txt" in said


@pytest.mark.parametrize("count", [4, 12, 20])
def test_too_small_says_so_and_what_works(tmp_path: Path, count: int) -> None:
    made = planned(noise(tmp_path / "in", *[f"{k}.wav" for k in range(count)]), tmp_path)
    _, train = read(made)
    assert made.too_small and train.training.batch <= count
    for text in (writing.summary(made), prepare_file.text(made), train_file.text(made)):
        assert "TOO SMALL" in text
    assert "rayssl embed RUN CORPUS OUT" in writing.summary(made)


def test_too_few_speakers_to_hold_out(tmp_path: Path) -> None:
    made = planned(noise(tmp_path / "in", *names("", "spk1", "spk2", "spk3", files=12)), tmp_path)
    _, train = read(made)
    assert train.evaluation is None and "3 known speakers are too few" in writing.summary(made)


def test_a_gpu_gets_the_published_encoder(tmp_path: Path) -> None:
    made = planned(noise(tmp_path / "in", *names("", "spk1", "spk2", files=20)), tmp_path, machine=Machine(16, 2, 80.0))
    _, train = read(made)
    assert train.encoder.backbone.channels == 512 and train.training.precision == "bf16"  # type: ignore[attr-defined]
    assert "2 GPUs of 80 GiB" in train_file.text(made)


@pytest.mark.parametrize(
    ("files", "purpose", "part"),
    [
        ([], None, "nothing that a source reads"),
        (["a.wav"], None, "1 utterances are too few for any training"),
        ([f"{k}.wav" for k in range(9)], "speakers", "--for speakers needs a folder for each of the speakers"),
    ],
)
def test_mistakes(tmp_path: Path, files: Sequence[str], purpose: str | None, part: str) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(CorpusError, match=part):
        planned(noise(tmp_path / "in", *files), tmp_path, purpose)


def test_nothing_and_a_prepared_corpus(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="nothing is there"):
        planned(tmp_path / "none", tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(CorpusError, match="is a corpus that rayssl prepare made"):
        planned(tmp_path, tmp_path)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.wav").write_bytes(b"x")
    with pytest.raises(CorpusError, match=r"none of 1 recordings can be read, first 'a\.wav'"):
        planned(tmp_path / "bad", tmp_path)


def test_files_are_not_replaced_without_being_asked(tmp_path: Path) -> None:
    made = planned(noise(tmp_path / "in", *[f"{k}.wav" for k in range(40)], seconds=0.2), tmp_path)
    writing.write(made)
    (tmp_path / "out/train.yaml").write_text("mine")
    with pytest.raises(ConfigError, match=r"prepare\.yaml, .*train\.yaml: exists; give another --out, or --overwrite"):
        writing.write(made)
    assert (tmp_path / "out/train.yaml").read_text() == "mine"
    writing.write(made, overwrite=True)
    assert (tmp_path / "out/train.yaml").read_text() == train_file.text(made)


def test_nights(tmp_path: Path) -> None:
    for k in range(5):
        noise(tmp_path / "in", f"s{k}-1.wav", seconds=61, rate=2000)
    with pytest.raises(CorpusError, match="5 nights, none of them scored"):
        planned(tmp_path / "in", tmp_path, "sleep")
    for k in range(4):
        (tmp_path / f"in/s{k}-1.txt").write_text("W\nN2\n")
    made = planned(tmp_path / "in", tmp_path, "sleep")
    prepare, train = read(made)
    assert prepare.corpora["nights"].splits["staging"].nights is not None
    assert train.evaluation is not None and train.evaluation.split == "staging"  # type: ignore[union-attr]
    assert "5 nights, 4 of them scored (5 subjects)" in writing.summary(made)


def test_classes_of_speakers_hold_speakers_out() -> None:
    listed = [
        finding.Reference(f"{word}/{who}/{k}.wav", f"s{who}", None, word)
        for word in ("yes", "no") for who in range(15) for k in range(2)
    ]  # fmt: skip
    held = testing.of_classes(listed)
    assert held.take is not None and held.take["by"] == "speaker"
    parts = [TakeConfig(part=part, **held.take).of(listed) for part in ("held_out", "rest")]  # type: ignore[arg-type]
    assert {one.speaker for one in parts[0]}.isdisjoint({one.speaker for one in parts[1]})
    assert all({one.label for one in part} == {"yes", "no"} for part in parts)


def test_many_speakers_are_held_out_by_share() -> None:
    listed = [finding.Reference(f"{who}/{k}", f"s{who}", f"r{k}") for who in range(300) for k in range(3)]
    held = testing.of_speakers(listed)
    assert held.take is not None and isinstance(held.take["held_out"], float) and held.across
    assert 40 <= held.speakers <= 80


@pytest.mark.s3
def test_a_prefix_of_a_bucket(s3_server: Any, tmp_path: Path) -> None:
    bucket = s3_server.bucket("rayssl-init")
    for path in sorted(noise(tmp_path / "in", *names("", *[f"spk{k}" for k in range(5)]), seconds=0.2).rglob("*.wav")):
        storage.write_bytes(f"{bucket}/in/{path.relative_to(tmp_path / 'in')}", path.read_bytes())
    made = plan(f"{bucket}/in/", f"{bucket}/out", None, TWO)
    writing.write(made)
    assert made.found.source["uri"] == f"{bucket}/in" and made.speakers == 5 and made.heard.asked == 15
    assert storage.list_files(f"{bucket}/out") == [f"{bucket}/out/prepare.yaml", f"{bucket}/out/train.yaml"]


@pytest.mark.long
def test_the_command_and_what_it_prepares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first two commands, as the lines `next:` name them; the folder's name has a space."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    noise(tmp_path / "my voices", *names("", *[f"spk{k}" for k in range(6)], files=6), seconds=1.0)
    assert main(["init", "my voices"]) == 0
    following = capsys.readouterr().out.splitlines()[-1]
    assert following.startswith("next: rayssl prepare 'runs/my voices/prepare.yaml' --local    (")
    assert main(["init", "my voices"]) == 2
    error = capsys.readouterr().err
    assert "exists; give another --out, or --overwrite" in error and error.count("\n") == 1
    assert main(["prepare", "runs/my voices/prepare.yaml", "--local"]) == 0
    printed = capsys.readouterr().out
    assert "train: 24 utterances" in printed and "test: 12 utterances" in printed and "trials all: 60, 30" in printed
    assert printed.splitlines()[-1] == "next: rayssl train 'runs/my voices/train.yaml' --local"
    assert main(["prepare", "runs/my voices/prepare.yaml", "--local", "--quiet"]) == 0
    assert "next:" not in capsys.readouterr().out


def test_ray_is_proposed_where_it_pays(tmp_path: Path) -> None:
    folder = noise(tmp_path / "in", *names("", *[f"spk{k}" for k in range(6)], files=6))
    here, joined = planned(folder, tmp_path), planned(folder, tmp_path, machine=Machine(2, cluster=True))
    assert here.local and not joined.local
    assert "/prepare.yaml --local " in prepare_file.text(here).replace("\n# ", " ")
    assert "/train.yaml --local && rayssl evaluate " in train_file.text(here).replace("\n# ", " ")
    assert "--local" not in prepare_file.text(joined) + train_file.text(joined)
