"""JSON schemas for editors: fresh, true to draft 7, and as strict as rayssl where an editor can know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from rayssl.cli import main
from rayssl.data.corpus import PrepareConfig
from rayssl.errors import ConfigError
from rayssl.experiment.config import Experiment
from rayssl.keys.roots import ROOTS, kind_of
from rayssl.keys.schemas import schema
from rayssl.schema import load_yaml, override, parse

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
SCHEMAS = {kind: schema(kind, installed=False) for kind in ROOTS}


def problems(kind: str, tree: Any) -> list[str]:
    return [error.json_path for error in jsonschema.Draft7Validator(SCHEMAS[kind]).iter_errors(tree)]


@pytest.mark.parametrize("kind", ROOTS)
def test_the_committed_ones_are_up_to_date(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    committed = (CONFIGS / f"schemas/{kind}.json").read_text()
    told = f"run: rayssl schema {kind} --built-in > configs/schemas/{kind}.json"
    assert json.loads(committed) == SCHEMAS[kind], told
    assert main(["schema", kind, "--built-in"]) == 0
    assert capsys.readouterr().out == committed, told


@pytest.mark.parametrize("kind", ROOTS)
def test_they_are_schemas(kind: str) -> None:
    made = SCHEMAS[kind]
    jsonschema.Draft7Validator.check_schema(made)
    text = json.dumps(made)
    known = {f"#/$defs/{name}" for name in made["$defs"]}
    named = {part.partition('"')[0] for part in text.split('"$ref": "')[1:]}
    assert named == known  # nothing is missing, and nothing is left over
    assert "x-rayssl" not in text and "prefixItems" not in text and '"title": "' in text[:200]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_configurations_fit_and_name_theirs(path: Path) -> None:
    text = path.read_text()
    tree = load_yaml(text, path.name)
    kind = kind_of(tree)
    assert problems(kind, tree) == []
    first = text.splitlines()[0]
    named = first.removeprefix("# yaml-language-server: $schema=")
    assert first != named and (path.parent / named).resolve() == CONFIGS / f"schemas/{kind}.json"


WRONG = {
    "training.epoch=3": "$.training",
    "training.batch=one": "$.training.batch",
    "training.precision=fp16": "$.training.precision",
    "method.temprature=0.1": "$.method",
    "method={name: simclrr}": "$.method.name",
    "method={name: ssps, over: {name: simclr, temprature: 0.1}}": "$.method.over",
    "encoder.frontend={n_mel: 40}": "$.encoder.frontend",
    "encoder.backbone={name: ecapa, channels: 0}": "$.encoder.backbone.channels",
    "views.distort.noise.snr_db=[1, 2, 3]": "$.views.distort.noise.snr_db",
    "training.trackers=comet": "$.training.trackers",
}


@pytest.mark.parametrize("change", WRONG)
def test_an_editor_sees_mistakes(change: str) -> None:
    tree = override(load_yaml((CONFIGS / "gsc_simclr.yaml").read_text(), ""), [change])
    assert problems("experiment", tree) == [WRONG[change]]
    with pytest.raises(ConfigError):
        parse(Experiment, tree, "")


RIGHT = (
    "training.trackers=tensorboard",
    "training.trackers=[tensorboard, {name: mlflow, uri: 'http://h:1'}]",
    "method={name: mine.py:Mine, anything: 1}",
    "method={name: ssps, over: {name: moco, queue: 9}, clusters: 9, start_epoch: 1}",
    "ray.workers=[1, 4]",
    "encoder={frontend: {n_mels: 64}, backbone: {name: fast_resnet34}}",
    "evaluation=null",
)


@pytest.mark.parametrize("change", RIGHT)
def test_an_editor_takes_what_rayssl_takes(change: str) -> None:
    tree = override(load_yaml((CONFIGS / "gsc_simclr.yaml").read_text(), ""), [change])
    assert problems("experiment", tree) == []
    if ".py:" not in change:
        parse(Experiment, tree, "")


def test_rest_is_a_word() -> None:
    """``unlabelled: rest`` is no section, but rayssl takes it."""
    split = "corpora.train.splits.few={labelled: {per_class: 2}, unlabelled: rest}"
    tree = override(load_yaml((CONFIGS / "words_prepare.yaml").read_text(), ""), [split])
    assert problems("preparation", tree) == []
    assert parse(PrepareConfig, tree, "").corpora["train"].splits["few"].unlabelled.most is None


def test_descriptions_reach_the_editor() -> None:
    batch = SCHEMAS["experiment"]["$defs"]["TrainingConfig"]["properties"]["batch"]
    assert batch["minimum"] == 2 and batch["default"] == 256 and "over all ranks together" in batch["description"]
