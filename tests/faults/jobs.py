"""Commands that are jobs of a cluster, and `ray job stop`."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from tests.faults.places import RAY, ROOT, SharedHead
from tests.faults.trial import Missed, Trial
from tests.faults.work import CLI

_STOP_S = 330.0  # more than RAY_JOB_STOP_WAIT_TIME_S of the head


class Jobs(SharedHead):
    """A shared head to which each command is submitted as a job; `ray job submit` waits for its end."""

    name = "jobs of a shared head"
    job = ""  # the last one's name

    def start(self, command: list[str], output: Path) -> subprocess.Popen[bytes]:
        """Submits ``jobs/VERB.py``. The status is 0 only if the job has succeeded."""
        verb, *words = command[len(CLI) :]
        self.job = f"{verb}-{len(self._started)}-{output.stem}"
        submit = [RAY, "job", "submit", "--submission-id", self.job, "--"]
        submit += [sys.executable, str(ROOT / f"jobs/{verb}.py"), *words]
        asked = f"{shlex.join([RAY, 'job', 'status', self.job])} 2>&1 | grep -q -i succeeded"
        return self.launch(["bash", "-c", f"{shlex.join(submit)}; {asked}"], output)


def stop_job(trial: Trial) -> str:
    """`ray job stop`, which waits until the job has ended."""
    place = trial.place
    assert isinstance(place, Jobs)
    if trial.driver is None:
        raise Missed("the job had ended before it was stopped")
    stop = [RAY, "job", "stop", place.job]
    done = subprocess.run(stop, env=place.environment, capture_output=True, text=True, timeout=_STOP_S, check=False)
    return f"the job, by ray job stop (status {done.returncode})"
