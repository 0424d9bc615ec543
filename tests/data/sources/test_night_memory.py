"""A night never lies in memory: the peak of the process does not grow with the night's length."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.data.sources.night_memory import read_elsewhere, write_night


def test_memory_of_a_short_night(tmp_path: Path) -> None:
    """58 MB of EDF: reading takes hardly more than reading a tenth of it, where float32 of all would be 115 MB."""
    size = write_night(tmp_path / "night", parts=2, seconds=300)
    assert size > 57e6
    read = read_elsewhere(tmp_path / "night")
    assert read["epochs"] == 20 and read["loud"] > 0.2 and not read["torch"]
    print(read)  # noqa: T201
    assert read["peak"] - read["before"] < 40, read
    assert read["peak"] < 300, read


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_of_eight_hours_at_48_khz(tmp_path: Path) -> None:
    """2.8 GB in eight parts of an hour."""
    try:
        size = write_night(tmp_path / "night", parts=8, seconds=3600)
        assert size > 2.7e9
        read = read_elsewhere(tmp_path / "night")
    finally:
        shutil.rmtree(tmp_path)
    print(read)  # noqa: T201
    assert read["epochs"] == 960
    assert read["peak"] < 300, read
