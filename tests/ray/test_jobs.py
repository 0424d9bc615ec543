"""Every script of jobs/ is its verb."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

JOBS = sorted((Path(__file__).parents[2] / "jobs").glob("*.py"))


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_job_shows_the_help_of_its_verb(job: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(job), "--help"], cwd=job.parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: rayssl {job.stem} ")
    assert f"example: rayssl {job.stem} " in " ".join(done.stdout.split())
