"""The script that measures a GPU runs from end to end: time on such a machine is too short to find faults there."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from rayssl import schema
from rayssl.data.corpus import PrepareConfig
from rayssl.experiment.config import Experiment

pytestmark = [pytest.mark.long, pytest.mark.timeout(240)]

GPU = Path(__file__).parents[2] / "infra" / "gpu"
SMALL = {
    "STEP": "--device cpu --batch 8 --channels 8 --steps 1 --warm 1",
    "KMEANS": "--device cpu --rows 500 --dim 8 --clusters 5 --iterations 2",
}


def measured(folder: Path, *parts: str, **environment: str) -> tuple[dict[str, Any], str]:
    """The figures, and what was printed."""
    given = {**os.environ, **SMALL, "WORK": str(folder), "OUT": str(folder / "out"), **environment}
    run = subprocess.run(["bash", str(GPU / "run.sh"), *parts], env=given, capture_output=True, text=True, check=True)
    return json.loads((folder / "out" / "figures.json").read_text()), run.stdout


def test_every_part_without_a_cluster_has_figures(tmp_path: Path) -> None:
    found, printed = measured(tmp_path, "step", "kmeans", SECONDS_ALL="220")
    steps = found["step"]["now"]
    assert list(steps) == ["simclr", "ssps", "dino"]
    assert all(set(each) == {"ms", "warm_s", "batch"} for each in steps.values()), steps
    assert {"seconds_first", "objective", "nmi"} <= found["kmeans"]["now"].keys()
    assert json.loads(printed.splitlines()[-1]) == found
    with tarfile.open(tmp_path / "out" / "logs.tar.gz") as logs:
        assert {"./step.now.log", "./kmeans.now.log"} <= set(logs.getnames())


def test_what_is_left_no_time_leaves_a_line(tmp_path: Path) -> None:
    found, _ = measured(tmp_path, "layouts", "tests", SECONDS_ALL="1")
    assert found["step"]["plain"] == {"error": "no time left"} and found["tests"] == ["no time left"]


def test_its_files_are_valid() -> None:
    prepare, train = GPU / "prepare.yaml", GPU / "train.yaml"
    made = schema.parse(PrepareConfig, schema.load_yaml(prepare.read_text(), str(prepare)), str(prepare))
    settings = schema.parse(Experiment, schema.load_yaml(train.read_text(), str(train)), str(train))
    assert settings.corpus.uri == made.corpora["train"].out
