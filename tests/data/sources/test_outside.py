"""A source in a user's file is validated, listed, prepared and recorded like ours."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rayssl.checks.source import check_source
from rayssl.data import corpus, decode, shards
from rayssl.data.corpus import PrepareConfig
from rayssl.data.sources.registry import SOURCES
from rayssl.errors import ConfigError
from rayssl.schema import load_yaml, parse
from tests.data.corpora import encoded, listed, prepare, read, sine
from tests.data.sources.tones import corpus_of, tones_config, tones_file

ROOT = Path(__file__).parents[3]


def test_it_is_listed_read_and_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tones_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    settings = corpus_of({"name": "tones.py:Tones", "speakers": 2}, tmp_path / "out", format="pcm16")
    references = listed(settings.source)
    assert [one.name for one in references] == [f"p{speaker}/{tone}" for speaker in range(2) for tone in range(4)]
    manifest = prepare(settings)
    assert (manifest.rows, manifest.speakers, manifest.recordings) == (8, 2, 2)
    wanted = {"name": "tones.py:Tones", "speakers": 2, "tones": 4, "pitch": {"lowest": 200.0}}
    assert manifest.settings["source"] == wanted  # as it was given: the corpus may move with its project
    audio = read(settings.source, references)
    rows = [row for shard in manifest.shards for row in shards.read_shard(settings.out, shard).to_pylist()]
    for row in rows:
        assert np.array_equal(decode.pcm(row["audio"], "pcm16"), decode.quantise(audio[row["name"]]))
    assert corpus.prepared(settings, corpus.plan(settings, 0)) == manifest


def test_it_is_located_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tones_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    given = SOURCES.read({"name": "tones.py:Tones"})
    located = given.located()
    assert located.name == f"{tmp_path}/tones.py:Tones" and located.located() == located
    assert given.describe() == "the source tones.py:Tones"


def test_keys_that_hold_uris_are_located(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = 'speakers: int = Field(default=3, ge=1)\n        uri: str = "in"\n        other: str | None = None\n'
    keys += '        uris = ("uri", "other")'
    config = tones_config(tmp_path, "speakers: int = Field(default=3, ge=1)", keys)
    monkeypatch.chdir(tmp_path)
    assert config.located().model_dump(include={"uri", "other"}) == {"uri": f"{tmp_path}/in", "other": None}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"speekers": 2}, r"unknown key 'corpora\.a\.source\.speekers'; did you mean 'speakers'\?"),
        ({"speakers": 0}, r"'corpora\.a\.source\.speakers': input should be greater than or equal to 1, got 0"),
        ({"pitch": {"lowst": 1}}, r"unknown key 'corpora\.a\.source\.pitch\.lowst'; did you mean 'lowest'\?"),
    ],
)
def test_mistakes_in_its_keys_are_told_like_those_of_ours(
    keys: dict[str, object], message: str, tmp_path: Path
) -> None:
    tree = {"corpora": {"a": {"source": {"name": tones_file(tmp_path), **keys}, "out": "o"}}}
    with pytest.raises(ConfigError, match=message):
        parse(PrepareConfig, tree, "c.yaml")


def test_another_process_needs_neither_the_file_nor_its_folder(tmp_path: Path) -> None:
    config = tones_config(tmp_path / "there", pitch={"lowest": 300.0}).located()
    sent = pickle.dumps(config)
    (tmp_path / "there/tones.py").unlink()
    code = "import pickle, sys; config = pickle.load(sys.stdin.buffer)\n"
    code += "from rayssl.data.sources.checked import CheckedSource\nsource = CheckedSource(config)\n"
    code += "found = source.list_part('')\nprint(len(found), config.pitch.lowest, len(dict(source.read(found))))"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    done = subprocess.run(command, input=sent, cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"12 300.0 12\n"), done.stderr.decode()


def test_what_it_cannot_use_becomes_a_reject(tmp_path: Path) -> None:
    nan = "0.2) * np.sin(2 * np.pi * (np.nan if speaker == tone == 1 else hertz)"
    config = tones_config(tmp_path, "0.2) * np.sin(2 * np.pi * hertz", nan, tones=10)
    manifest = prepare(corpus_of(config, tmp_path / "out", max_reject_share=0.5))
    rejects = {one.name: one.reason for one in shards.read_rejects(str(tmp_path / "out"))}
    unheard = {f"p{speaker}/9": "too high: nobody hears it" for speaker in range(3)}
    assert rejects == unheard | {"p1/1": "not finite: the samples contain NaN or infinity"}
    assert manifest.rows == 26


CHILD = """

from rayssl.data.sources.folder import Folder

class Mine(Folder):
    pass

class Yours(Folder):
    class Config(Folder.Config):
        more: int = 1

class Theirs(Folder):
    class Config(Folder.Config):
        name: str = ""
        more: int = 1
"""


def test_a_child_of_ours_has_settings_of_its_own(tmp_path: Path) -> None:
    """Otherwise ours would stand in its place, here or when the settings are read back."""
    tones_file(tmp_path)
    path = tmp_path / "children.py"
    path.write_text(CHILD)
    for name, message in (("Mine", "its Config is that of Folder"), ("Yours", r"add to it: name: str = ''")):
        tree = {"corpora": {"a": {"source": {"name": f"{path}:{name}", "uri": "u"}, "out": "o"}}}
        with pytest.raises(ConfigError, match=message):
            parse(PrepareConfig, tree, "c.yaml")
    config = SOURCES.read({"name": f"{path}:Theirs", "uri": "u"})
    assert (config.name, type(config.build()).__name__) == (f"{path}:Theirs", "Theirs")
    assert SOURCES.read(json.loads(config.model_dump_json())) == config


@pytest.mark.long
def test_the_example_of_the_guide_is_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (ROOT / "rayssl/methods/README.md").read_text()
    section = guide.partition("## Source\n")[2].partition("\n## ")[0]
    code, tree = (re.findall(rf"^```{kind}\n(.*?)^```", section, re.M | re.S) for kind in ("python", "yaml"))
    (tmp_path / "segments.py").write_text(code[0])
    (tmp_path / "recordings").mkdir()
    long = sine(1, 2.0, 8000)
    (tmp_path / "recordings/a.wav").write_bytes(encoded(long, "WAV", rate=8000))
    (tmp_path / "recordings/b.wav").write_bytes(b"text" * 99)
    rows = ["file,start_s,end_s,speaker", "a.wav,0,0.5,ann", "a.wav,1.25,2,bob", "b.wav,0,1,ann"]
    (tmp_path / "recordings/segments.csv").write_text("\n".join(rows))
    monkeypatch.chdir(tmp_path)
    settings = parse(PrepareConfig, load_yaml(tree[0], "README.md"), "README.md").corpora["meetings"]
    assert [one.text() for one in check_source(settings.source) if not one.passed] == []
    manifest = prepare(settings.model_copy(update={"max_reject_share": 0.5}))
    assert (manifest.rows, manifest.speakers, manifest.recordings, manifest.seconds) == (2, 2, 3, 1.25)
    (reject,) = shards.read_rejects(settings.out)
    assert (reject.name, reject.source) == ("b.wav/00000000", f"{tmp_path}/recordings/b.wav")
    assert reject.reason.startswith("unreadable: ")
