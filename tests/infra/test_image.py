"""The image's recipe: what it copies reaches the builder, what runs is not root, everything has a version."""

from __future__ import annotations

import re
import tomllib

from tests.infra.manifests import ROOT, documents

RECIPE = (ROOT / "infra/image/Dockerfile").read_text()
LINES = [line for line in RECIPE.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
STAGES = {m[2]: m[1] for line in LINES if (m := re.fullmatch(r"FROM (\S+) AS (\S+)", line))}  # to what each begins from


def stage(name: str) -> list[str]:
    """The instructions of a stage, after those of the stages it is built on."""
    own, inside = [], False
    for line in LINES:
        if line.startswith("FROM "):
            inside = line.endswith(f" AS {name}")
        elif inside:
            own.append(line)
    return (stage(STAGES[name]) if STAGES[name] in STAGES else []) + own


def test_every_stage_begins_from_a_pinned_image() -> None:
    assert {"cpu", "gpu"} <= set(STAGES)
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)$", RECIPE, re.MULTILINE))
    outside = {base for base in STAGES.values() if base not in STAGES}
    (base,) = {re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], each) for each in outside}
    image, python = re.fullmatch(r"(\w+):(\d+\.\d+\.\d+)-slim-bookworm", base).groups()  # type: ignore[union-attr]
    assert image == "python"
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    low, high = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", wanted).groups()  # type: ignore[union-attr]
    assert int(low) <= int(python.split(".")[1]) < int(high)


def test_packages_come_by_the_constraints() -> None:
    installs = [line for line in LINES if "pip install" in line]
    assert installs
    assert [line for line in installs if "-c infra/constraints.txt" not in line and "--no-deps" not in line] == []


def test_both_targets_run_as_the_user_of_the_manifests() -> None:
    cluster = (ROOT / "infra/kubernetes/base/cluster.yaml").read_text()
    (document,) = documents(cluster)
    context = document["spec"]["headGroupSpec"]["template"]["spec"]["securityContext"]
    for target in ("cpu", "gpu"):
        users = [line.split()[1] for line in stage(target) if line.startswith("USER ")]
        assert users[-1] == f"{context['runAsUser']}:{context['runAsGroup']}"
        made = " ".join(line for line in stage(target) if "useradd" in line)
        home = re.search(r"HOME=(\S+)", " ".join(stage(target)))
        assert f"--uid {context['runAsUser']}" in made and "--create-home" in made
        assert home and f"--home-dir {home[1]}" in made


def test_kuberays_probes_find_their_command() -> None:
    assert any("apt-get install" in line and " wget" in line for line in stage("gpu"))


def lacks(instructions: list[str], packages: set[str]) -> set[str]:
    """Which of Debian's ``packages`` the instructions of a stage do not install, or remove again."""
    words = {word for line in instructions if "apt-get install" in line for word in line.split()}
    removed = any(re.search("apt-get (remove|purge|autoremove)", line) for line in instructions)
    return packages if removed else packages - words


def test_training_finds_its_compilers() -> None:
    """Triton calls `gcc` and torch `g++`, in the pod that trains. Python.h is in the base image, which compiled it."""
    compilers = {"gcc", "g++", "libc6-dev"}  # gcc only recommends the last, which has the headers of C
    for target in ("cpu", "gpu"):
        assert lacks(stage(target), compilers) == set(), target
        without = [re.sub(r" gcc\b", "", line) for line in stage(target)]
        assert lacks(without, compilers) == {"gcc"}
        assert lacks([*stage(target), "RUN apt-get purge --yes gcc"], compilers) == compilers


def test_nccl_finds_the_library_for_rdma() -> None:
    assert lacks(stage("gpu"), {"libibverbs1", "ibverbs-providers"}) == set()


def test_the_context_holds_what_is_copied_and_little_else() -> None:
    """BuildKit reads the ignore file that is named after the recipe."""
    lines = (ROOT / "infra/image/Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*", "everything is left out first"
    let_in = {line[1:] for line in rules if line.startswith("!")}
    copied = {source for line in LINES if line.startswith("COPY ") and "--from" not in line
              for source in line.split()[1:-1]}  # fmt: skip
    assert copied == let_in
    assert [path for path in copied if not (ROOT / path).exists()] == []
