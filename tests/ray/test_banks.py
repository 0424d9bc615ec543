"""Banks from corpora on a cluster: one process reads them for all ranks, and every rank has the same."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayssl.cli import main
from rayssl.errors import ConfigError
from rayssl.runtime import banks
from rayssl.training import checkpoint
from rayssl.views.banks import recorded
from rayssl.views.recipes import ViewsConfig
from rayssl.views.recordings import read_recordings
from tests.ray.test_train import differences, last, train_workers
from tests.small_experiment import tree, write_config, write_corpus
from tests.views.test_recordings import SILENCE, TONE
from tests.views.test_recordings import write_corpus as write_recordings

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

_OPENED = 0x20  # IN_OPEN of inotify
_SHORT = ["training.epochs=2"]


@contextmanager
def opened(*folders: str) -> Iterator[Counter[str]]:
    """Counts how often any process opens each file of ``folders``, by its path; complete when the context ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    watcher = libc.inotify_init1(os.O_NONBLOCK)
    names = {libc.inotify_add_watch(watcher, folder.encode(), _OPENED): folder for folder in folders}
    counts: Counter[str] = Counter()
    try:
        yield counts
        while data := _events(watcher):
            while data:
                watch, _, _, length = struct.unpack_from("iIII", data)
                name = data[16 : 16 + length].rstrip(b"\0").decode()
                if name:
                    counts[f"{names[watch]}/{name}"] += 1
                data = data[16 + length :]
    finally:
        os.close(watcher)


def _events(watcher: int) -> bytes:
    try:
        return os.read(watcher, 1 << 16)
    except BlockingIOError:
        return b""


@pytest.fixture(autouse=True)
def keep_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSSL_KEEP_RAY", "1")


@pytest.fixture
def config(tmp_path: Path) -> str:
    """The small experiment with noise and reverberation from corpora of two shards each."""
    write_corpus(str(tmp_path / "corpus"))
    noise = {"p": 1.0, "kinds": ["corpus"], "clip_s": 0.3}
    noise |= {"corpus": write_recordings(str(tmp_path / "noises"), [TONE, SILENCE], [TONE[:700]])}
    reverb = {"p": 1.0, "corpus": write_recordings(str(tmp_path / "rooms"), [TONE[:900]], [TONE[:50]])}
    views = {"segment_s": 0.2, "reference_s": 0.4, "distort": {"noise": noise, "reverb": reverb}}
    return write_config(tmp_path / "experiment.yaml", tree(str(tmp_path), views=views))


def shards_of(folder: Path) -> list[str]:
    return [str(folder / name / "shards") for name in ("noises", "rooms")]


def test_two_ranks_read_a_bank_once_also_if_they_start_again(ray_cluster: Any, config: str, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    killed = threading.Event()

    def kill() -> None:
        while not [step for step in checkpoint.steps(run) if step >= 6]:
            time.sleep(0.01)
        os.kill(train_workers()[0], signal.SIGKILL)
        killed.set()

    threading.Thread(target=kill, daemon=True).start()
    with opened(*shards_of(tmp_path)) as counts:
        assert main(["train", config]) == 0
    assert killed.is_set() and last(run).meta.epoch == 3
    with opened(*shards_of(tmp_path)) as once:
        for name in ("noises", "rooms"):
            read_recordings(str(tmp_path / name), "key", 16000, None, 1)
    assert len(once) == 4 and counts == once


def test_without_ray_the_banks_have_the_same_bits(ray_cluster: Any, config: str, tmp_path: Path) -> None:
    """Noise and reverberation are in every row, so other banks would give other weights."""
    runs = [str(tmp_path / name) for name in ("ray", "local")]
    assert main(["train", config, f"run={runs[0]}", "ray.workers=1", *_SHORT]) == 0
    assert main(["train", config, f"run={runs[1]}", "--local", *_SHORT]) == 0
    assert differences(last(runs[0]), last(runs[1])) == []


def test_a_corpus_that_cannot_serve_is_one_line(
    ray_cluster: Any, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    silent, absent = write_recordings(str(tmp_path / "silent"), [SILENCE]), str(tmp_path / "absent")
    no_sound = [f"views.distort.noise.corpus={silent}"], f"'views.distort.noise.corpus': the corpus {silent} holds no"
    key = "views.distort.reverb.corpus"
    no_corpus = [f"{key}={absent}"], f"{key}: {absent}: no prepared corpus there"
    for (overrides, message), local in ((no_sound, []), (no_sound, ["--local"]), (no_corpus, [])):
        assert main(["train", config, *overrides, *local]) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith(f"rayssl train: {message}"), printed.err
        assert printed.err.count("\n") == 1 and "resumes" not in printed.out


def test_the_array_is_shared_and_read_only(ray_cluster: Any, tmp_path: Path) -> None:
    uri = write_recordings(str(tmp_path), [TONE])
    views = ViewsConfig.model_validate({"distort": {"noise": {"kinds": ["corpus"], "corpus": uri}}})
    wanted = recorded(views, 16000, 3)
    made = banks.take(banks.start(wanted), wanted[0])
    assert np.array_equal(made, wanted[0].read()) and made.dtype == np.float32
    assert not made.flags.writeable
    other = recorded(views, 8000, 3)
    with pytest.raises(ConfigError, match="16000 Hz, the run's at 8000 Hz"):
        banks.take(banks.start(other), other[0])
