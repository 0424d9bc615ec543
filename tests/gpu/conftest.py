"""The device of the layer `gpu`: a GPU, or what RAYSSL_TEST_GPU names, so that its tests can be tried without one."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(scope="session")
def gpu() -> str:
    asked = os.environ.get("RAYSSL_TEST_GPU", "")
    if not asked and not torch.cuda.is_available():
        pytest.skip("no GPU here (RAYSSL_TEST_GPU=cpu tries the tests themselves on the CPU)")
    return asked or "cuda"
