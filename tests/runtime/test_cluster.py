"""The cluster of one command: a busy machine gets a second try, and nothing of the cluster is left in the process."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from rayssl.errors import UserError
from rayssl.runtime import cluster


@pytest.mark.parametrize("failures", [1, 2])
def test_a_busy_machine_gets_a_second_try(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failures: int
) -> None:
    tried: list[Any] = []

    def init(**options: Any) -> None:
        tried.append(options)
        if len(tried) <= failures:
            raise Exception("The current node timed out\nduring startup.")  # as Ray does

    monkeypatch.setattr(ray, "init", init)
    if failures == 1:
        cluster._start(3, logs=True)
    else:
        with pytest.raises(
            UserError, match=r"^Ray did not start on this machine: The current .* startup\.; is it busy"
        ):
            cluster._start(3, logs=True)
    assert [options["num_cpus"] for options in tried] == [3, 3]
    assert capsys.readouterr().err.count("\n") == 1


@pytest.fixture
def handler_of_sigterm() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_process_that_left_the_cluster_ends_by_sigterm_as_before(handler_of_sigterm: None) -> None:
    cluster._leave_by_sigterm()
    assert signal.getsignal(signal.SIGTERM) == cluster._terminated
    cluster.disconnect()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # of the program around
    cluster.disconnect()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
