"""Where a trial's command runs: on a cluster of its own, as rayssl starts one, or on one that stays for all trials."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.faults import processes
from tests.faults.processes import MARK, Process

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).parent / "ray")
_UNASKED = ("RAY_", "RAYSSL_")  # what the caller's environment says of clusters of its own
_START_S = 90.0
OF_A_JOB = r"ray::(?!IDLE|\S*Agent|_StatsActor|_Autoscaling)"  # titles of what ends when a job of Ray ends


class PlaceError(Exception):
    """A place cannot be had, in one line."""


def environment(mark: str, more: Mapping[str, str]) -> dict[str, str]:
    """The environment of a user's shell, with the checkout before any installed one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_UNASKED)}
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
    bin_first = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    fixed = {"PYTHONPATH": path, "PATH": bin_first, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", MARK: mark}
    return kept | fixed | dict(more)


class Place:
    """A command's own cluster on this machine: it starts with the command and ends with it.

    ``variables``: more of the environment.
    """

    name = "own cluster"

    def __init__(self, folder: Path, variables: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.mark = f"{os.getpid()}-{secrets.token_hex(4)}"
        self.environment = environment(self.mark, variables or {})
        self._started: list[subprocess.Popen[bytes]] = []
        self._seen: dict[int, Process] = {}

    @property
    def home(self) -> str:
        """Where the corpus, the configurations and the runs lie: a folder or a URI."""
        return str(self.folder)

    def up(self) -> None:
        """Starts what does not run. Raises `PlaceError`."""

    def start(self, command: list[str], output: Path) -> subprocess.Popen[bytes]:
        """Starts a command. What it prints on both outputs is added to ``output``, as on a terminal."""
        return self.launch(command, output)

    def launch(
        self, command: list[str], output: Path, variables: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Starts a process of this place in a session of its own."""
        with output.open("ab") as out:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment | dict(variables or {}),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def processes(self) -> list[Process]:
        """All live processes of this place."""
        for process in self._started:
            process.poll()  # so that an ended one is reaped
        found = processes.below([p.pid for p in self._started if p.returncode is None], self.mark)
        self._seen |= {process.pid: process for process in found}
        return found

    def calm(self) -> None:
        """Ends what a trial has left behind; what stays for the next trial goes on."""
        self._end_all()

    def down(self) -> None:
        """Ends everything that was started here."""
        self._end_all()

    def _end_all(self) -> None:
        self.processes()
        processes.end(self._seen.values())
        processes.end(self.processes())  # what was started meanwhile
        for process in self._started:
            process.wait()
        self._started.clear()
        self._seen.clear()


class SharedHead(Place):
    """One Ray node that stays for all trials; a command joins it by RAY_ADDRESS."""

    name = "shared head"

    def __init__(self, folder: Path, variables: Mapping[str, str] | None = None) -> None:
        super().__init__(folder, variables)
        self._short = Path(tempfile.mkdtemp(prefix="rf-", dir="/tmp"))  # short: Ray puts sockets below it
        self._head: subprocess.Popen[bytes] | None = None
        self.ports = free_ports(5)
        self.environment |= {
            "RAY_ADDRESS": f"127.0.0.1:{self.ports[0]}",
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{self.ports[1]}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_JOB_STOP_WAIT_TIME_S": "300",
        }

    def up(self) -> None:
        if self._head is not None and self._head.poll() is None:
            return
        gcs, dashboard, client, agent, metrics = self.ports
        words = ["--head", "--block", f"--port={gcs}", f"--temp-dir={self._short}", "--num-cpus=8", "--num-gpus=0"]
        words += [f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--include-dashboard=true"]
        words += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"]
        words += [f"--metrics-export-port={metrics}", "--min-worker-port=0", "--max-worker-port=0"]
        words += ["--node-ip-address=127.0.0.1", "--object-store-memory=300000000"]
        log = self.folder / "head.log"
        self._head = self.launch([RAY, "start", *words], log)
        ready = processes.wait_until(
            lambda: answers("127.0.0.1", dashboard) or self._head is None or self._head.poll() is not None,
            _START_S,
            0.1,
        )
        if not ready or self._head.poll() is not None:
            raise PlaceError(f"Ray's head did not start in {_START_S:.0f} s: see {log}")

    def calm(self) -> None:
        """Ends the commands of the trial; waits until Ray has ended what these had started there."""
        alive = [process for process in self._started if process.poll() is None and process is not self._head]
        processes.end(each for each in processes.below([p.pid for p in alive], "none"))
        for process in processes.titled(self.processes(), r"ray::RayTrainWorker"):
            process.signal(signal.SIGCONT)  # one that a trial has stopped
        processes.end(processes.titled(self.processes(), r"\S*python\S* \S*/jobs/"))
        if not processes.wait_until(lambda: not processes.titled(self.processes(), OF_A_JOB), 20, 0.3):
            processes.end(processes.titled(self.processes(), OF_A_JOB))

    def down(self) -> None:
        super().down()
        shutil.rmtree(self._short, ignore_errors=True)


def answers(host: str, port: int) -> bool:
    """Whether something listens there."""
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface on which nothing listens now."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
