"""Faults of a node's disks: the run's folder is full or read-only for a time, /dev/shm is full, a bit has changed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from rayssl.training import checkpoint
from tests.faults import processes
from tests.faults.places import Place, PlaceError, SharedHead
from tests.faults.trial import Missed, Trial
from tests.faults.victims import TITLES, struck

_DISK_BYTES, _SHM_BYTES = 200 << 20, 300 << 20
# a /dev/shm of its own, then becomes the command
_OWN_SHM = f'mount -t tmpfs -o size={_SHM_BYTES} tmpfs /dev/shm && exec "$0" "$@"'


class SmallDisk(SharedHead):
    """A shared head; the corpus and the runs lie on a small disk (a tmpfs)."""

    name = "shared head with a small disk"

    def __init__(self, folder: Path, variables: Mapping[str, str] | None = None) -> None:
        super().__init__(folder, variables)
        self.disk = folder / "disk"

    def up(self) -> None:
        if not self.disk.is_mount():
            self.disk.mkdir(exist_ok=True)
            mount("-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(self.disk))
        super().up()

    @property
    def home(self) -> str:
        """Where the corpus and the runs lie."""
        return str(self.disk)

    def down(self) -> None:
        super().down()
        for _ in range(3):  # a trial that was broken off may have mounted a second time
            subprocess.run(["umount", "-R", str(self.disk)], capture_output=True, check=False)


class OwnShm(Place):
    """A cluster of its own with a /dev/shm of its own: the machine's is left alone."""

    name = "own cluster with a small /dev/shm"

    def start(self, command: list[str], output: Path) -> subprocess.Popen[bytes]:
        return self.launch(["unshare", "-m", "bash", "-c", _OWN_SHM, *command], output)


def fill_disk(trial: Trial) -> str:
    """The disk of the run is full for ``--seconds``; then there is room again."""
    assert isinstance(trial.place, SmallDisk)
    filler = trial.place.disk / "filler"
    fill(filler)
    try:
        trial.pause(trial.fault_s)
    finally:
        filler.unlink()
    return f"the run's disk, full for {trial.fault_s:g} s"


def read_only(trial: Trial) -> str:
    """The run's folder refuses writing for ``--seconds``: a read-only mount lies over it. Open files are spared."""
    assert isinstance(trial.place, SmallDisk)
    staging = trial.place.disk / "staging"
    staging.mkdir(exist_ok=True)
    mount("--bind", trial.run, str(staging))
    try:
        mount("-o", "remount,bind,ro", str(staging))
        mount("--bind", str(staging), trial.run)  # it takes over that it is read-only
        try:
            trial.pause(trial.fault_s)
        finally:
            subprocess.run(["umount", trial.run], check=False)
    finally:
        subprocess.run(["umount", str(staging)], check=False)
    return f"the run's folder, read-only for {trial.fault_s:g} s"


def fill_shm(trial: Trial) -> str:
    """/dev/shm is full for ``--seconds``, or until the cluster has ended: from when the first data task runs."""
    assert isinstance(trial.place, OwnShm)
    trial.victim(TITLES["data-task"], every_s=0.002)
    trial.mark_fault()
    driver = trial.driver
    if driver is None:
        raise Missed("the command had ended before the fault")
    shm = Path("/proc", str(driver.pid), "root", "dev/shm")
    fill(shm / "filler")
    left = os.statvfs(shm)
    until = time.monotonic() + trial.fault_s
    while time.monotonic() < until and trial.driver is not None:
        time.sleep(0.1)
    with suppress(OSError):  # the namespace may have ended with the command
        (shm / "filler").unlink()
    return f"/dev/shm, {left.f_bavail * left.f_frsize >> 10} KiB left for {trial.fault_s:g} s"


def flip_bit(trial: Trial) -> str:
    """The command is killed, and one bit of a file of the last checkpoint changes before it is given again."""
    trial.wait_for(lambda: bool(checkpoint.steps(trial.run)))
    struck(trial, trial.driver, signal.SIGKILL)
    trial.ended()
    processes.wait_until(lambda: not processes.titled(trial.place.processes(), r"ray::RayTrainWorker"), 30, 0.2)
    folder = Path(checkpoint.locate(trial.run, "last"))
    file = trial.random.choice(sorted(path for path in folder.iterdir() if path.stat().st_size))
    data = bytearray(file.read_bytes())
    bit = trial.random.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)
    return f"bit {bit} of {file.name} in {folder.name}"


def fill(file: Path) -> None:
    """Writes until there is no room."""
    with file.open("wb", buffering=0) as out, suppress(OSError):
        for size in (1 << 20, 4096):
            with suppress(OSError):
                while out.write(bytes(size)):
                    pass
        os.fsync(out.fileno())


def mount(*words: str) -> None:
    """`mount`. Raises `PlaceError`."""
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise PlaceError(f"mount {' '.join(words)}: {done.stderr.strip()}")
