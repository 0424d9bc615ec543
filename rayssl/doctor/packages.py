"""Checks installed packages against the requirements of rayssl and its dependencies, and whether torch has a GPU."""

from __future__ import annotations

import importlib
import importlib.metadata
import tomllib
from collections.abc import Callable
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from rayssl.doctor.findings import Finding, fail, ok, warn

_Requires = Callable[[str], list[str]]
_Version = Callable[[str], str]
INSTALL = "pip install -c infra/constraints.txt -e ."


def packages() -> list[Finding]:
    """Checks the requirements of rayssl and of its dependencies, and that torchaudio fits torch."""
    own = requirements()
    if own is None:
        return [warn("packages", "rayssl is not installed, and there is no pyproject.toml beside it", INSTALL)]
    return [*required(own), torch_pair()]


def requirements() -> list[str] | None:
    """What rayssl requires, from its metadata or else from the checkout's pyproject.toml; None if both are missing."""
    try:
        return importlib.metadata.requires("rayssl") or []
    except importlib.metadata.PackageNotFoundError:
        project = Path(__file__).parents[2] / "pyproject.toml"
        if not project.is_file():
            return None
        return list(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"])


def required(
    own: list[str],
    version: _Version = importlib.metadata.version,
    requires: _Requires = lambda name: importlib.metadata.requires(name) or [],
) -> list[Finding]:
    """A finding for each requirement that is not met, of rayssl or of a dependency. If all are met, one finding."""
    todo = [("rayssl", text, frozenset[str]()) for text in own]
    done: set[tuple[str, frozenset[str]]] = set()
    seen: dict[str, str] = {}
    wrong: dict[str, Finding] = {}
    while todo:
        by, text, extras = todo.pop()
        requirement = _applying(text, extras)
        if requirement is None:
            continue
        name = canonicalize_name(requirement.name)
        try:
            seen[name] = version(name)
        except importlib.metadata.PackageNotFoundError:
            wrong.setdefault(name, fail("packages", f"{name} is not installed, {by} needs it", _fix(requirement)))
            continue
        if not requirement.specifier.contains(seen[name], prereleases=True):
            said = f"{name} {seen[name]} is installed, {by} needs {requirement.specifier}"
            wrong.setdefault(name, fail("packages", said, _fix(requirement)))
        key = (name, frozenset(requirement.extras))
        if key not in done:
            done.add(key)
            todo += [(name, each, key[1]) for each in requires(name)]
    if wrong:
        return list(wrong.values())
    shown = ", ".join(f"{name} {seen[name]}" for name in ("torch", "torchaudio", "ray") if name in seen)
    return [ok("packages", f"{len(seen)} are as required ({shown})")]


def torch_pair() -> Finding:
    """Whether torchaudio has torch's version and build, and can be imported with it."""
    try:
        found = {name: importlib.metadata.version(name) for name in ("torch", "torchaudio")}
    except importlib.metadata.PackageNotFoundError as error:
        return fail("torch", f"{error.name} is not installed", INSTALL)
    said = f"torch {found['torch']}, torchaudio {found['torchaudio']}"
    releases = {version.partition("+")[0].rpartition(".")[0] for version in found.values()}
    builds = {version.partition("+")[2] for version in found.values()}
    fix = "install both in one version, from one source: their builds must be for the same CUDA, or both for CPUs"
    if len(releases) > 1:
        return fail("torch", f"{said} do not belong together", fix)
    try:
        importlib.import_module("torchaudio")
    except (ImportError, OSError, RuntimeError) as error:
        return fail("torch", f"{said}: {' '.join(str(error).split())[:160]}", fix)
    if len(builds) > 1:
        return warn("torch", f"{said} are of different builds", fix)
    return ok("torch", f"{said} belong together")


def gpu() -> Finding:
    """Whether torch finds the GPUs, computes correctly on them in bf16, and has NCCL."""
    import torch

    from rayssl.training.kernels import triton_lacks

    driver = Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidia0").exists()
    if not torch.cuda.is_available():
        if driver:
            build = torch.version.cuda or "none"
            return fail(
                "GPU", f"there is a driver, but torch cannot use it (built for CUDA {build})",
                "install torch for a CUDA that the driver supports (nvidia-smi shows it), and start the container with "
                "its GPUs",
            )  # fmt: skip
        return ok("GPU", "none; training runs on CPUs (ray.gpu=false)")
    names = []
    for index in range(torch.cuda.device_count()):
        one = torch.cuda.get_device_properties(index)
        try:
            values = torch.ones(64, 64, device=f"cuda:{index}", dtype=torch.bfloat16)
            right = float((values @ values).sum()) == 64**3
        except RuntimeError as error:
            text = " ".join(str(error).split())[:160]
            return fail("GPU", f"cuda:{index} {one.name} does not compute: {text}", "check it with nvidia-smi")
        if not right:
            return fail("GPU", f"cuda:{index} {one.name} computes wrong values", "do not use it")
        names.append(f"{one.name} ({one.total_memory / 2**30:.0f} GiB)")
    said = f"{', '.join(names)}, CUDA {torch.version.cuda}"
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        return warn("GPU", f"{said}, no bf16", "train with training.precision=fp32")
    try:
        version = ".".join(map(str, torch.cuda.nccl.version()))
    except (RuntimeError, AttributeError):
        return warn("GPU", f"{said}, bf16, no NCCL", "install a torch with NCCL: ranks on GPUs communicate through it")
    return kernels(f"{said}, bf16, NCCL {version}", triton_lacks())


def kernels(said: str, lacks: str | None) -> Finding:
    """Whether kernels can be made for the GPUs: ``lacks`` as `rayssl.training.kernels.triton_lacks` says it."""
    if lacks is None:
        return ok("GPU", said)
    fix = "install it (on Debian: gcc, python3-dev): without it ECAPA-TDNN is not compiled, and k-means is slower"
    return warn("GPU", f"{said}, but {lacks} was not found", fix)


def _applying(text: str, extras: frozenset[str]) -> Requirement | None:
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        return None
    marker = requirement.marker
    if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in (extras or {""})):
        return None
    return requirement


def _fix(requirement: Requirement) -> str:
    return f"{INSTALL} (or pip install '{requirement.name}{requirement.specifier}')"
