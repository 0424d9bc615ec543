"""Ray nodes that are hosts of their own: network namespaces with an address, a host name, /tmp/ray and /dev/shm each.

A head without CPUs and two workers. Needs root and iproute2. All names begin with this process's id, so that several
such clusters, and other people's, can be on one machine.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tests.faults import processes
from tests.faults.places import OF_A_JOB, RAY, Place, PlaceError
from tests.faults.processes import Process

_CPUS = 3  # of a worker node: one rank of `CPUS_PER_WORKER`, a data task and the actors
CPUS_PER_WORKER = 1.6  # more than half of a node: one rank a node, of one thread
_PORT, _DASHBOARD, _REDIS = 6390, 8265, 6380  # each node has its own ports
_START_S = 120.0
# hides the host's /tmp/ray and /dev/shm behind the node's own, then becomes the command
_INSIDE = (
    'hostname "$0" && mkdir -p /tmp/ray && mount --bind "$1" /tmp/ray && mount -t tmpfs -o size=1g tmpfs /dev/shm '
    '&& shift && exec "$@"'
)


class Nodes(Place):
    """A head (node 0) and worker nodes 1 and 2, which stay for all trials. Commands run on the head."""

    name = "head and two nodes"
    workers = 2
    own_pids = False  # whether a node sees only its own processes

    def __init__(self, folder: Path, variables: Mapping[str, str] | None = None) -> None:
        super().__init__(folder, variables)
        self._short = Path(tempfile.mkdtemp(prefix="rf-", dir="/tmp"))
        self._id = f"rf{os.getpid()}"
        self._net = _free_net()
        self._nodes: dict[int, subprocess.Popen[bytes]] = {}
        self._logged: dict[int, int] = {}  # how long each node's log was when it was started last
        self._head: dict[str, str] = {}  # variables of the head alone
        self._made = False
        self.environment |= {
            "RAY_ADDRESS": f"{self.address(0)}:{_PORT}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }

    def address(self, node: int) -> str:
        """The node's IP address."""
        return f"{self._net}.{10 + node}"

    def up(self) -> None:
        if not self._made:
            self._make_net()
        for node in range(self.workers + 1):
            if node not in self._nodes or self._nodes[node].poll() is not None:
                self.start_node(node)
        self.wait_for_nodes()

    def start(self, command: list[str], output: Path) -> subprocess.Popen[bytes]:
        """Starts a command on the head's node."""
        return self.launch(self._inside(0, command), output)

    def start_node(self, node: int) -> None:
        """Starts a node, or starts it again: it comes back with its address and nothing else."""
        words = [f"--address={self.environment['RAY_ADDRESS']}", f"--num-cpus={_CPUS}"]
        if node == 0:
            words = ["--head", f"--port={_PORT}", "--num-cpus=0", "--include-dashboard=true"]
            words += [f"--dashboard-host={self.address(0)}", f"--dashboard-port={_DASHBOARD}"]
        words += ["--block", f"--node-ip-address={self.address(node)}", "--object-store-memory=200000000"]
        words += ["--num-gpus=0", "--disable-usage-stats"]
        self._ip("link", "set", f"{self._id}v{node}", "up")
        log = self.folder / f"node{node}.log"
        self._logged[node] = log.stat().st_size if log.exists() else 0
        self._nodes[node] = self.launch(
            self._inside(node, [RAY, "start", *words]), log, self._head if node == 0 else None
        )
        if node == 0:
            self.wait_for_head()

    def wait_for_head(self) -> None:
        """Waits until the head's GCS answers."""
        probe = ["ip", "netns", "exec", self._name(0), "bash", "-c", f"exec 3<>/dev/tcp/{self.address(0)}/{_PORT}"]
        answered = processes.wait_until(
            lambda: subprocess.run(probe, capture_output=True, check=False).returncode == 0, _START_S, 0.5
        )
        if not answered:
            raise PlaceError(f"the head did not answer in {_START_S:.0f} s: see {self.folder}/node0.log")

    def wait_for_nodes(self) -> None:
        """Waits until each node's raylet runs."""
        for node, process in self._nodes.items():
            log = self.folder / f"node{node}.log"
            before = self._logged.get(node, 0)

            def started(log: Path = log, process: subprocess.Popen[bytes] = process, before: int = before) -> bool:
                return b"--block" in log.read_bytes()[before:] or process.poll() is not None

            if not processes.wait_until(started, _START_S, 0.3) or process.poll() is not None:
                raise PlaceError(f"node {node} did not start in {_START_S:.0f} s: see {log}")

    def on(self, node: int) -> list[Process]:
        """The live processes on a node."""
        try:
            wanted = os.stat(f"/run/netns/{self._name(node)}").st_ino
        except OSError:
            return []
        found = []
        for process in processes.every().values():
            with suppress(OSError):
                if os.stat(f"/proc/{process.pid}/ns/net").st_ino == wanted:
                    found.append(process)
        return found

    def processes(self) -> list[Process]:
        """All live processes on all nodes."""
        return [process for node in range(self.workers + 1) for process in self.on(node)]

    def lose(self, node: int) -> None:
        """The node is gone as if its power had failed: nobody hears from it, then all its processes are killed."""
        self._ip("link", "set", f"{self._id}v{node}", "down")
        processes.end(self.on(node))
        shutil.rmtree(self._short / f"{node}", ignore_errors=True)

    def launcher(self, node: int) -> Process | None:
        """The node's ``ray start``, which gets the SIGTERM when a pod or a machine is shut down."""
        found = processes.titled(self.on(node), r"\S+ \S*/ray start ")
        return found[0] if found else None

    def calm(self) -> None:
        """Ends the commands of the trial. Nodes stay."""
        nodes = {process.pid for process in self._nodes.values()}
        for process in self._started:
            if process.pid not in nodes and process.poll() is None:
                processes.end(processes.below([process.pid], "none"))
                process.wait()
        if not processes.wait_until(lambda: not processes.titled(self.processes(), OF_A_JOB), 30, 0.3):
            processes.end(processes.titled(self.processes(), OF_A_JOB))

    def down(self) -> None:
        for node in range(self.workers + 1):
            processes.end(self.on(node))
        for process in self._started:
            process.kill()
            process.wait()
        for node in range(self.workers + 1):
            self._ip("link", "del", f"{self._id}v{node}", check=False)
            self._ip("netns", "del", self._name(node), check=False)
            shutil.rmtree(f"/etc/netns/{self._name(node)}", ignore_errors=True)
        self._ip("link", "del", f"{self._id}br", check=False)
        shutil.rmtree(self._short, ignore_errors=True)

    def _name(self, node: int) -> str:
        return f"{self._id}n{node}"

    def _inside(self, node: int, command: list[str]) -> list[str]:
        """The command line that runs ``command`` on a node."""
        own = self._short / f"{node}"
        own.mkdir(parents=True, exist_ok=True)
        name = self._name(node)
        apart = ["unshare", "-u", "-m", *(["-p", "-f", "--mount-proc", "--kill-child"] if self.own_pids else [])]
        return ["ip", "netns", "exec", name, *apart, "bash", "-c", _INSIDE, name, str(own), *command]

    def _make_net(self) -> None:
        self._made = True
        bridge = f"{self._id}br"
        self._ip("link", "add", bridge, "type", "bridge")
        self._ip("addr", "add", f"{self._net}.1/24", "dev", bridge)
        self._ip("link", "set", bridge, "up")
        for node in range(self.workers + 1):
            name, link = self._name(node), f"{self._id}v{node}"
            self._ip("netns", "add", name)
            self._ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
            self._ip("link", "set", link, "master", bridge)
            inside = ("netns", "exec", name, "ip")
            self._ip(*inside, "addr", "add", f"{self.address(node)}/24", "dev", "eth0")
            self._ip(*inside, "link", "set", "eth0", "up")
            self._ip(*inside, "link", "set", "lo", "up")
            hosts = Path(f"/etc/netns/{name}/hosts")  # gloo listens at what the host name resolves to
            hosts.parent.mkdir(parents=True, exist_ok=True)
            hosts.write_text(f"127.0.0.1 localhost\n{self.address(node)} {name}\n")

    def _ip(self, *words: str, check: bool = True) -> None:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise PlaceError(f"ip {' '.join(words)}: {done.stderr.strip()}")


class NodesWithRedis(Nodes):
    """The same, with Redis outside the nodes, so that the head may come back. Commands run on node 1.

    A driver joins the head's raylet if it sees one among the processes of its machine: here each node sees its own.
    """

    name = "head with Redis and two nodes"
    own_pids = True

    def start(self, command: list[str], output: Path) -> subprocess.Popen[bytes]:
        """Starts a command on node 1, in the namespaces of its raylet."""
        launcher = self.launcher(1)
        if launcher is None:
            raise PlaceError("node 1 has no ray start")
        return self.launch(["nsenter", "-t", str(launcher.pid), "-n", "-u", "-m", "-p", *command], output)

    def up(self) -> None:
        if not self._made:
            self._make_net()
            words = ["--bind", f"{self._net}.1", "--port", str(_REDIS), "--save", "", "--appendonly", "no"]
            words += ["--protected-mode", "no", "--dir", str(self._short)]
            self.launch(["redis-server", *words], self.folder / "redis.log")
            self._head |= {"RAY_REDIS_ADDRESS": f"{self._net}.1:{_REDIS}"}
        super().up()

    def calm(self) -> None:
        redis = self._started[0]
        self._started.remove(redis)
        try:
            super().calm()
        finally:
            self._started.insert(0, redis)


def _free_net() -> str:
    """The first three numbers of a private network of which this machine has no address."""
    taken = subprocess.run(["ip", "-o", "addr"], capture_output=True, text=True, check=False).stdout
    return next(net for net in (f"10.{78 + os.getpid() % 100}.{n}" for n in range(256)) if f" {net}." not in taken)
