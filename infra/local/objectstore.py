#!/usr/bin/env python3
"""A single-node Ceph with its S3 gateway on loopback, for tests on one machine.

    objectstore.py up DIR [--port P]    start (the first time: create) and print the variables to export
    objectstore.py env DIR              print the variables again
    objectstore.py down DIR             stop in order; the data stays for the next `up`
    objectstore.py kill DIR             stop by SIGKILL, as in a power failure; the data stays

    eval "$(infra/local/objectstore.py up DIR)"

It has one monitor, one object daemon and one gateway. There is no replication and no authentication between the
daemons, so it listens on loopback only. Ceph generates the user's keys at the first `up`; they are stored in
DIR/access.json (mode 600). The script stops only processes that it has started: it knows them by process id and start
time in DIR/run. It needs the commands of the packages radosgw, ceph-mon and ceph-osd.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

COMMANDS = ("monmaptool", "ceph-mon", "ceph-osd", "ceph", "radosgw", "radosgw-admin")
REGION = "us-east-1"
USER = "rayssl"
DAEMONS = ("rgw", "osd", "mon")  # in the order in which they are stopped

CONFIG = """\
[global]
fsid = {fsid}
mon host = v1:127.0.0.1:{mon_port}
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
# One object daemon: one copy, few placement groups, no host level in the crush map.
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 2
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
# A full disk of the developer is not this store's health problem.
mon data avail warn = 1
mon data avail crit = 0
# No sockets in the folder: their paths may have 107 characters only.
admin socket =
run dir = {folder}/run
log file = {folder}/log/$name.log
crash dir = {folder}/log
# After a kill the gateway waits for the watches of its predecessor: seconds, not half a minute.
osd client watch timeout = 3
osd default notify timeout = 3
[mon]
mon data = {folder}/mon
[osd]
osd data = {folder}/osd
osd objectstore = bluestore
osd class update on start = false
osd crush update on start = false
bluestore block size = 8589934592
bluestore block create = true
bluestore cache autotune = false
bluestore cache size = 134217728
[client]
keyring = /dev/null
rgw data = {folder}/rgw
rgw enable apis = s3
rgw thread pool size = 64
[client.rgw.a]
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw cache enabled = false
"""


class StoreError(Exception):
    """An error of the launcher, in one line."""


class Store:
    """The object store in one folder: its settings, its daemons and their process ids."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).resolve()
        self.config = self.folder / "ceph.conf"
        self.settings_file = self.folder / "settings.json"
        self.access_file = self.folder / "access.json"

    def up(self, port: int | None = None) -> dict[str, str]:
        """Starts the daemons that do not run, and returns the variables that a client needs.

        The first time it creates the store.
        """
        absent = missing_commands()
        if absent:
            raise StoreError(f"{', '.join(absent)} not found: install the packages radosgw, ceph-mon and ceph-osd")
        for name in ("mon", "osd", "rgw", "run", "log"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        settings = self._settings(port)
        self.config.write_text(CONFIG.format(folder=self.folder, **settings))
        self._start_monitor(settings)
        self._start_object_daemon(settings)
        if not self.access_file.exists():
            self._create_user()
        self._start("rgw", ["radosgw", "-n", "client.rgw.a"])
        self._wait_for_gateway(settings["port"])
        return self.environment()

    def environment(self) -> dict[str, str]:
        """The environment variables with which s3fs, pyarrow and boto3 find the store."""
        if not self.access_file.exists():
            raise StoreError(f"{self.folder} has no object store: start one with 'up'")
        access = json.loads(self.access_file.read_text())
        port = json.loads(self.settings_file.read_text())["port"]
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": access["access_key"],
            "AWS_SECRET_ACCESS_KEY": access["secret_key"],
            "AWS_DEFAULT_REGION": REGION,
            # This Ceph does not know the checksums that new clients send by default: uploads would fail with HTTP 411.
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        }

    def stop(self, how: signal.Signals) -> None:
        """Stops the daemons that this launcher has started, the gateway first. After 30 s it uses SIGKILL."""
        for name in DAEMONS:
            file = self.folder / "run" / f"{name}.pid"
            pid = running(file)
            if pid is not None:
                os.kill(pid, how)
                if not wait_until(lambda file=file: running(file) is None, 30):
                    os.kill(pid, signal.SIGKILL)
                    wait_until(lambda file=file: running(file) is None, 10)
            file.unlink(missing_ok=True)

    def _settings(self, port: int | None) -> dict[str, object]:
        """Ports and identifiers. They are chosen once; later only the gateway's port may change."""
        known = json.loads(self.settings_file.read_text()) if self.settings_file.exists() else {}
        if not known:
            mon_port = free_port()
            known = {"fsid": str(uuid.uuid4()), "osd": str(uuid.uuid4()), "mon_port": mon_port}
        if port is not None or "port" not in known:
            known["port"] = port or free_port(known["mon_port"])
        for daemon, key in (("mon", "mon_port"), ("rgw", "port")):
            ours = running(self.folder / "run" / f"{daemon}.pid") is not None
            if not ours and not wait_until(lambda port=known[key]: bindable(port), 10):
                raise StoreError(f"port {known[key]} of 127.0.0.1 is taken by another process")
        self.settings_file.write_text(json.dumps(known, indent=1))
        return known

    def _start_monitor(self, settings: dict[str, object]) -> None:
        monmap = self.folder / "monmap"
        if not (self.folder / "mon" / "store.db").exists():
            member = ["--addv", "a", f"[v1:127.0.0.1:{settings['mon_port']}]"]
            self._run(["monmaptool", "--create", "--clobber", "--fsid", settings["fsid"], *member, monmap])
            self._run(["ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap, "--keyring", "/dev/null"])
        self._start("mon", ["ceph-mon", "-i", "a"])

    def _start_object_daemon(self, settings: dict[str, object]) -> None:
        if not (self.folder / "osd" / "ready").exists():
            self._ask(["ceph", "osd", "new", settings["osd"]])
            self._ask(["ceph", "osd", "crush", "add", "osd.0", "1.0", "root=default", "host=local"])
            monmap = self.folder / "monmap"
            self._run(["ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", settings["osd"], "--monmap", monmap])
        self._start("osd", ["ceph-osd", "-i", "0"])

    def _create_user(self) -> None:
        """Creates the user and its keys, names the region, and writes the keys to access.json.

        This radosgw-admin sometimes crashes on exit after its work is done, so this checks the state, not the exit
        status. radosgw-admin generates the keys; they never appear on a command line.
        """
        for _ in range(3):
            self._admin("user", "create", f"--uid={USER}", f"--display-name={USER}")
            found = self._admin("user", "info", f"--uid={USER}")
            if found:
                break
        else:
            raise StoreError(f"radosgw-admin did not create a user: see {self.folder}/log")
        # Without this the gateway refuses clients that send their region with CreateBucket.
        zonegroup = self._admin("zonegroup", "get", "--rgw-zonegroup=default")
        if not zonegroup:
            raise StoreError(f"radosgw-admin did not name the zonegroup: see {self.folder}/log")
        self._admin("zonegroup", "set", "--rgw-zonegroup=default", given=json.dumps(zonegroup | {"api_name": REGION}))
        key = found["keys"][0]
        partial = self.access_file.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump({"access_key": key["access_key"], "secret_key": key["secret_key"]}, file)
        partial.replace(self.access_file)

    def _admin(self, *words: str, given: str = "") -> dict[str, object]:
        command = ["radosgw-admin", "-c", str(self.config), *words]
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=120, check=False)
        try:
            return json.loads(done.stdout)
        except ValueError:
            return {}

    def _ask(self, command: list[object]) -> None:
        """Runs a command of the monitor, and repeats it for 60 s: a monitor that has just started may refuse (EPERM).

        Only for commands that may run twice.
        """
        end = time.monotonic() + 60
        while True:
            try:
                return self._run(command)
            except StoreError:
                if time.monotonic() > end or running(self.folder / "run" / "mon.pid") is None:
                    raise
            time.sleep(0.5)

    def _run(self, command: list[object]) -> None:
        words = [str(word) for word in command]
        if words[0] != "monmaptool":
            words[1:1] = ["-c", str(self.config)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise StoreError(f"{' '.join(words[:1] + words[3:6])} failed with status {done.returncode}: {last}")

    def _start(self, name: str, command: list[str]) -> None:
        """Starts a daemon in its own session, unless it runs already. Writes down its process id and start time."""
        file = self.folder / "run" / f"{name}.pid"
        if running(file) is not None:
            return
        with (self.folder / "log" / f"{name}.out").open("ab") as out:
            process = subprocess.Popen(
                [command[0], "-f", "-c", str(self.config), *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        file.write_text(f"{process.pid} {start_time(process.pid)}\n")

    def _wait_for_gateway(self, port: object) -> None:
        def answers() -> bool:
            for name in DAEMONS:
                if running(self.folder / "run" / f"{name}.pid") is None:
                    raise StoreError(f"{name} ended while starting: see {self.folder}/log/{name}.out")
            connection = http.client.HTTPConnection("127.0.0.1", int(str(port)), timeout=5)
            try:
                connection.request("GET", "/")
                return connection.getresponse().status == 200
            except OSError:
                return False
            finally:
                connection.close()

        if not wait_until(answers, 90):
            raise StoreError(f"the gateway did not answer on port {port} in 90 s: see {self.folder}/log")


def missing_commands() -> list[str]:
    """The commands of the servers that this machine lacks."""
    return [name for name in COMMANDS if shutil.which(name) is None]


def start_time(pid: int) -> str | None:
    """When a live process started (clock ticks since boot); None if it is gone or only waits to be reaped.

    A killed process is a zombie while its last threads end, and these still hold its ports. It counts as alive until
    they are gone.
    """
    try:
        began = stat_fields(f"/proc/{pid}/stat")[19]
        threads = [stat_fields(thread / "stat")[0] for thread in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return start_time(pid) if Path(f"/proc/{pid}").exists() else None
    return None if set(threads) <= set("ZX") else began


def stat_fields(file: str | Path) -> list[str]:
    """The fields after the name in a /proc stat file. The first is the state; field 19 is the start time."""
    return Path(file).read_text().rpartition(")")[2].split()


def running(file: Path) -> int | None:
    """The process id in ``file`` if that same process is alive. Ids are reused, but start times differ."""
    try:
        pid, began = file.read_text().split()
    except (OSError, ValueError):
        return None
    with contextlib.suppress(ChildProcessError):
        os.waitpid(int(pid), os.WNOHANG)  # if a long process imports this module, the daemons are its children
    return int(pid) if start_time(int(pid)) == began else None


def bindable(port: int) -> bool:
    """Whether a server could listen on this port of the loopback interface now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port(*taken: int) -> int:
    """A free port below those that the kernel gives to outgoing connections: it is still free after a restart."""
    for port in random.SystemRandom().sample(range(20000, 32000), 200):
        if port not in taken and bindable(port):
            return port
    raise StoreError("no free port between 20000 and 32000 on 127.0.0.1")


def wait_until(done: Callable[[], bool], seconds: float) -> bool:
    """Whether ``done()`` became true within ``seconds``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if done():
            return True
        time.sleep(0.05)
    return False


def main() -> int:
    """The command line. If the store cannot be started, it prints one line on stderr and returns status 1."""
    parser = argparse.ArgumentParser(description="A single-node S3 server (Ceph) on loopback.")
    parser.add_argument("verb", choices=("up", "env", "down", "kill"))
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("--port", type=int, help="port of the S3 endpoint (default: a free one, stored in DIR)")
    arguments = parser.parse_args()
    store = Store(arguments.folder)
    try:
        if arguments.verb in ("down", "kill"):
            store.stop(signal.SIGTERM if arguments.verb == "down" else signal.SIGKILL)
            return 0
        values = store.up(arguments.port) if arguments.verb == "up" else store.environment()
    except (StoreError, subprocess.TimeoutExpired) as error:
        if arguments.verb == "up":
            store.stop(signal.SIGTERM)  # after a failed start no part of the store may run
        print(f"objectstore: {error}", file=sys.stderr)
        return 1
    for key, value in values.items():
        print(f"export {key}={shlex.quote(value)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
