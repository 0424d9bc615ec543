"""What lies in the tree: its top level, no machine's paths, no registries, no data; tests and README that keep up."""

from __future__ import annotations

import re
import subprocess
import sys
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


def test_no_large_files() -> None:
    assert [str(path.relative_to(ROOT)) for path in tree() if path.stat().st_size > 500_000] == []


def test_constraints_are_plain_pins() -> None:
    """``name==version`` only: no address, no path, no hash of one platform; every dependency has its pin."""
    lines = [line for line in text(ROOT / "infra/constraints.txt").splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+", line)] == []
    pinned = {canonical(line.split("==")[0]) for line in lines}
    import tomllib

    project = tomllib.loads(text(ROOT / "pyproject.toml"))["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    assert {canonical(re.split(r"[\[<>=! ]", name)[0]) for name in wanted} - pinned == set()


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


LOSSES = sorted(path.stem for path in (ROOT / "rayssl/losses").glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_tested_alone_and_on_ranks(loss: str) -> None:
    assert (ROOT / f"tests/losses/test_{loss}.py").exists(), f"tests/losses/test_{loss}.py is missing"
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


README = text(ROOT / "README.md") if (ROOT / "README.md").exists() else ""


def test_readme_names_files_that_exist() -> None:
    named = set(re.findall(r"(?<![\w/])(?:rayssl|jobs|configs|infra|tests|\.ci)/[\w./-]*\w", README))
    assert named
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_readme_commands_exist() -> None:
    """Every ``rayssl VERB`` of the README is a verb with a help text."""
    verbs = set(re.findall(r"^\s*rayssl (\w+)", README, re.MULTILINE))
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
