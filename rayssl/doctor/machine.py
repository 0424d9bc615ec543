"""Checks Python, cores, threads, memory, shared memory, disk, open files and ports of this machine.

Each check gets the values as arguments, so that a test can give it the values of other machines.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rayssl.doctor.findings import Finding, fail, ok, size, warn

GIB = 2**30
PYTHONS = ((3, 11), (3, 12))
PORTS = {6379: "the head", 8265: "its dashboard and jobs", 10001: "Ray clients"}
_STORE_SHARE = 0.3  # the share of the memory that Ray takes for its object store
_FULL = 0.95  # Ray no longer spills to a disk that is fuller than this


def machine(environment: Mapping[str, str] | None = None) -> list[Finding]:
    """All checks of this module, on this machine."""
    environment = os.environ if environment is None else environment
    quota, (limit, left) = cpu_quota(), memory_limit()
    total, available = _memory()
    folder = environment.get("RAY_TMPDIR") or tempfile.gettempdir()
    usage = shutil.disk_usage(folder)
    return [
        python(sys.version_info),
        cores(usable_cores(), os.cpu_count() or 1, quota),
        threads(environment.get("OMP_NUM_THREADS"), min(usable_cores(), quota or 1e9)),
        memory(min(available, left), min(total, limit)),
        shared_memory(_shared(), min(total, limit)),
        disk(folder, usage.free, usage.total),
        open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
        own_address(socket.gethostname()),
        ports(PORTS) if not environment.get("RAY_ADDRESS") else ok("ports", "not needed: RAY_ADDRESS names a cluster"),
    ]


def python(version: Sequence[object]) -> Finding:
    """Whether rayssl supports this version of Python."""
    said = ".".join(str(part) for part in version[:3])
    if tuple(version[:2]) in PYTHONS:
        return ok("Python", said)
    names = " or ".join(".".join(map(str, each)) for each in PYTHONS)
    return fail("Python", said, f"make a virtual environment of Python {names} and install rayssl there")


def cores(usable: int, installed: int, quota: float | None) -> Finding:
    """The cores that this process may use, compared with those of the machine and with the quota of its cgroup."""
    said = f"{usable} usable of {installed}"
    if quota is not None and quota < usable - 0.01:
        return warn(
            "CPU cores", f"{said}, but the container may use only {quota:g} of them",
            f"start Ray with --num-cpus={max(1, int(quota))}, or raise the container's CPU limit: more tasks than "
            "cores are throttled",
        )  # fmt: skip
    if usable < 2:
        return warn("CPU cores", said, "give it two or more: training and the decoding of audio share one core")
    return ok("CPU cores", said)


def threads(given: str | None, usable: float) -> Finding:
    """OMP_NUM_THREADS, compared with the cores."""
    if given is None:
        return ok("threads", "OMP_NUM_THREADS is not set: Ray gives its workers as many threads as CPUs")
    first = given.split(",")[0].strip()
    if not first.isdigit() or int(first) < 1:
        return warn("threads", f"OMP_NUM_THREADS={given} is no number", "unset it, or give the threads of one process")
    if int(first) > usable + 0.01:
        return warn(
            "threads", f"OMP_NUM_THREADS={given} on {usable:g} cores",
            "lower it: more threads than cores wait for each other",
        )  # fmt: skip
    return ok("threads", f"OMP_NUM_THREADS={given}")


def memory(available: float, total: float) -> Finding:
    """Free memory: Ray and its dashboard take about 1.2 GiB, every worker of a training about 0.9."""
    said = f"{size(available)} free of {size(total)}"
    if available < 2 * GIB:
        return fail("memory", said, "end other processes or raise the limit: Ray with one worker takes about 2 GiB")
    if available < 4 * GIB:
        return warn("memory", said, "lower ray.workers or give it more: this is enough for one or two workers")
    return ok("memory", said)


def shared_memory(free: float | None, total: float) -> Finding:
    """/dev/shm, compared with Ray's object store, which takes 30 % of the memory."""
    wanted = _STORE_SHARE * total
    if free is None:
        return ok("shared memory", "no /dev/shm here")
    said = f"{size(free)} free in /dev/shm, Ray's object store takes {size(wanted)}"
    if free < wanted:
        return warn(
            "shared memory", said,
            "enlarge /dev/shm (docker --shm-size; in Kubernetes an emptyDir with medium: Memory), or start Ray with a "
            "smaller --object-store-memory: otherwise Ray puts the store on disk, which is slow",
        )  # fmt: skip
    return ok("shared memory", said)


def disk(folder: str, free: float, total: float) -> Finding:
    """The file system of Ray's session folder, into which Ray writes logs and spills objects."""
    said = f"{size(free)} free of {size(total)} at {folder}"
    if free <= (1 - _FULL) * total and free < 20 * GIB:
        return fail("disk", said, "free some, or set RAY_TMPDIR: Ray does not spill to a disk that is 95 % full")
    if free < 10 * GIB:
        return warn("disk", said, "free some, or set RAY_TMPDIR: Ray spills objects that do not fit the memory here")
    return ok("disk", said)


def open_files(limit: int) -> Finding:
    """The soft limit of open files. Ray needs some for every process and connection."""
    if limit == resource.RLIM_INFINITY or limit >= 4096:
        return ok("open files", "no limit" if limit == resource.RLIM_INFINITY else f"up to {limit}")
    return warn("open files", f"up to {limit} only", "run `ulimit -n 65536` before starting Ray")


def own_address(name: str, resolve: Callable[[str], str] = socket.gethostbyname) -> Finding:
    """Whether this host's name resolves to an address of this host. Ray's processes rely on that."""
    try:
        address = resolve(name)
    except OSError:
        return warn("host name", f"'{name}' does not resolve", "add it to /etc/hosts with this host's own address")
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return warn(
                "host name", f"'{name}' resolves to {address}, which is not an address of this host",
                "correct /etc/hosts or the name server, or start Ray with --node-ip-address",
            )  # fmt: skip
    return ok("host name", f"'{name}' is {address}")


def ports(wanted: Mapping[int, str]) -> Finding:
    """Whether a head could open its ports here. A cluster that rayssl starts itself finds free ports."""
    taken = [port for port in wanted if not _bindable(port)]
    if not taken:
        return ok("ports", f"{', '.join(map(str, wanted))} are free")
    said = ", ".join(f"{port} ({wanted[port]})" for port in taken)
    return warn(
        "ports", f"taken: {said}",
        "if that is your cluster, set RAY_ADDRESS to join it; else give `ray start --head` other ports",
    )  # fmt: skip


def cpu_quota(root: Path = Path("/sys/fs/cgroup"), own: str | None = None) -> float | None:
    """The cores that this process's cgroup and those above it allow, the least of all; None without a quota."""
    found = []
    for folder in _cgroups(root, own):
        text = _read(folder / "cpu.max").split()
        if len(text) == 2 and text[0].isdigit():
            found.append(int(text[0]) / int(text[1]))
    first = (_read(root / "cpu/cpu.cfs_quota_us"), _read(root / "cpu/cpu.cfs_period_us"))  # version 1
    if all(part.strip().isdigit() for part in first):
        found.append(int(first[0]) / int(first[1]))
    return min(found, default=None)


def memory_limit(root: Path = Path("/sys/fs/cgroup"), own: str | None = None) -> tuple[float, float]:
    """The bytes that this process's cgroup and those above it allow, and the bytes left; the least of each.

    Both are infinite without a limit. Pages of files that the kernel can drop count as left.
    """
    found = []
    for folder in _cgroups(root, own):
        limit, used = (_read(folder / name).strip() for name in ("memory.max", "memory.current"))
        if limit.isdigit():
            stat = dict(line.split() for line in _read(folder / "memory.stat").splitlines() if " " in line)
            left = float(limit) - float(used or 0) + float(stat.get("inactive_file", 0))
            found.append((float(limit), left))
    first = _read(root / "memory/memory.limit_in_bytes").strip()  # version 1
    if first.isdigit():
        found.append((float(first), float(first) - float(_read(root / "memory/memory.usage_in_bytes").strip() or 0)))
    infinite = float("inf")
    return min((one for one, _ in found), default=infinite), min((left for _, left in found), default=infinite)


def _cgroups(root: Path, own: str | None) -> list[Path]:
    """This process's folder below ``root`` and all above it, up to ``root``."""
    line = _read(Path("/proc/self/cgroup")) if own is None else own
    place = next((part.partition("::")[2].strip("/") for part in line.splitlines() if part.startswith("0::")), "")
    folder, found = root / place, [root]
    while folder != root and root in folder.parents:
        found.append(folder)
        folder = folder.parent
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def usable_cores() -> int:
    """The cores on which this process may run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> tuple[float, float]:
    """The bytes of this machine's memory, in total and available."""
    lines = dict(line.split(":", 1) for line in _read(Path("/proc/meminfo")).splitlines() if ":" in line)
    total, available = (float(lines.get(key, "inf kB").split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    return total, available


def _shared() -> float | None:
    return float(shutil.disk_usage("/dev/shm").free) if os.path.isdir("/dev/shm") else None


def _bindable(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
