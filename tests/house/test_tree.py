"""What lies in the tree: its top level, no machine's paths, no registries, no data; tests and texts that keep up."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOP = {
    "pyproject.toml",
    "rayssl",
    "jobs",
    "configs",
    "infra",
    "tests",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    ".ci",
    ".gitignore",
    ".gitattributes",
}
# Written so that this file does not match itself.
REGISTRIES = re.compile(
    r"py[p]i\.org|python[h]osted|npm[j]s|deb[i]an\.org|[-]-(extra-)?index[-]url|conda\.anaconda[.]org"
)
MACHINE = re.compile(r"(?<![\w.])/(wor[k]|far[m]|roo[t]|hom[e])/|/tmp/bash_job[s]")


def tree() -> list[Path]:
    """Files that git tracks or would: in an unpacked archive without git, everything that is not hidden."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        paths = [ROOT / line for line in done.stdout.splitlines()]
    else:
        paths = [p for p in ROOT.rglob("*") if not any(part.startswith(".") for part in p.relative_to(ROOT).parts)]
    return sorted(path for path in paths if path.is_file())


def text(path: Path) -> str:
    return path.read_text(errors="replace")


PYPROJECT = tomllib.loads(text(ROOT / "pyproject.toml"))


def hits(pattern: re.Pattern[str]) -> list[str]:
    found = []
    for path in tree():
        for number, line in enumerate(text(path).splitlines(), 1):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    return found


def test_top_level() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in tree()} <= TOP


def test_no_registry_is_named() -> None:
    assert hits(REGISTRIES) == []


def test_no_path_of_one_machine() -> None:
    assert hits(MACHINE) == []


def test_nothing_is_both_tracked_and_ignored() -> None:
    """`ray job submit` leaves out of its copy what `.gitignore` names, tracked or not."""
    command = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == []  # nothing as well where there is no git


def test_package_data_names_what_exists() -> None:
    """An installed package has every file below `rayssl`, and no pattern is of files that are gone."""
    found: set[Path] = set()
    for package, patterns in PYPROJECT["tool"]["setuptools"]["package-data"].items():
        for pattern in patterns:
            matched = set((ROOT / package.replace(".", "/")).glob(pattern))
            assert matched, f"package-data: {package} has no {pattern}"
            found |= matched
    others = {path for path in tree() if path.is_relative_to(ROOT / "rayssl") and path.suffix != ".py"}
    assert others == found


def test_no_large_files() -> None:
    assert [str(path.relative_to(ROOT)) for path in tree() if path.stat().st_size > 500_000] == []


def test_constraints_are_plain_pins() -> None:
    """``name==version`` only: no address, no path, no hash of one platform; every dependency has its pin."""
    lines = [line for line in text(ROOT / "infra/constraints.txt").splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+", line)] == []
    pinned = {canonical(line.split("==")[0]) for line in lines}
    project = PYPROJECT["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    assert {canonical(re.split(r"[\[<>=! ]", name)[0]) for name in wanted} - pinned == set()


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


LOSSES = sorted(path.stem for path in (ROOT / "rayssl/losses").glob("*.py") if path.stem != "__init__")
SHARED = {"rows"}  # by losses: ranks see it through each of them


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_tested_alone_and_on_ranks(loss: str) -> None:
    assert (ROOT / f"tests/losses/test_{loss}.py").exists(), f"tests/losses/test_{loss}.py is missing"
    if loss in SHARED:
        return
    on_ranks = [
        path for path in (ROOT / "tests").rglob("test_*.py") if re.search(r"mark\.ranks|pytestmark.*ranks", text(path))
    ]
    module = re.compile(rf"rayssl\.losses\.{loss}\b|from rayssl\.losses import [^\n]*\b{loss}\b")
    assert any(module.search(text(path)) for path in on_ranks), (
        f"no test with the mark 'ranks' imports rayssl.losses.{loss}"
    )


def test_docstrings_and_lint() -> None:
    """Ruff's rules of pyproject.toml, among them: every public module, class and function has a docstring."""
    ruff = str(Path(sys.executable).parent / "ruff")
    done = subprocess.run(
        [ruff, "check", "--no-cache", "--output-format", "concise"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]


README = ROOT / "README.md"
TEXTS = [path for path in tree() if path.suffix == ".md"]
CONFIGS = sorted((*(ROOT / "configs").glob("*.yaml"), *(ROOT / "configs").glob("*/*.yaml")))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of a text in ``language``."""
    return re.findall(rf"^```{language}\n(.*?)^```", text(path), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", TEXTS, ids=relative)
def test_text_names_files_that_exist(path: Path) -> None:
    """Names begin at the project's root, links at the text's own folder."""
    named = set(re.findall(r"(?<![\w/])(?:rayssl|jobs|configs|infra|tests|\.ci)/[\w./-]*\w", text(path)))
    assert {name for name in named if not (ROOT / name).exists()} == set()
    links = {link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text(path)) if "://" not in link}
    assert {link for link in links if not (path.parent / link).exists()} == set()


def test_readme_is_short() -> None:
    assert len(text(README).splitlines()) <= 130


def test_readme_leads_to_every_other_text() -> None:
    """Directly, or by way of a text that it links to."""
    seen, waiting = set(), [README]
    while waiting:
        path = waiting.pop()
        seen.add(path)
        links = {(path.parent / link).resolve() for link in re.findall(r"\]\(([^)#\s]+\.md)[^)]*\)", text(path))}
        waiting += [link for link in links if link in TEXTS and link not in seen]
    assert {relative(path) for path in TEXTS} - {relative(path) for path in seen} == set()


def test_the_first_files_by_hand_are_valid() -> None:
    from rayssl.data.corpus import PrepareConfig
    from rayssl.experiment.config import Experiment
    from rayssl.schema import load_yaml, parse

    path = ROOT / "configs/README.md"
    trees = [load_yaml(part, path.name) for block in blocks(path, "yaml") for part in block.split("\n---\n")]
    kinds = {"corpora": PrepareConfig, "run": Experiment}  # other blocks are parts of files
    read = [parse(kind, tree, path.name) for tree in trees for key, kind in kinds.items() if key in tree]
    assert {type(config) for config in read} == {PrepareConfig, Experiment}


@pytest.mark.parametrize("path", CONFIGS, ids=relative)
def test_every_configuration_is_named(path: Path) -> None:
    name = re.escape(path.relative_to(ROOT / "configs").as_posix())
    assert re.search(rf"(?<![\w/-]){name}", text(ROOT / "configs/README.md")), f"configs/README.md does not name {name}"


def test_commands_exist() -> None:
    """Every ``rayssl VERB`` in a block of commands is a verb with a help text."""
    lines = "".join(block for path in TEXTS for block in blocks(path, "sh"))
    verbs = set(re.findall(r"^\s*rayssl (\w+)", lines, re.MULTILINE))
    assert {"prepare", "train", "evaluate", "report"} <= verbs
    calls = "; ".join(f"call([{verb!r}, '--help'])" for verb in sorted(verbs))
    code = (
        "from rayssl.cli import main\n"
        "def call(argv):\n"
        "    try: main(argv)\n"
        "    except SystemExit as end: assert end.code == 0, argv\n" + calls
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
