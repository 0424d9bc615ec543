"""The launcher of the whole stack: what it refuses is one line, and it ends nothing that is not its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

STACK = str(Path(__file__).parents[2] / "infra/local/stack.py")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, STACK, *words], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["env", "/tmp/no-stack"], "stack: /tmp/no-stack has no stack: start one with 'up'"),
        (["up", "/tmp/" + 50 * "x"], f"stack: /tmp/{50 * 'x'}: more than 43 characters are too long for Ray's sockets"),
    ],
)
def test_what_cannot_be_is_one_line(words: list[str], line: str) -> None:
    done = run(*words)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(line) and done.stderr.count("\n") == 1


def test_a_reused_process_id_is_not_ours(tmp_path: Path) -> None:
    """The file names this test's own process with another start time: it has ended, and is left alone."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/head.pid").write_text(f"{os.getpid()} 1\n")
    said = run("status", str(tmp_path))
    assert said.returncode == 1 and said.stdout.split() == ["head", "ended"]
    assert run("down", str(tmp_path)).returncode == 0
    assert not (tmp_path / "run/head.pid").exists()


def test_what_a_process_left_in_its_session_is_ended_too(tmp_path: Path) -> None:
    """A process that is ended by `down` may leave children; they are of the session that was begun for it."""
    (tmp_path / "run").mkdir()
    shell = subprocess.Popen(
        ["bash", "-c", "trap '' TERM; sleep 300 & echo $!; trap 'exit 0' TERM; wait"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert shell.stdout is not None
    child = int(shell.stdout.readline())  # it ignores SIGTERM, having inherited that
    began = Path(f"/proc/{shell.pid}/stat").read_text().rpartition(")")[2].split()[19]
    (tmp_path / "run/head.pid").write_text(f"{shell.pid} {began}\n")
    assert run("down", str(tmp_path)).returncode == 0
    assert shell.wait(10) is not None
    gone = Path(f"/proc/{child}/stat")
    assert not gone.exists() or gone.read_text().rpartition(")")[2].split()[0] in "ZX"
