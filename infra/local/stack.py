#!/usr/bin/env python3
"""A complete small installation on this machine: object store, Ray head and workers, Prometheus, Grafana.

    stack.py up DIR [--workers N] [--cpus C] [--without PART ...]    start what does not run, print what to export
    stack.py env DIR                                                 print the variables again
    stack.py status DIR                                              which parts run; status 1 unless all do
    stack.py down DIR                                                stop all in order; the store's data stays

    eval "$(infra/local/stack.py up DIR)"
    ray job submit --working-dir . -- python jobs/train.py configs/x.yaml run=s3://...

Everything listens on loopback, where a setting allows that. Ray has no such setting for some ports, so it demands a
token. The first `up` generates it and stores it in DIR/token (mode 600). Each Ray node is its own raylet (`ray start
--block`). The head has no CPUs, as on Kubernetes. Parts that are not installed (radosgw, prometheus, grafana) are left
out, and a line says so. The script stops only processes that it has started: it knows them by process id and start
time in DIR/run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

from objectstore import Store, StoreError, free_port, missing_commands, running, stat_fields, wait_until

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "infra/monitoring"
PARTS = ("store", "ray", "prometheus", "grafana")
LONGEST = 43  # the longest DIR: Ray puts sockets below it, and their paths may have 107 characters
STOP_WAIT_S = 300  # `ray job stop` waits so long for a job to save before it kills it; Ray's 3 s are too short


class Stack:
    """The parts in one folder: their ports, their processes, the token."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).resolve()
        self.settings_file = self.folder / "stack.json"
        self.token_file = self.folder / "token"
        self.store = Store(self.folder / "store")

    def up(self, workers: int, cpus: int, without: list[str]) -> None:
        """Starts the parts that do not run, and waits until Ray has all nodes. Ports, token and data stay the same."""
        if len(str(self.folder)) > LONGEST:
            raise StoreError(f"{self.folder}: more than {LONGEST} characters are too long for Ray's sockets")
        ray = ray_command()
        for name in ("run", "log"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._settle(workers)
        if not self.token_file.exists():
            with os.fdopen(os.open(self.token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(32))
        if "store" not in without:
            self._start_store()
        self._start_ray(ray, workers, cpus)
        if "prometheus" not in without:
            self._start_prometheus()
        if "grafana" not in without:
            self._start_grafana()

    def environment(self) -> dict[str, str]:
        """The environment variables with which `ray`, `rayssl` and clients of the store find all parts."""
        if not self.settings_file.exists():
            raise StoreError(f"{self.folder} has no stack: start one with 'up'")
        ports = self._settings()
        found = {
            "RAY_ADDRESS": f"127.0.0.1:{ports['gcs']}",
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{ports['dashboard']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
        }
        return found | (self.store.environment() if self.store.access_file.exists() else {})

    def status(self) -> dict[str, bool]:
        """Whether each of the processes that were started still runs."""
        known = sorted((self.folder / "run").glob("*.pid")) + sorted((self.folder / "store/run").glob("*.pid"))
        return {file.stem: running(file) is not None for file in known}

    def down(self) -> None:
        """Stops what was started here: Grafana and Prometheus, then the workers, the head and the store."""
        files = {file.stem: file for file in (self.folder / "run").glob("*.pid")}
        workers = sorted(name for name in files if name.startswith("worker"))
        for name in ("grafana", "prometheus", *workers, "head"):
            if name in files:
                end(files[name])
        self.store.stop(signal.SIGTERM)

    def _settings(self) -> dict[str, int]:
        return json.loads(self.settings_file.read_text()) if self.settings_file.exists() else {}

    def _settle(self, workers: int) -> None:
        """Chooses the ports that are not chosen yet. Each raylet's agent has two."""
        ports = self._settings()
        agents = [f"{name}-{kind}" for name in nodes(workers) for kind in ("agent", "metrics")]
        for name in ("gcs", "dashboard", "client", "prometheus", "grafana", *agents):
            if name not in ports:
                ports[name] = free_port(*ports.values())
        self.settings_file.write_text(json.dumps(ports, indent=1))

    def _start_store(self) -> None:
        absent = missing_commands()
        if absent:
            tell(f"left out: the object store, {', '.join(absent)} not found (packages radosgw, ceph-mon, ceph-osd)")
            return
        self.store.up()

    def _start_ray(self, ray: Path, workers: int, cpus: int) -> None:
        ports = self._settings()
        prometheus = {"RAY_PROMETHEUS_HOST": f"http://127.0.0.1:{ports['prometheus']}"}
        path = {"PATH": f"{ray.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}  # a job's python is its first
        unasked = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "PYTHONPATH")
        environment = {key: value for key, value in os.environ.items() if key not in unasked}
        environment |= {**self.environment(), **path, **prometheus, "RAY_USAGE_STATS_ENABLED": "0"}
        environment["RAY_JOB_STOP_WAIT_TIME_S"] = os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", str(STOP_WAIT_S))
        for name in nodes(workers):
            words = ["--head", f"--port={ports['gcs']}", f"--temp-dir={self.folder}/ray", "--num-cpus=0"]
            words += [f"--dashboard-port={ports['dashboard']}", f"--ray-client-server-port={ports['client']}"]
            words += ["--dashboard-host=127.0.0.1", "--include-dashboard=true"]
            if name != "head":
                words = [f"--address={environment['RAY_ADDRESS']}", f"--num-cpus={cpus}"]
            words += ["--block", "--node-ip-address=127.0.0.1", "--object-store-memory=300000000"]
            words += [f"--dashboard-agent-listen-port={ports[name + '-agent']}"]
            words += [f"--metrics-export-port={ports[name + '-metrics']}"]
            words += ["--min-worker-port=0", "--max-worker-port=0"]  # otherwise all nodes begin with the same ports
            self._start(name, [str(ray), "start", *words], environment)
            count = int(name.partition("-")[2] or 0) + 1
            if not wait_until(lambda name=name, count=count: self._nodes(name) >= count, 180):
                raise StoreError(f"{name} of Ray was not up in 180 s: see {self.folder}/log/{name}.out")

    def _nodes(self, starting: str) -> int:
        """The number of live nodes, from the dashboard's State API."""
        if running(self.folder / "run" / f"{starting}.pid") is None:
            raise StoreError(f"{starting} of Ray ended while starting: see {self.folder}/log/{starting}.out")
        request = urllib.request.Request(f"{self.environment()['RAY_API_SERVER_ADDRESS']}/api/v0/nodes")
        request.add_header("Authorization", f"Bearer {self.token_file.read_text()}")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                found = json.load(answer)["data"]["result"]["result"]
        except (OSError, ValueError, KeyError, TypeError):  # the dashboard starts later than Ray
            return 0
        return sum(node["state"] == "ALIVE" for node in found)

    def _start_prometheus(self) -> None:
        """Starts Prometheus with the project's configuration, and the list of nodes of this stack's Ray."""
        given = MONITORING / "prometheus.yaml"
        if shutil.which("prometheus") is None or not given.exists():
            tell("left out: Prometheus, not found; as root: apt-get install prometheus")
            return
        home, listed = self.folder / "prometheus", "/prom_metrics_service_discovery.json"
        home.mkdir(exist_ok=True)
        text = given.read_text().replace(f"/tmp/ray{listed}", f"{self.folder}/ray{listed}")
        (home / "prometheus.yaml").write_text(text)
        shutil.copy(MONITORING / "rules.yaml", home)
        address = f"127.0.0.1:{self._settings()['prometheus']}"
        options = [f"--config.file={home}/prometheus.yaml", f"--storage.tsdb.path={home}/data"]
        self._start("prometheus", ["prometheus", *options, f"--web.listen-address={address}"], dict(os.environ))
        tell(f"Prometheus: http://{address}")

    def _start_grafana(self) -> None:
        """Starts Grafana with the project's dashboard. The password of the user admin is the stack's token."""
        given, server = MONITORING / "grafana", shutil.which("grafana-server")
        if server is None or not given.exists():
            tell("left out: Grafana, grafana-server not found (not in Debian; infra/monitoring/README.md)")
            return
        home, ports = self.folder / "grafana", self._settings()
        shutil.copytree(given / "provisioning", home / "provisioning", dirs_exist_ok=True)
        for file in (home / "provisioning/datasources").glob("*.yaml"):
            file.write_text(file.read_text().replace("localhost:9090", f"127.0.0.1:{ports['prometheus']}"))
        variables = {
            "RAYSSL_DASHBOARDS": str(given / "dashboards"),
            "GF_PATHS_PROVISIONING": str(home / "provisioning"),
            "GF_PATHS_DATA": str(home / "data"),
            "GF_PATHS_LOGS": str(self.folder / "log"),
            "GF_SERVER_HTTP_ADDR": "127.0.0.1",
            "GF_SERVER_HTTP_PORT": str(ports["grafana"]),
            "GF_SECURITY_ADMIN_PASSWORD__FILE": str(self.token_file),
            "GF_ANALYTICS_REPORTING_ENABLED": "false",
        }
        homepath = os.environ.get("GF_PATHS_HOME", "/usr/share/grafana")
        self._start("grafana", [server, f"--homepath={homepath}"], {**os.environ, **variables})
        tell(f"Grafana: http://127.0.0.1:{ports['grafana']}, user admin, the password is in {self.token_file}")

    def _start(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        """Starts a process in its own session, unless it runs already. Writes down its id and start time."""
        file = self.folder / "run" / f"{name}.pid"
        if running(file) is not None:
            return
        with (self.folder / "log" / f"{name}.out").open("ab") as out:
            process = subprocess.Popen(
                command,
                env=environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        file.write_text(f"{process.pid} {stat_fields(f'/proc/{process.pid}/stat')[19]}\n")


def nodes(workers: int) -> list[str]:
    """The names of the Ray nodes, in the order in which they start."""
    return ["head", *(f"worker-{number}" for number in range(1, workers + 1))]


def end(file: Path) -> None:
    """Stops the process in ``file``, after 60 s by SIGKILL, and what is left of its session."""
    pid = running(file)
    if pid is not None:
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: running(file) is None, 60)
        for member in session(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
        wait_until(lambda: running(file) is None and not session(pid), 10)
    file.unlink(missing_ok=True)


def session(leader: int) -> list[int]:
    """The process ids of the session of ``leader``. The kernel does not reuse its number while one of them lives."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = stat_fields(entry / "stat")
                if fields[0] not in "ZX" and int(fields[3]) == leader:
                    found.append(int(entry.name))
    return found


def ray_command() -> Path:
    """The `ray` on the PATH, or in the project's own environment."""
    places = [os.environ.get("RAYSSL_VENV", str(ROOT / ".venv")), sys.prefix]
    found = shutil.which("ray") or next((f"{p}/bin/ray" for p in places if Path(p, "bin/ray").exists()), None)
    if found is None:
        raise StoreError("ray not found: activate the environment in which rayssl is installed")
    return Path(found)


def tell(line: str) -> None:
    """Prints a line for a person on stderr, since standard output is for the shell."""
    print(f"stack: {line}", file=sys.stderr)


def main() -> int:
    """The command line. If the stack cannot be started, it prints one line on stderr and returns status 1."""
    parser = argparse.ArgumentParser(description="Object store, Ray, Prometheus and Grafana on loopback.")
    parser.add_argument("verb", choices=("up", "env", "status", "down"))
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="Ray nodes besides the head (default 2)")
    parser.add_argument("--cpus", type=int, default=4, metavar="C", help="logical CPUs of each of them (default 4)")
    optional = [part for part in PARTS if part != "ray"]
    parser.add_argument("--without", nargs="+", choices=optional, default=[], help="parts to leave out")
    arguments = parser.parse_args()
    stack = Stack(arguments.folder)
    try:
        if arguments.verb == "down":
            stack.down()
            return 0
        if arguments.verb == "status":
            parts = stack.status()
            for name, runs in parts.items():
                print(f"{name:<12} {'running' if runs else 'ended'}")
            return 0 if parts and all(parts.values()) else 1
        if arguments.verb == "up":
            stack.up(arguments.workers, arguments.cpus, arguments.without)
            tell(f"Ray: {stack.environment()['RAY_API_SERVER_ADDRESS']}, its token is in {stack.token_file}")
        values = stack.environment()
    except (StoreError, subprocess.TimeoutExpired, KeyboardInterrupt) as error:
        if arguments.verb == "up":
            stack.down()  # after a failed start no part of the stack may run
        tell(str(error) or "interrupted")
        return 1
    for key, value in values.items():
        print(f"export {key}={shlex.quote(value)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
