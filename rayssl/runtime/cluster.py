"""Connects to Ray: to the cluster in RAY_ADDRESS, or to one that it starts on this machine for this process alone."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rayssl.doctor.findings import Finding
from rayssl.errors import ConfigError, Stopped, UserError
from rayssl.runtime import placement
from rayssl.runtime.doctor import refused, unusable
from rayssl.storage.attempts import PATIENCE

_NEEDED = ("raylet", "gcs_server")  # processes without which a local cluster does not work


def joins() -> bool:
    """Whether `connect` joins an existing cluster; otherwise it starts one."""
    return bool(os.environ.get("RAY_ADDRESS"))


def started() -> bool:
    """Whether this process is connected already."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def connect(cpus: float = 0.0, *, logs: bool = True) -> None:
    """Joins the cluster in RAY_ADDRESS, or starts a local one with ``cpus`` logical CPUs more than there are cores.

    ``logs``: whether what workers print is shown on this process's terminal.

    The additional logical CPUs let Ray Data run tasks while training workers hold their CPUs. Without them Ray Data
    waits for ever, without a message. No setting makes Ray listen on loopback alone, so a local cluster demands a token
    that only this process and its children know. Credentials of object storage come from each node's own environment:
    if they were passed on, Ray's dashboard would show them.
    """
    joined = joins()
    check()
    prepare()
    import ray

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    if ray.is_initialized():
        return
    if joined:
        # the cluster's processes do not have this process's environment
        passed_on = ("RAY_DATA_LOG_LEVEL", "RAY_IGNORE_UNHANDLED_ERRORS", PATIENCE)
        quiet = {"env_vars": {name: os.environ[name] for name in passed_on if name in os.environ}}
        try:
            ray.init(logging_level=logging.WARNING, runtime_env=quiet, log_to_driver=logs)
        except (ConnectionError, RuntimeError) as error:
            raise ConfigError(_said(refused(os.environ["RAY_ADDRESS"], str(error)))) from error
        _leave_by_sigterm()
        return
    _start((os.cpu_count() or 1) + int(-(-cpus // 1)), logs)
    _leave_by_sigterm()


def prepare() -> None:
    """Sets what Ray reads from the environment when it is first imported. `connect` does it, too."""
    if not joins() and "RAY_AUTH_MODE" not in os.environ:  # ray reads both when it is first imported
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # `rayssl.runtime.signals` watches for nodes that are taken away: also for those of the memory's actors
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # it prints every line of progress twice
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "WARNING")
    # Ray Data cancels tasks that nobody waits for any more, and how they ended is of no use to a person
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def _start(cpus: int, logs: bool) -> None:
    """Starts a local cluster. Ray waits 30 s for its own processes, and a busy machine may need longer: tries twice."""
    import ray

    for last in (False, True):
        try:
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=True,  # Ray Train's cleaner and the State API need it
                dashboard_host="127.0.0.1",
                logging_level=logging.WARNING,
                log_to_driver=logs,
            )
            return
        except Exception as error:  # Ray raises no narrower class here
            ray.shutdown()
            text = " ".join(str(error).split())
            if last or isinstance(error, ValueError):
                raise UserError(f"Ray did not start on this machine: {text}; is it busy or out of memory?") from error
            sys.stderr.write(f"Ray did not start on this machine ({text}); once more\n")


def check() -> None:
    """Raises `ConfigError` if nothing can be joined at RAY_ADDRESS: `ray.init` would wait, deaf to signals."""
    address = os.environ.get("RAY_ADDRESS", "")
    wrong = None if not joins() or started() or address == "local" else unusable(address)
    if wrong is not None:
        raise ConfigError(_said(wrong))


def _said(finding: Finding) -> str:
    return f"{finding.found}; {finding.fix}"


def _leave_by_sigterm() -> None:
    """Replaces Ray's own handler, which exits with status 15 and without a message, until `disconnect`."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminated)


def _terminated(number: int, _frame: FrameType | None) -> None:
    raise Stopped("terminated; the same command resumes", number)


def lost() -> bool:
    """Whether a process of the cluster that `connect` started on this machine has died. It does not recover then.

    There is no public function for this. Ray itself tells it to a person, after half a minute.
    """
    from ray._private import worker

    node = getattr(worker, "_global_node", None)
    if joins() or node is None:
        return False
    return any(name in _NEEDED for name, _ in node.dead_processes())


@contextmanager
def no_leftovers() -> Iterator[None]:
    """A context in which Ray Train runs. If it fails there, placement groups that this job has made are removed.

    Ray Train's own cleaner does not know a group whose controller died while its workers started. Such a group would
    keep their CPUs, and no worker could start again. In a sweep the groups of other trials belong to the same job, so
    nothing is removed there.
    """
    import ray

    driver = ray.get_runtime_context().worker.mode == ray.SCRIPT_MODE
    before = set(placement.of_this_job()) if driver else set()
    try:
        yield
    except Exception:
        if driver and not lost():
            for name, group in placement.of_this_job().items():
                if name not in before:
                    placement.give_back(group)
        raise


def addresses() -> list[str]:
    """Lines for a person: where the dashboard of the local cluster is, and how to log in there.

    The token is in a file of the cluster's own folder that only this user can read.
    """
    from ray._private import worker

    node = getattr(worker, "_global_node", None)
    address = getattr(node, "webui_url", None)
    if joins() or not address:
        return []
    token = os.environ.get("RAY_AUTH_TOKEN")
    if os.environ.get("RAY_AUTH_MODE") != "token" or not token:
        return [f"dashboard: http://{address}"]
    path = os.path.join(node.get_session_dir_path(), "token")  # type: ignore[union-attr]
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as file:
        file.write(token)
    return [f"dashboard: http://{address}; it asks for the token in {path}"]


def disconnect() -> None:
    """Leaves the cluster. A cluster that `connect` started ends. SIGTERM ends this process as it ends any other."""
    import ray

    if ray.is_initialized():
        ray.shutdown()
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is _terminated:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
