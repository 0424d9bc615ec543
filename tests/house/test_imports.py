"""What may import what, and that importing does nothing else."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "rayssl").rglob("*.py"))
ACTS = {"print", "open", "read_text", "read_bytes", "write_text", "write_bytes", "load", "safe_load", "getenv"}
ACTS |= {"seed", "manual_seed", "set_num_threads", "set_start_method", "init", "init_process_group", "basicConfig"}


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything a file imports, wherever in the file, ``from a import b`` as ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def files_importing(package: str) -> set[str]:
    found = set()
    for path in SOURCES:
        names = imported(parsed(path))
        if any(name == package or name.startswith(package + ".") for name in names):
            found.add(str(path.relative_to(ROOT / "rayssl")))
    return found


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


def test_arrows() -> None:
    """The import-linter contracts of pyproject.toml."""
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-logo", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ray_only_in_runtime() -> None:
    assert {name for name in files_importing("ray") if not name.startswith("runtime/")} == set()


def test_torch_distributed_only_where_ranks_are_known() -> None:
    assert files_importing("torch.distributed") <= {"collectives.py"}
    uses = {
        str(path.relative_to(ROOT / "rayssl"))
        for path in SOURCES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Attribute) and node.attr == "distributed"
    }
    assert uses <= {"collectives.py"}


def test_everything_below_runtime_imports_without_ray_and_in_silence() -> None:
    """Also the command line, so that ``rayssl --help`` and ``show`` do not wait for Ray."""
    names = [module(path) for path in SOURCES if "runtime" not in path.parts and path.stem != "__main__"]
    code = f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\nsys.exit('ray' in sys.modules)"
    done = run(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_data_tasks_start_without_torch() -> None:
    names = [module(path) for path in SOURCES if {"data", "batches"} & {*path.relative_to(ROOT).parts}]
    names += [f"rayssl.views.{name}" for name in ("crops", "packed", "reading", "recipes")]
    code = f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\n"
    done = run(code + "print(sorted({'torch', 'torchaudio', 'ray'} & set(sys.modules)))")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


def test_no_import_goes_in_a_circle() -> None:
    """Imports inside functions count: they hide a circle from Python, not from a reader."""
    found = circles(import_graph({module(path): path.read_text() for path in SOURCES}))
    assert found == [], "modules that import each other: " + "; ".join(" <-> ".join(each) for each in found)


def import_graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """Which of the modules ``sources`` each of them imports, wherever in the file, but not for type checking alone.

    ``from a.b import c`` is an import of ``a.b.c`` where that is a module, else of ``a.b``. The packages above an
    imported module are not counted, although Python runs their ``__init__`` first.
    """
    graph = {}
    for name, source in sources.items():
        edges = set()
        for node in outside_type_checking(ast.parse(source)):
            if isinstance(node, ast.Import):
                edges |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                edges |= {each if each in sources else str(node.module) for each in names}
        graph[name] = (edges & sources.keys()) - {name}
    return graph


def outside_type_checking(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below ``node`` but those that only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in child.orelse:
                yield other
                yield from outside_type_checking(other)
            continue
        yield child
        yield from outside_type_checking(child)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one node (Tarjan, 1972), each sorted by name."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        number[node] = lowest[node] = len(number)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in number:
                visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in stack:
                lowest[node] = min(lowest[node], number[other])
        if lowest[node] == number[node]:
            place = stack.index(node)
            component = sorted(stack[place:])
            del stack[place:]
            if len(component) > 1:
                found.append(component)

    for node in sorted(graph):
        if node not in number:
            visit(node)
    return found


def test_circles_are_seen() -> None:
    """Also one through a function and a package's own file; not one that only a type checker sees."""
    sources = {
        "a": "",
        "a.b": "def f():\n    from a import c\n",
        "a.c": "import a.d.e\n",
        "a.d": "from a.d.e import name\n",
        "a.d.e": "from a.b import name\n",
        "a.f": "if TYPE_CHECKING:\n    from a.g import name\n",
        "a.g": "import a.f, a.d\n",
    }
    assert circles(import_graph(sources)) == [["a.b", "a.c", "a.d.e"]]
    sources["a.d.e"] = "from a.b import name\nfrom a.d import other\n"
    assert circles(import_graph(sources)) == [["a.b", "a.c", "a.d", "a.d.e"]]


def test_what_a_driver_imports_before_it_connects_does_not_import_ray() -> None:
    """`ray` reads how to authenticate when it is imported. The other modules are for actors, and are imported later."""
    actors = ("memory", "bench", "tune", "group")
    paths = [path for path in SOURCES if "runtime" in path.parts and not {path.stem, *path.parts} & set(actors)]
    names = [module(path) for path in paths]
    assert {"rayssl.runtime.banks", "rayssl.runtime.ingest", "rayssl.runtime.signals"} <= set(names)
    code = f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\nsys.exit('ray' in sys.modules)"
    assert run(code).returncode == 0


def test_ingest_imports_neither_torch_nor_ray() -> None:
    """Its tasks read without a network. And `ray` reads how to authenticate when it is imported: `connect` says it."""
    done = run("import sys, rayssl.runtime.ingest\nprint(sorted({'torch', 'ray', 'ray.data'} & set(sys.modules)))")
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_the_controller_of_ray_train_starts_without_torch() -> None:
    """It unpickles these by their names, and its start precedes that of the workers."""
    names = [f"rayssl.runtime.{name}" for name in ("group", "ingest")]
    code = f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\n"
    done = run(code + "print('torch' in sys.modules)")
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=module)
def test_nothing_happens_at_import(path: Path) -> None:
    """At module and class level there is no bare call, nothing is printed, read or seeded, no variable looked up."""
    acts = []
    for node in at_import(parsed(path)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            acts.append(node.lineno)
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            acts += [node.lineno] if called in ACTS else []
        elif isinstance(node, ast.Attribute) and node.attr == "environ":
            acts.append(node.lineno)
    assert acts == [], f"{module(path)} acts when it is imported, on lines {acts}"


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the module is imported: everything outside function bodies and ``if __name__``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Lambda) or (isinstance(child, ast.If) and "__name__" in ast.unparse(child.test)):
            continue
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            for runs in (*child.decorator_list, child.args):
                yield runs
                yield from at_import(runs)
            continue
        yield child
        yield from at_import(child)


def test_the_acts_are_seen() -> None:
    """The walk above finds what it looks for and leaves function bodies alone."""
    source = "import os\nx = os.environ['A']\nclass C:\n    y = open('f')\ndef f():\n    print(1)\nf()\n"
    seen = list(at_import(ast.parse(source)))
    assert sorted(node.lineno for node in seen if isinstance(node, ast.Call)) == [4, 7]
    assert [node.lineno for node in seen if isinstance(node, ast.Attribute)] == [2]


def test_parquet_files_are_read_without_threads_of_pyarrow() -> None:
    """See `rayssl.data.listed.parquet_file`: a process that ended right after such a reading aborted now and then."""
    wrong = []
    for path in sorted(Path("rayssl").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            given = {each.arg for each in node.keywords} | {"**" for each in node.keywords if each.arg is None}
            opens = node.func.attr == "ParquetFile" and path.name != "listed.py"
            threads = node.func.attr in ("read_row_group", "read_row_groups", "read_table") and not given & {
                "use_threads", "**",
            }  # fmt: skip
            if opens or threads:
                wrong.append(f"{path}:{node.lineno}")
    assert wrong == []
