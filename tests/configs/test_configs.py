"""Every configuration of the project says what it shows, is read, and runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from rayssl.data.corpus import PrepareConfig
from rayssl.experiment import Experiment
from rayssl.schema import load_yaml, override, parse
from tests.runs import batches, build, records, write_corpus

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs").glob("*.yaml"))
TREES = {path.name: load_yaml(path.read_text(), path.name) for path in FILES}
EXPERIMENTS = [name for name, tree in TREES.items() if "corpora" not in tree]
# Two epochs of two steps: SSPS remembers in the first and replaces positives in the second.
QUICK = (
    *("training.epochs=2", "training.batch=8", "training.log_every=1", "training.precision=fp32", "ray.workers=1"),
    *("views.segment_s=0.2", "views.reference_s=0.3", "training.compile=false"),
)
QUICK_SSPS = ("method.start_epoch=1", "method.clusters=4", "method.neighbours=1", "method.queue=0")


def test_there_are_some() -> None:
    assert EXPERIMENTS and len(EXPERIMENTS) < len(FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_header(path: Path) -> None:
    """What it shows, the command that runs this very file, and on what hardware, before the first key."""
    lines = path.read_text().splitlines()
    header = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    fields = {match[1]: match[2] for line in header if (match := re.match(r"# (\w+): +(\S.*)", line))}
    assert {"Shows", "Command", "Hardware"} <= fields.keys()
    verb = "train|sweep" if path.name in EXPERIMENTS else "prepare"
    assert re.match(rf"rayssl ({verb}) configs/{re.escape(path.name)}\b", fields["Command"])


@pytest.mark.parametrize("name", [name for name in TREES if name not in EXPERIMENTS])
def test_prepare_configs_are_read(name: str) -> None:
    assert parse(PrepareConfig, TREES[name], name).corpora


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_run(name: str, tmp_path: Path) -> None:
    """As written it is read; made small it is built, and runs, with every weight moved."""
    assert parse(Experiment, TREES[name], name).training.epochs > 1
    write_corpus(tmp_path / "corpus", (9, 8))
    method: dict[str, Any] = TREES[name]["method"]
    changes = [*QUICK, *(QUICK_SSPS if method["name"] == "ssps" else ())]
    changes += [f"run={tmp_path}/run", f"corpus.uri={tmp_path}/corpus"]
    settings = parse(Experiment, override(TREES[name], changes), name)
    loop = build(settings)
    before = {name: p.detach().clone() for name, p in loop.parts.method.named_parameters()}
    loop.fit(batches(settings, loop))
    assert [line["step"] for line in records(settings.run, "step")] == [1, 2, 3, 4]
    unmoved = [name for name, p in loop.parts.method.named_parameters() if torch.equal(p, before[name])]
    assert unmoved == []
    if method["name"] == "ssps":
        assert records(settings.run, "epoch")[-1]["coverage"] > 0


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_evaluation_is_of_a_corpus_that_a_config_prepares(name: str) -> None:
    """The walk of the README: what an experiment reads, one of the files beside it makes."""
    made = {corpus["out"] for tree in TREES.values() for corpus in tree.get("corpora", {}).values()}
    evaluation = TREES[name].get("evaluation")
    assert {TREES[name]["corpus"]["uri"], *([evaluation["corpus"]] if evaluation else [])} <= made
