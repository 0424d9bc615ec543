"""Layers, bounds, and the servers of the test session: one S3 server, one Ray cluster, one pool of ranks.

`pytest` alone runs the default layer: tests without a mark, each well under a second, pure. The marks are the other
layers: `long` (seconds each, as pure as the default layer), `ranks`, `s3`, `pages`, `ray`, `gpu`; `--layers all` runs
them all.
`infra/local/test.sh` runs those of `ray` after the others, alone. `slow` runs only when it is asked for.
"""

from __future__ import annotations

import os
import secrets

# Before torch, numpy and ray are imported: they read these once. Thread pools of two cores' tests fight otherwise.
# Ray listens on more than loopback: as in rayssl.runtime.cluster, only processes of this session know the token.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if "RAY_AUTH_MODE" not in os.environ:
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (
    "long",
    "ranks",
    "s3",
    "pages",
    "ray",
    "gpu",
)  # in running order, after the default layer; `slow` is its own
pytest_plugins = ["tests.ranks_pool"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--layers",
        default="default",
        help="comma-separated: default, long, ranks, s3, pages, ray, gpu, slow, or all (all but slow); files named on "
        "the command line and -m run whatever they select",
    )


def layers_of(item: pytest.Item) -> set[str]:
    """The layers a test needs, by its marks; no mark is the default layer."""
    return {name for name in (*LAYERS, "slow") if item.get_closest_marker(name)} or {"default"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects the layers not asked for and orders the rest: default, long, ranks, s3, pages, ray, gpu."""
    wanted = set(config.getoption("--layers").split(","))
    unknown = wanted - {"default", *LAYERS, "slow", "all"}
    if unknown:
        raise pytest.UsageError(f"--layers: unknown {', '.join(sorted(unknown))}")
    if "all" in wanted:
        wanted |= {"default", *LAYERS}
    named = [Path(argument.split("::")[0]).resolve() for argument in config.args if ".py" in argument]
    if not config.getoption("-m"):
        kept = [item for item in items if layers_of(item) <= wanted or item.path in named]
        chosen = set(kept)
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = kept
    items.sort(key=lambda item: max((LAYERS.index(n) + 1 for n in layers_of(item) if n in LAYERS), default=0))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """One intra-op thread, so that results and times do not depend on the machine's cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def the_disk_is_not_waited_for() -> Iterator[None]:
    """`os.fsync` does nothing in this process: no test cuts the power, and on a busy disk each call takes long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def _launcher() -> ModuleType:
    """The project's own object store launcher, as a module."""
    spec = importlib.util.spec_from_file_location("objectstore", ROOT / "infra/local/objectstore.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class S3Server:
    """A running S3 server; its variables are in the environment of the session."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.endpoint = environment["AWS_ENDPOINT_URL"]
        self.access_key = environment["AWS_ACCESS_KEY_ID"]
        self.secret_key = environment["AWS_SECRET_ACCESS_KEY"]

    def bucket(self, name: str) -> str:
        """Creates the bucket if it is new (at least 3 characters) and returns its URI ``s3://name``."""
        import s3fs

        s3fs.S3FileSystem().call_s3("create_bucket", Bucket=name)
        return f"s3://{name}"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for a store because an earlier one has trained."""
    monkeypatch.setenv("RAYSSL_STORAGE_PATIENCE_S", "")


@pytest.fixture(scope="session")
def object_store_launcher() -> ModuleType:
    """``infra/local/objectstore.py`` as a module; skips where the servers it starts are not installed."""
    launcher = _launcher()
    absent = launcher.missing_commands()
    if absent:
        pytest.skip(f"no S3 server here: {', '.join(absent)} not installed (packages radosgw, ceph-mon, ceph-osd)")
    return launcher


@pytest.fixture(scope="session")
def s3_server(object_store_launcher: ModuleType) -> Iterator[S3Server]:
    """One Ceph S3 gateway for the session, started by the project's own launcher; sets AWS_* in the environment."""
    import signal

    folder = Path(tempfile.mkdtemp(prefix="rs3-"))
    store = object_store_launcher.Store(folder)
    before = dict(os.environ)
    try:
        environment = store.up()
        os.environ.update(environment)
        yield S3Server(environment)
    finally:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if name.startswith("AWS_")})
        store.stop(signal.SIGTERM)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def ray_cluster(request: pytest.FixtureRequest) -> Iterator[Any]:
    """One local Ray cluster for the session: 8 logical CPUs, no dashboard. Yields the module ``ray``.

    Workers inherit the environment that the cluster was started in, so the S3 server comes first where any test of
    the session uses both.
    """
    asked = any({"s3_server", "ray_cluster"} <= set(getattr(i, "fixturenames", ())) for i in request.session.items)
    if asked and not _launcher().missing_commands():
        request.getfixturevalue("s3_server")
    import ray

    folder = tempfile.mkdtemp(prefix="rray-")  # short: Ray puts sockets below it
    ray.init(
        address="local",  # never joins a cluster that happens to run here
        num_cpus=8,
        include_dashboard=False,
        object_store_memory=400 * 1024**2,
        _temp_dir=folder,
        log_to_driver=False,
        configure_logging=False,
        _system_config={"metrics_report_interval_ms": 5_000},  # not 10 s: tests of figures wait for several of these
    )
    try:
        yield ray
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def night_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `tests.small_nights.make`, for tests that only read it."""
    from tests.small_nights import make

    return make(tmp_path_factory.mktemp("nights") / "small")
