"""`rayssl bench ingest` as a whole, alone and against a DataLoader. Nothing here depends on how fast it was."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from rayssl.bench import corpus
from rayssl.cli import main
from rayssl.runtime.bench import processes

pytestmark = pytest.mark.ray

SMALL = "--batch 8 --segments 0.2,0.1 --unit-rows 16 --steps 6 --step-ms 1 --json"


@pytest.fixture(autouse=True)
def the_cluster_stays(ray_cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSSL_KEEP_RAY", "1")


def running() -> list[str]:
    """The processes of the session's cluster that read or divide batches."""
    titles = (title for title, _ in processes.seconds(processes.own()).values())
    return [title for title in titles if any(name in title for name in ("SplitCoordinator", "_Planner", "_Reader"))]


def test_against_a_dataloader(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayssl.bench.ingest._ROUNDS", 1)
    options = f"--utterances 48 --seconds 0.3 --format pcm16 --into {tmp_path} --readers 2 --target 1000"
    assert main(["bench", "ingest", *options.split(), *SMALL.split(), "--against", "dataloader"]) == 0
    printed = capsys.readouterr()
    figures = json.loads(printed.out.splitlines()[-1])
    for name in ("utterances_per_s", "ratio", "cores", "first_batch_s"):
        assert figures[name] > 0, name
    for name in ("cpu_seconds_per_1000", "cpu_tasks_per_1000"):  # the system counts in hundredths of a second
        assert figures[name] >= 0, name
    assert (figures["steps"], figures["readers"], figures["utterances"], figures["device"]) == (6, 2, 48, "cpu")
    assert figures["cores_needed"] >= 1
    assert figures["dataloader_utterances_per_s"] > 0
    assert figures["dataloader_start"] == "spawn", "this process has Ray's threads"
    assert figures["bytes_encoded_per_utterance"] > 2 * 0.3 * 16000
    assert 2 * 0.2 * 16000 <= figures["bytes_pcm_per_utterance"] <= 2 * 0.3 * 16000
    assert figures["bytes_pcm_per_utterance"] < figures["bytes_shipped_per_utterance"]
    assert 0 <= figures["waiting"] <= 1
    assert printed.err.count("DataLoader: waiting for the first batch") == 1
    assert list(tmp_path.iterdir()) == [], "the corpus is taken away"
    until = time.monotonic() + 60
    while running() and time.monotonic() < until:
        time.sleep(0.2)
    assert running() == [], "nothing goes on reading"


def test_several_ranks_on_a_corpus_that_stays(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    uri = str(tmp_path / "corpus")
    corpus.write(uri, 40, 0.3, "flac", seed=0)
    assert main(["bench", "ingest", "--corpus", uri, "--ranks", "2", *SMALL.split()]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["corpus"], figures["format"], figures["ranks"]) == (uri, "flac", 2)
    assert figures["utterances_per_s"] > 0
    assert "ratio" not in figures
    assert (tmp_path / "corpus" / "manifest.json").exists()
