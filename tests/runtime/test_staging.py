"""`rayssl evaluate` of a run of nights: its last line, nights that are held out, corpora that do not fit, its page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import rayssl
from rayssl.cli import main
from rayssl.data.nights.scores import read_stages
from rayssl.evaluation.staging import StagingResult
from tests.small_experiment import write_corpus
from tests.small_nights import EPOCHS, NIGHTS

pytestmark = pytest.mark.long


@pytest.fixture
def run(night_folder: Path, tmp_path: Path) -> Path:
    """A copy of the run, to write into."""
    return Path(shutil.copytree(night_folder / "run", tmp_path / "run"))


def test_the_last_line_has_macro_f1_and_kappa(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The figures are those of the stages in the file, by plain counting."""
    assert main(["evaluate", str(run), "--local"]) == 0
    line, following = capsys.readouterr().out.splitlines()[-2:]
    assert following == f"next: rayssl report {run}"
    nights = read_stages(pq.read_table(run / "evaluation/stages.parquet"))
    truth, predicted = (np.concatenate([getattr(night, name) for night in nights]) for name in ("truth", "predicted"))
    assert sorted(night.name for night in nights) == list(NIGHTS) and len(truth) == 3 * EPOCHS
    f1 = []
    for stage in range(4):
        hits = float(((truth == stage) & (predicted == stage)).sum())
        f1.append(2 * hits / float((truth == stage).sum() + (predicted == stage).sum()))
    seen = float((truth == predicted).mean())
    chance = sum(float((truth == k).mean() * (predicted == k).mean()) for k in range(4))
    result = json.loads((run / "evaluation/result.json").read_text())
    assert result["macro_f1"] == pytest.approx(np.mean(f1)) and result["accuracy"] == pytest.approx(seen)
    assert result["kappa"] == pytest.approx((seen - chance) / (1 - chance))
    assert line.startswith(f"{run} (last): macro F1 {result['macro_f1']:.1%} [")
    assert f", kappa {result['kappa']:.3f} [" in line and f"over {3 * EPOCHS} epochs of 3 nights of 3 subjects" in line


def test_the_windows_do_not_end_with_a_shard(night_folder: Path, run: Path) -> None:
    """Shards of five epochs, windows of four: the result is that of whole nights, and of any batch and stride alike."""
    whole = rayssl.evaluate(run, local=True)
    table = pq.read_table(run / "evaluation/stages.parquet")
    model = rayssl.load(run, device="cpu")
    for night in model.stage(night_folder / "nights", stride=2):
        mine = next(each for each in read_stages(table) if each.name == night.scores.name)
        np.testing.assert_array_equal(mine.predicted, night.scores.predicted)
    rayssl.evaluate(run, local=True, **{"evaluation.batch": 1})
    again = pq.read_table(run / "evaluation/stages.parquet")
    np.testing.assert_allclose(again["rem"].to_numpy(), table["rem"].to_numpy(), rtol=0, atol=1e-6)
    apart = rayssl.evaluate(run, local=True, **{"evaluation.stride": 4})
    other = pq.read_table(run / "evaluation/stages.parquet")
    assert np.abs(other["rem"].to_numpy() - table["rem"].to_numpy()).max() > 1e-6 and apart.n == whole.n


def test_only_the_nights_that_a_split_holds_out(run: Path) -> None:
    result = rayssl.evaluate(run, local=True, **{"evaluation.split": "rest"})
    assert isinstance(result, StagingResult) and (result.nights, result.subjects, result.n) == (1, 1, EPOCHS)
    assert result.no_interval == "there is only one subject"


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error.rstrip("\n")


def test_corpora_that_do_not_fit(
    night_folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus(str(tmp_path / "speech"))
    for corpus, said in (
        ("speech", "has no nights; name a corpus of nights in evaluation.corpus"),
        ("no", "no prepared corpus there"),
    ):
        line = told(capsys, "evaluate", run, "--local", f"evaluation.corpus={tmp_path}/{corpus}")
        assert line.startswith(f"rayssl evaluate: {tmp_path}/{corpus}: {said}"), line
    mel = night_folder / "mel"
    line = told(capsys, "evaluate", run, "--local", "encoder.frontend.mel.n_mels=24")
    said = "its pictures were made with other settings than encoder.frontend.mel (n_mels is 20, not 24)"
    assert line == f"rayssl evaluate: {mel}: {said}; prepare it with those of the run"
    line = told(capsys, "evaluate", run, "--local", "evaluation.split=none")
    assert line.startswith("rayssl evaluate: ") and "'none'" in line and "rest" in line
    train = night_folder / "train"
    line = told(capsys, "evaluate", run, "--local", f"evaluation.corpus={train}", "evaluation.split=staging")
    assert line.startswith(f"rayssl evaluate: {train}: split 'staging' holds out no night; set nights.held_out in it")


def test_every_checkpoint_and_the_page(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--checkpoint every` gives a line for each epoch, and the page shows a hypnogram for each of some nights."""
    assert main(["evaluate", str(run), "--local"]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), "--local", "--checkpoint", "every"]) == 0
    lines = capsys.readouterr().out.splitlines()[:-1]
    assert [line.split(": ")[0] for line in lines] == [f"{run} (epoch-1)", f"{run} (epoch-2)"]
    probes = [json.loads(line) for line in (run / "evaluation/over_time.jsonl").read_text().splitlines()]
    assert [(probe["epoch"], probe["step"]) for probe in probes] == [(1, 3), (2, 6)]
    assert 0 < probes[0]["seconds"] < probes[1]["seconds"]
    for probe, line in zip(probes, lines, strict=True):
        assert f"kappa {probe['kappa']:.3f}" in line and "per_night" not in probe
    last = json.loads((run / "evaluation/result.json").read_text())
    assert last["kappa"] == probes[1]["kappa"]
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert page.count("Predicted") >= 2 and "Scored" in page and "kappa" in page.lower()
    assert any(name in page for name in NIGHTS)
