"""Checks the Ray cluster in RAY_ADDRESS: can it be joined, what does it have, are its nodes alike, who else may use it.

Everything that talks to Ray runs in its own process under a time limit. If a cluster is down or demands another token,
a client may end or wait without any exception.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from typing import Any

from rayssl.doctor.findings import Finding, fail, ok, size, warn

_LIMIT_S = 90
_ANSWER_S = 5.0  # of whatever listens at RAY_ADDRESS
_PACKAGES = ("ray", "torch", "torchaudio", "faiss-cpu", "numpy", "pyarrow", "rayssl")
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
_CLOCK_S = 60.0
_MARK = "rayssl-doctor:"


def cluster(address: str | None = None) -> list[Finding]:
    """Findings about the cluster at ``address`` (default: the one in RAY_ADDRESS)."""
    address = os.environ.get("RAY_ADDRESS", "") if address is None else address
    if not address or address == "local":
        said = f"RAY_ADDRESS is {'local' if address else 'not set'}: every command starts its own cluster here"
        return [ok("Ray cluster", said)]
    wrong = unusable(address)
    if wrong is not None:
        return [wrong]
    for question in ("knock", "nodes"):  # "knock" is quick: with a wrong token, joining fails only after 30 s
        done = _ask(question, address, {})
        if isinstance(done, str):
            return [refused(address, done)]
    return [*judged(address, done), tokens(address, done["dashboard"])]


def unusable(address: str) -> Finding | None:
    """What is wrong with an address, without Ray: its form, or that nothing listens there. None if it is usable."""
    if address.startswith(("http://", "https://")):
        return fail(
            "Ray cluster", f"RAY_ADDRESS={address} is the address of the jobs API",
            f"submit with `ray job submit --address {address}`, or set RAY_ADDRESS to HOST:6379, or unset it",
        )  # fmt: skip
    if address.startswith("ray://"):
        return fail(
            "Ray cluster", f"RAY_ADDRESS={address} is an address of Ray Client, and training does not run through it",
            "submit a job (jobs/*.py), or run on a node of the cluster with RAY_ADDRESS=HOST:6379",
        )  # fmt: skip
    if address == "auto":
        return None
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return fail("Ray cluster", f"RAY_ADDRESS={address} is not HOST:PORT", "set it to the head node, HOST:6379")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S) as connection:
            grpc = os.environ.get("RAY_USE_TLS", "0") not in ("", "0") or _speaks_grpc(connection)
    except (OSError, OverflowError) as error:
        text = str(error.strerror if isinstance(error, OSError) and error.strerror else error).lower()
        return fail(
            "Ray cluster", f"no answer at RAY_ADDRESS={address} ({text})",
            "check that the head runs (`ray start --head`) and that no firewall blocks this port, or unset RAY_ADDRESS "
            "to run on this machine alone",
        )  # fmt: skip
    if not grpc:
        return fail(
            "Ray cluster", f"what listens at RAY_ADDRESS={address} is no Ray head",
            "set it to the head's port for clients, HOST:6379 as a rule (8265 is the dashboard), or unset it",
        )  # fmt: skip
    return None


def _speaks_grpc(connection: socket.socket) -> bool:
    """Whether the other side begins HTTP/2, as the head's gRPC does: its first frame has the settings (RFC 9113, 3.4).

    Ray itself would wait for a minute and more for another kind of server.
    """
    try:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
        head = b""
        while len(head) < 9:
            part = connection.recv(9 - len(head))
            if not part:
                return False
            head += part
    except OSError:
        return False
    return head[3] == 4


def refused(address: str, text: str) -> Finding:
    """The finding for a cluster that could not be joined; ``text`` is what Ray printed."""
    what, start = "Ray cluster", f"cannot join {address}"
    if re.search(r"InvalidAuthToken|AuthenticationError|authentication token", text):
        return fail(
            what, f"{start}: it demands a token, and yours is missing or wrong",
            "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH (or RAY_AUTH_TOKEN) to the head's token "
            "(`ray get-auth-token` there)",
        )  # fmt: skip
    if "Version mismatch" in text:
        pairs = re.findall(r"(Ray|Python): (\S+)", text)
        there, here = pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :]
        said = f"there {' '.join(map(' '.join, there))}, here {' '.join(map(' '.join, here))}"
        return fail(what, f"{start}: {said}", "use the same versions on both sides, also the same patch of Python")
    if "node_ip_address.json" in text or "find any running Ray instance" in text:
        return fail(what, f"{start}: this machine is not a node of it", "submit a job (jobs/*.py), or `ray start` here")
    return fail(what, f"{start}: {_last_words(text)}", "look at `ray status` there, and at its log gcs_server.out")


def tokens(address: str, dashboard: str | None) -> Finding:
    """Whether the cluster accepts clients without a token, and whether it accepts jobs from other machines."""
    stranger = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": ""}
    if _ask("knock", address, stranger) != {"answered": True} and not _open_dashboard(dashboard):
        return ok("Ray token", "demanded; the cluster refuses clients without it")
    said, fix = "not demanded: anyone who reaches the head's ports can run code", "start it with RAY_AUTH_MODE=token"
    if dashboard and dashboard.rpartition(":")[0] not in _LOOPBACK:
        said += f", and its dashboard at {dashboard} listens to other machines"
        fix += ", and with --dashboard-host=127.0.0.1 if nobody else needs it"
    return warn("Ray token", said, fix)


def judged(address: str, seen: dict[str, Any]) -> list[Finding]:
    """Findings from what the nodes answered."""
    nodes, silent = seen["nodes"], seen["silent"]
    total = seen["resources"]
    parts = [f"{total.get('CPU', 0):g} CPUs", f"{total.get('GPU', 0):g} GPUs"]
    parts += [f"{size(total[key])} {text}" for key, text in _STORES.items() if key in total]
    count = len(nodes) + len(silent)
    findings = [ok("Ray cluster", f"{address}: {count} node{'s' if count > 1 else ''}, {', '.join(parts)}")]
    if silent:
        said = f"no answer within {_NODE_S} s from {', '.join(silent)}"
        findings.append(warn("Ray nodes", said, "look at `ray status`: they may be full, starting or gone"))
    differing = {
        package: {str(node["versions"].get(package)): node["name"] for node in nodes}
        for package in (*_PACKAGES, "python")
        if len({node["versions"].get(package) for node in nodes}) > 1
    }
    for package, by_version in differing.items():
        said = ", ".join(
            f"{version if version != 'None' else 'absent'} on {name}" for version, name in by_version.items()
        )
        findings.append(fail("Ray nodes", f"{package}: {said}", "run one image, or one environment, on all nodes"))
    if nodes and not differing:
        own = {package: nodes[0]["versions"].get(package) for package in ("python", "ray", "torch")}
        alike = ", ".join(f"{name} {version}" for name, version in own.items() if version)
        findings.append(ok("Ray nodes", f"{len(nodes)} with the same versions ({alike})"))
    for node in nodes:
        free, wanted = node["shared_free"], node["store"]
        if free is not None and free < wanted - node["store_used"]:
            said = f"{node['name']}: {size(free)} free in /dev/shm, its object store is {size(wanted)}"
            findings.append(warn("Ray nodes", said, "enlarge /dev/shm there, or start it with --object-store-memory"))
        if abs(node["skew"]) > _CLOCK_S:
            said = f"{node['name']}: its clock and this machine's differ by {abs(node['skew']):.0f} s"
            findings.append(warn("Ray nodes", said, "set the clocks (NTP)"))
    return findings


_STORES = {"memory": "memory", "object_store_memory": "object store"}
_NODE_S = 30


def _open_dashboard(dashboard: str | None) -> bool:
    """Whether the jobs API answers without a token."""
    if not dashboard:
        return False
    try:
        with urllib.request.urlopen(f"http://{dashboard}/api/jobs/", timeout=5) as answer:
            return int(answer.status) == 200
    except (OSError, ValueError):
        return False


def _ask(question: str, address: str, environment: dict[str, str]) -> Any:
    """The answer of a new process to ``question``, or, as text, what it printed before it ended."""
    command = [sys.executable, "-m", "rayssl.runtime.doctor", question, address]
    own = {key: value for key, value in {**os.environ, **environment}.items() if value}
    own |= {
        "RAY_ADDRESS": address,
        "PYTHONPATH": os.pathsep.join([_root(), own.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    }
    try:
        done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer within {_LIMIT_S} s"
    for line in reversed(done.stdout.splitlines()):
        if line.startswith(_MARK):
            return json.loads(line.removeprefix(_MARK))
    return done.stderr + done.stdout or f"the client ended with status {done.returncode}"


def _last_words(text: str) -> str:
    """The error of a traceback in one line; without a traceback, the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    starts = [index for index, line in enumerate(lines) if re.match(r"[\w.]*(Error|Exception)\b", line)]
    said = " ".join(lines[starts[-1] :] if starts else lines[-1:])
    return said[:400]


def _root() -> str:
    return os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def _knock(address: str) -> dict[str, Any]:
    """Raises unless the head accepts this process's token."""
    import ray._raylet
    from ray._private import services

    client: Any = vars(ray._raylet)["GcsClient"]
    client(address=services.canonicalize_bootstrap_address_or_die(address)).get_all_node_info(timeout=10)
    return {"answered": True}


def _nodes(address: str) -> dict[str, Any]:
    """The resources of the cluster, and the versions, shared memory and clock of every node."""
    import logging

    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    context = ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, configure_logging=False)

    def look(packages: tuple[str, ...]) -> dict[str, Any]:  # a local function: nodes need not have rayssl installed
        import importlib.metadata
        import platform
        import shutil
        import time

        versions = {"python": platform.python_version()}
        for package in packages:
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
        try:
            free: int | None = shutil.disk_usage("/dev/shm").free
        except OSError:
            free = None
        return {"versions": versions, "shared_free": free, "time": time.time()}

    alive = [node for node in ray.nodes() if node["Alive"]]
    task = ray.remote(num_cpus=0, max_retries=0)(look)
    asked, began = {}, time.time()
    for node in alive:
        pinned = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked[task.options(scheduling_strategy=pinned).remote(_PACKAGES)] = node
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=_NODE_S)
    ended = time.time()
    free_now = ray.available_resources().get("object_store_memory", 0.0)
    used = max(0.0, ray.cluster_resources().get("object_store_memory", 0.0) - free_now)
    nodes = []
    for reference in ready:
        node, seen = asked[reference], ray.get(reference)
        moved = seen.pop("time")
        skew = 0.0 if began <= moved <= ended else moved - (began if moved < began else ended)
        store = node["Resources"].get("object_store_memory", 0.0)
        name = node.get("NodeManagerHostname") or node["NodeManagerAddress"]
        nodes.append({**seen, "name": name, "store": store, "store_used": used, "skew": skew})
    silent = [asked[reference]["NodeManagerAddress"] for reference in late]
    return {"nodes": nodes, "silent": silent, "resources": ray.cluster_resources(), "dashboard": context.dashboard_url}


if __name__ == "__main__":
    answer = {"nodes": _nodes, "knock": _knock}[sys.argv[1]](sys.argv[2])
    sys.stdout.write(f"{_MARK}{json.dumps(answer)}\n")
    sys.stdout.flush()
