"""Files, functions and jobs stay short; modules have names that say something, and classes names of their own."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "rayssl").rglob("*.py"))
JOBS = sorted((ROOT / "jobs").glob("*.py"))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_file_and_functions_are_short(path: Path) -> None:
    assert lines(path) <= 400, f"{name(path)}: more than 400 lines"
    functions = (
        n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    for node in functions:
        assert (node.end_lineno or 0) - node.lineno < 60, (
            f"{name(path)}:{node.lineno}: {node.name} has more than 60 lines"
        )


def test_jobs_are_at_most_20_lines() -> None:
    assert JOBS
    assert {name(path): lines(path) for path in JOBS if lines(path) > 20} == {}


def test_no_module_is_an_attic() -> None:
    attics = {"utils", "util", "misc", "helpers", "common"}
    assert [name(path) for path in SOURCES if attics & {*path.relative_to(ROOT).parts[:-1], path.stem}] == []


def test_one_class_name_for_one_thing() -> None:
    """A reader who finds a public class by its name finds the only one."""
    places: dict[str, list[str]] = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(f"{name(path)}:{node.lineno}")
    assert {kind: found for kind, found in places.items() if len(found) > 1} == {}
