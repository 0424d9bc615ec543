"""What a GPU would do, counted without one: by hand for one layer, and kernels that Triton compiles for an H200."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "infra" / "gpu" / "forecast.py"


@pytest.fixture(scope="module")
def forecast() -> Any:
    spec = importlib.util.spec_from_file_location("forecast", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_bytes_and_products_are_those_of_the_layer(forecast: Any) -> None:
    x, weight = torch.randn(6, 4), torch.randn(5, 4)
    with forecast.Eager() as counted:
        torch.relu((x @ weight.T).view(30))
    assert counted.calls == [("mm", 4 * (6 * 4 + 5 * 4 + 6 * 5), 2 * 6 * 4 * 5), ("relu", 2 * 4 * 30, 0)]
    found = counted.found()
    assert found["launches"] == 2 and found["gb"] == pytest.approx((4 * 74 + 240) / 1e9)


def test_statistics_read_their_input_twice_and_a_repeated_value_counts_once(forecast: Any) -> None:
    x, norm = torch.randn(8, 3, 10), torch.nn.BatchNorm1d(3, affine=False, track_running_stats=False)
    with forecast.Eager() as counted:
        norm(x)
    assert counted.calls == [("native_batch_norm", 4 * (3 * 240 + 2 * 3), 0)]
    assert forecast.size(torch.ones(1, 7).expand(9, 7)) == 4 * 7


def test_the_longer_of_bytes_and_products_is_the_time(forecast: Any) -> None:
    assert forecast.seconds(4.0e12, 1.0) == 1.0 and forecast.seconds(1.0, 600e12) == 1.0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ecapa_compiles_for_a_card_that_is_not_there() -> None:
    backbone = "encoder.backbone={name: ecapa, channels: 16, scale: 2, embedding_dim: 8}"
    command = [sys.executable, str(SCRIPT), "configs/gsc_simclr.yaml", backbone, "--rows", "64", "--assemble"]
    run = subprocess.run(command, cwd=SCRIPT.parents[2], capture_output=True, text=True, check=True)
    found = json.loads(run.stdout.splitlines()[-1])["forecast"]
    assert found["compiled"]["failed"] == {} and found["compiled"]["assembled"] > 50
    assert found["compiled"]["tflop"] == found["eager"]["tflop"] > 0
    assert found["compiled"]["gb"] < found["eager"]["gb"]
