"""A store that is away for minutes: jobs wait for it, and mistakes are told at once all the same."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import rayssl
from rayssl import storage
from rayssl.errors import StorageError, StorageOutage, UserError
from rayssl.storage import attempts
from rayssl.training import checkpoint
from tests.fault_proxy import Gate
from tests.small_experiment import tree, write_corpus


class Clock:
    """Time that passes only in sleep."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(attempts, "time", made)
    monkeypatch.setenv(attempts.PATIENCE, "")
    return made


def away(clock: Clock, until: float, error: Callable[[], Exception]) -> Callable[[], str]:
    """An operation that fails with ``error`` for ``until`` seconds."""
    begun = clock.now

    def action() -> str:
        if clock.now - begun < until:
            raise error()
        return "done"

    return action


def no_answer() -> Exception:
    return TimeoutError("stalled")


@pytest.mark.parametrize("seconds", [3, 59, 119, 590])
def test_an_outage_that_ends_is_survived(
    seconds: float, clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StorageOutage):
        attempts.attempt("s3://b/k", away(clock, seconds, no_answer))
    assert clock.now - 1000 < 3
    clock.now = 1000.0
    storage.be_patient(600)
    assert attempts.attempt("s3://b/k", away(clock, seconds, no_answer)) == "done"
    assert clock.now - 1000 < seconds + attempts.MOST_WAIT_S
    lines = capsys.readouterr().err.splitlines()
    assert seconds // 76 <= len(lines) <= seconds // 60  # a line a minute
    assert all(line.startswith("s3://b/k: ") and line.endswith("; tries for 600 s") for line in lines)


def test_an_outage_that_stays_ends_in_one_line(clock: Clock) -> None:
    storage.be_patient(600)
    with pytest.raises(StorageOutage, match=r"^s3://b/k: .* in \d+ attempts, 6\d\d s") as caught:
        attempts.attempt("s3://b/k", away(clock, 1e9, no_answer))
    assert 600 <= clock.now - 1000 < 600 + attempts.MOST_WAIT_S and caught.value.errno == errno.EIO


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "gone"), PermissionError(errno.EACCES, "no")])
def test_what_does_not_pass_is_told_at_once(error: Exception, clock: Clock) -> None:
    storage.be_patient(600)
    for uri in ("s3://b/k", "/a/file"):
        with pytest.raises(StorageError) as caught:
            attempts.attempt(uri, away(clock, 1e9, lambda: error))
        assert clock.now == 1000 and not isinstance(caught.value, StorageOutage)


def test_a_full_disk_may_be_emptied(clock: Clock) -> None:
    def full() -> Exception:
        return OSError(errno.ENOSPC, "full")

    with pytest.raises(StorageError, match=r"^/a/file: no space left on device$"):
        attempts.attempt("/a/file", away(clock, 90, full))
    storage.be_patient(600)
    clock.now = 1000.0
    assert attempts.attempt("/a/file", away(clock, 90, full)) == "done"


def test_processes_that_start_later_are_patient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`rayssl train` becomes patient when its store has answered; 0 s turns it off."""
    monkeypatch.setenv(attempts.PATIENCE, "")
    with pytest.raises(UserError):
        rayssl.train({**tree(str(tmp_path)), "run": f"{tmp_path}/run"}, local=True)
    assert attempts.os.environ[attempts.PATIENCE] == ""


@pytest.mark.s3
@pytest.mark.timeout(300)
def test_a_training_goes_on_after_an_outage(s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds without a store, while a run reads and saves: the same bits as undisturbed."""
    bucket = s3_server.bucket("outage")
    write_corpus(f"{bucket}/corpus")
    between = Gate(s3_server.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
    monkeypatch.setenv(attempts.PATIENCE, "")
    values = {**tree(bucket), "ray": {"workers": 1}, "training": {**tree(bucket)["training"], "epochs": 4}}
    rayssl.train({**values, "run": f"{bucket}/undisturbed"}, local=True)

    def outage() -> None:
        while not storage.exists(f"{bucket}/disturbed/checkpoints"):
            time.sleep(0.1)
        between.shut()
        time.sleep(10)
        between.open()

    thread = threading.Thread(target=outage)
    thread.start()
    rayssl.train({**values, "run": f"{bucket}/disturbed"}, local=True)
    thread.join()
    between.close()
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    states = [
        checkpoint.load(checkpoint.locate(f"{bucket}/{name}", "last")).state for name in ("undisturbed", "disturbed")
    ]
    first, second = (state["method"] for state in states)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
