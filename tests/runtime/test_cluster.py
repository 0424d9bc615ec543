"""A local cluster that does not start in time is started once more; then one line says so."""

from __future__ import annotations

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
