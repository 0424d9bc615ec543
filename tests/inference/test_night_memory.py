"""A long night is prepared and staged in bounded memory: the peak of fresh processes, in MB.

`rayssl prepare --local` imports neither torch nor Ray, and its whole peak is bounded. `rayssl stage` needs torch, whose
code alone fills hundreds of MB of pages: they are read from files, processes share them, and how many a machine maps at
once is its own choice. So what is bounded there is private memory (RssAnon): everything that a process has made itself.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import rayssl
from tests.data.sources.night_memory import ROOT, write_night
from tests.small_nights import tree

_PEAK = """
import json, sys, threading
def now(name):  # ru_maxrss would begin with the peak of the process that started this one
    (line,) = [line for line in open("/proc/self/status") if line.startswith(name)]
    return int(line.split()[1]) / 1024
private, done = [0.0], threading.Event()
def watch():
    while not done.wait(0.005):
        private[0] = max(private[0], now("RssAnon"))
watcher = threading.Thread(target=watch)
watcher.start()
"""
_VERB = f"""{_PEAK}
try:
    from rayssl.cli import main
    status = main(sys.argv[1:])
finally:
    done.set()
    watcher.join()
heavy = [name for name in ("ray", "torch", "matplotlib", "timm", "sklearn", "faiss") if name in sys.modules]
print(json.dumps({{"status": status, "peak": now("VmHWM"), "private": private[0], "modules": heavy}}))
"""


def fresh(code: str, *arguments: str) -> Any:
    """What a process of its own prints as its last line, read as JSON."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def prepared(folder: Path, **settings: Any) -> dict[str, Any]:
    """Prepares the nights in ``folder``/in; returns what `_VERB` prints."""
    corpus = {"source": {"name": "nights", "uri": f"{folder}/in"}, "out": f"{folder}/{settings['format']}", **settings}
    (folder / "prepare.yaml").write_text(yaml.safe_dump({"corpora": {"night": corpus}}))
    found: dict[str, Any] = fresh(_VERB, "prepare", f"{folder}/prepare.yaml", "--local", "--quiet")
    print("prepare", settings["format"], found)  # noqa: T201
    assert found["status"] == 0 and not {"ray", "torch"} & set(found["modules"])
    return found


def staged(folder: Path, run: Path) -> dict[str, Any]:
    """Stages the nights in ``folder``/in; returns what `_VERB` prints."""
    found: dict[str, Any] = fresh(_VERB, "stage", str(run), f"{folder}/in", "--out", f"{folder}/out")
    print("stage", found)  # noqa: T201
    assert found["status"] == 0 and not {"ray", "sklearn", "faiss"} & set(found["modules"])
    return found


@pytest.mark.long
def test_a_short_night(night_folder: Path, tmp_path: Path) -> None:
    """58 MB of EDF, 115 MB as floats."""
    write_night(tmp_path / "in", parts=2, seconds=300)
    assert prepared(tmp_path, format="mel")["peak"] < 350
    assert prepared(tmp_path, format="flac")["peak"] < 350
    # what importing takes depends on the build of torch
    imported = fresh(f"{_PEAK}\nimport torch, timm.models\ndone.set()\nwatcher.join()\nprint(now('RssAnon'))")
    found = staged(tmp_path, night_folder / "run")
    assert found["private"] - imported < 200, (found, imported)
    assert len((tmp_path / "out/0001-100507.csv").read_text().splitlines()) == 21


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_eight_hours_at_48_khz(tmp_path: Path) -> None:
    """2.8 GB in eight parts of an hour, with the default pictures and a SleepFormer of the default size."""
    parts = [{"domain": domain, "subjects": 1, "hours": 0.4} for domain in ("hospital", "home")]
    split = {"staging": {"nights": {"labelled": ["hospital/*"], "unlabelled": ["home/*"]}}}
    corpus = {"source": {"name": "synthetic_nights", "parts": parts}, "out": f"{tmp_path}/train", "format": "mel"}
    rayssl.prepare({"corpora": {"train": {**corpus, "splits": split}}}, local=True, progress=False)
    encoder = {"frontend": {"name": "nightmel"}, "backbone": {"name": "sleepformer"}}
    training = {"epochs": 1, "epoch_steps": 1, "batch": 2}
    rayssl.train(tree(tmp_path, encoder=encoder, training=training), local=True)
    try:
        assert write_night(tmp_path / "in", parts=8, seconds=3600) > 2.7e9
        for form in ("mel", "flac"):
            assert prepared(tmp_path, format=form)["peak"] < 500
        found = staged(tmp_path, tmp_path / "run")
    finally:
        for name in ("in", "mel", "flac"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
    assert len((tmp_path / "out/0001-100507.csv").read_text().splitlines()) == 961
    assert found["private"] < 500, found
