"""Components from outside: found, validated, shown, saved, moved to other processes; and one line for every mistake."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rayssl.errors import ConfigError
from rayssl.experiment.config import Experiment, located
from rayssl.methods.registry import METHODS
from rayssl.models.registry import BACKBONES
from rayssl.registry import outside_files
from rayssl.schema import load_yaml, parse
from tests import outside
from tests.runs import SSPS_METHOD, batches, build, experiment, write_corpus

ROOT = Path(__file__).parents[1]


def tree(method: Any, **encoder: Any) -> dict[str, Any]:
    return {"run": "r", "corpus": {"uri": "c"}, "encoder": {"backbone": {"name": "ecapa"}, **encoder}, "method": method}


def message(given: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(Experiment, given, "x.yaml")
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.fixture
def method(tmp_path: Path) -> str:
    return outside.write(tmp_path, outside.METHOD, "own.py") + ":Contrast"


def test_from_a_file(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name stays as it was given, so that what is saved is read again; `located` makes its path absolute."""
    monkeypatch.chdir(tmp_path)
    relative = "own.py:Contrast"
    settings = parse(Experiment, tree({"name": relative, "temperature": 0.25}), "x.yaml")
    assert settings.method.name == relative and settings.method.short_name == "Contrast"
    dumped = settings.model_dump(mode="json")
    assert dumped["method"] == {"name": relative, "projector": dumped["method"]["projector"], "temperature": 0.25}
    assert parse(Experiment, load_yaml(settings.model_dump_json(), "again"), "again") == settings
    assert located(settings).method.name == method
    assert settings.architecture.startswith("Contrast over ecapa")
    assert set(outside_files(settings)) == {str(tmp_path / "own.py")}
    assert outside_files(parse(Experiment, tree({"name": "simclr"}), "x.yaml")) == {}


def test_the_keys_of_its_config_are_known(method: str) -> None:
    assert message(tree({"name": method, "temprature": 1})) == (
        "x.yaml: unknown key 'method.temprature'; did you mean 'temperature'?"
    )
    assert "'method.temperature': input should be a valid number" in message(tree({"name": method, "temperature": "a"}))
    over = {**SSPS_METHOD, "over": {"name": method, "temprature": 1}}
    assert "unknown key 'method.over.temprature'; did you mean 'temperature'?" in message(tree(over))


def test_mistakes(tmp_path: Path, method: str) -> None:
    file = method.rpartition(":")[0]
    found = message(tree({"name": f"{file}:Contrasts"}))
    assert (
        f"'method.name': '{file}:Contrasts': {file} has no 'Contrasts'; its classes are Alone, Broken, Contrast"
        in found
    )
    assert "no such file, seen from" in message(tree({"name": f"{tmp_path}/none.py:X"}))
    (tmp_path / "typo.py").write_text("x = 1\nclass X(:\n")
    assert f"{tmp_path}/typo.py: line 2: " in message(tree({"name": f"{tmp_path}/typo.py:X"}))
    (tmp_path / "fails.py").write_text("import math\n\nmath.nothing\n")
    found = message(tree({"name": f"{tmp_path}/fails.py:X"}))
    assert f"{tmp_path}/fails.py: AttributeError on line 3 of fails.py: module 'math' has no attribute" in found
    (tmp_path / "plain.py").write_text("class Plain:\n    pass\n")
    found = message(tree({"name": f"{tmp_path}/plain.py:Plain"}))
    assert "is not a method: the class needs a Config that extends rayssl.methods.base.MethodConfig" in found
    assert "no module 'nowhere' is installed here" in message(tree({"name": "nowhere.to:Be"}))
    found = message(tree({"name": "simclr"}, backbone={"name": method}))
    assert "'encoder.backbone.name':" in found and "is not a backbone" in found
    assert "did you mean 'simclr'?" in message(tree({"name": "simcl"}))


def test_from_a_module_and_by_our_own_path() -> None:
    """The path of one of ours is the same as its name."""
    found = parse(Experiment, tree({"name": "rayssl.methods.simclr:SimCLR", "temperature": 0.5}), "x")
    assert found.method == parse(Experiment, tree({"name": "simclr", "temperature": 0.5}), "x").method


def test_from_an_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    point = importlib.metadata.EntryPoint("tunes", "tests.own_components:Tunes", "rayssl.encoders")

    def points(*, group: str) -> list[importlib.metadata.EntryPoint]:
        return [point] if group == "rayssl.encoders" else []

    monkeypatch.setattr(importlib.metadata, "entry_points", points)
    settings = parse(Experiment, tree({"name": "simclr"}, backbone={"name": "tunes", "width": 3}), "x")
    assert settings.encoder.backbone.model_dump() == {"name": "tunes", "embedding_dim": 8, "width": 3}
    assert "tunes" in BACKBONES.names() and "tunes" not in METHODS.names()
    assert "unknown key 'encoder.backbone.widht'; did you mean 'width'?" in message(
        tree({"name": "simclr"}, backbone={"name": "tunes", "widht": 3})
    )


@pytest.mark.long
def test_an_installed_package_in_a_process_of_its_own(tmp_path: Path) -> None:
    """A real distribution, as pip leaves it: its metadata with the entry point, and its module."""
    (tmp_path / "tunes-1.0.dist-info").mkdir()
    (tmp_path / "tunes-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: tunes\nVersion: 1.0\n")
    (tmp_path / "tunes-1.0.dist-info/entry_points.txt").write_text("[rayssl.methods]\ncontrast = tunes:Contrast\n")
    outside.write(tmp_path, outside.METHOD, "tunes.py")
    config = tmp_path / "x.yaml"
    config.write_text(json.dumps(tree({"name": "contrast", "temperature": 0.75})))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    command = [sys.executable, "-m", "rayssl.cli", "show", str(config)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = dict(line.split()[:2] for line in done.stdout.splitlines() if line.startswith("method."))
    assert shown["method.name"] == '"contrast"' and shown["method.temperature"] == "0.75"


def test_settings_made_in_python_have_a_name() -> None:
    from tests.own_components import Tunes

    settings = Tunes.Config(width=2)
    assert settings.name == "tests.own_components:Tunes" and BACKBONES.find(settings.name) is Tunes.Config


@pytest.mark.long
def test_another_process_needs_no_file(tmp_path: Path, method: str) -> None:
    """The settings take the text of their file along; the class is the same whatever came first."""
    settings = METHODS.read({"name": method, "temperature": 0.125})
    data = pickle.dumps([settings, METHODS.read({"name": method})])
    assert pickle.loads(data)[0] == settings
    (tmp_path / "data").write_bytes(data)
    Path(method.rpartition(":")[0]).unlink()
    code = (
        f"import pickle\na, b = pickle.loads(open({str(tmp_path / 'data')!r}, 'rb').read())\n"
        "assert type(a) is type(b) and a.temperature == 0.125\nprint(a.build.__qualname__, type(a).component.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "MethodConfig.build Contrast\n"), done.stderr


@pytest.mark.parametrize("wrapped", [False, True])
def test_it_trains_and_resumes(method: str, tmp_path: Path, wrapped: bool) -> None:
    """Alone and under SSPS, over a front end and a backbone from outside."""
    write_corpus(tmp_path / "corpus")
    parts = outside.write(tmp_path, outside.BACKBONE, "parts.py")
    encoder = f"encoder={{frontend: {{name: '{parts}:Energy'}}, backbone: {{name: '{parts}:Mean'}}}}"
    own = {"name": method}
    settings = experiment(
        tmp_path / "run", tmp_path / "corpus", encoder, method={**SSPS_METHOD, "over": own} if wrapped else own
    )
    loop = build(settings)
    loop.fit(batches(settings, loop))
    again = build(settings)
    weights = loop.state.method.state_dict()
    assert again.step == loop.step == 12
    for name, value in again.state.method.state_dict().items():
        assert torch.equal(value, weights[name])
    assert again.state.method.encoder.backbone.__class__.__name__ == "Mean"
