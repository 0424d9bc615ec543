"""The verbs list, completion and show."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from rayssl.cli import main
from rayssl.data.sources.registry import SOURCES
from rayssl.methods.registry import METHODS
from rayssl.models.registry import BACKBONES, FRONTENDS
from tests import outside

ROOT = Path(__file__).parents[2]


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("methods", [*METHODS.builtin]),
        ("encoders", [*FRONTENDS.builtin, *BACKBONES.builtin]),
        ("sources", [*SOURCES.builtin]),
    ],
)
def test_each_name_has_a_line(
    what: str, names: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    lines = printed(capsys, "list", what).splitlines()
    said = {line.split()[0]: line.split()[1:] for line in lines if line.startswith("  ")}
    assert set(names) <= set(said)
    assert [name for name in names if len(said[name]) < 5] == []


def test_installed_packages_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the first line of their class, and with what is wrong if they cannot be imported."""
    monkeypatch.setenv("COLUMNS", "200")
    info = tmp_path / "listed_tunes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: listed-tunes\nVersion: 1.0\n")
    points = "detached_tunes = listed_tunes:Detached\nbroken_tunes = listed_absent:Contrast\n"
    (info / "entry_points.txt").write_text(f"[rayssl.methods]\n{points}")
    outside.write(tmp_path, outside.METHOD, "listed_tunes.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    shown = printed(capsys, "list", "methods")
    assert "Rows of other ranks come without gradient. (package listed-tunes)" in shown
    assert "cannot be used: 'listed_absent:Contrast': no module 'listed_absent'" in shown
    assert "with method.name: detached_tunes" in printed(capsys, "keys", "detached_tunes")
    assert '"detached_tunes"' in printed(capsys, "schema")
    assert '"detached_tunes"' not in printed(capsys, "schema", "--built-in")


def test_configurations_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(ROOT / "configs/sweep_synthetic.yaml", tmp_path)
    (tmp_path / "below").mkdir()
    shutil.copy(ROOT / "configs/gsc_prepare.yaml", tmp_path / "below")
    (tmp_path / "other.yaml").write_text("kind: Pod\n---\nkind: Pod\n")
    (tmp_path / "compose.yaml").write_text("services: {}\n")
    shown = printed(capsys, "list", "configs", str(tmp_path))
    assert shown.index("preparation:") < shown.index("gsc_prepare.yaml") < shown.index("sweep:")
    assert "other.yaml" not in shown and "compose.yaml" not in shown
    assert main(["list", "configs", str(tmp_path / "absent")]) == 2
    assert "no configurations of rayssl there" in capsys.readouterr().err


def test_completion_of_bash_is_a_script(capsys: pytest.CaptureFixture[str]) -> None:
    """Bash reads it, and completes verbs, options and choices with it."""
    script = printed(capsys, "completion", "bash")
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    ask = (
        'COMP_WORDS=("${words[@]}"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=(); '
        '_shtab_rayssl; echo "${COMPREPLY[@]}"'
    )

    def completed(*words: str) -> set[str]:
        given = " ".join(f"'{word}'" for word in words)
        whole = f"{script}\nwords=({given}); {ask}"
        done = subprocess.run([bash, "-c", whole], capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    assert {"train", "prepare", "keys", "completion"} <= completed("rayssl", "")
    assert completed("rayssl", "li") == {"list"}
    assert completed("rayssl", "list", "m") == {"methods"}
    assert "--local" in completed("rayssl", "train", "--")


def test_completion_of_zsh_has_verbs_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    script = printed(capsys, "completion", "zsh")
    assert script.startswith("#compdef rayssl") and "--checkpoint" in script and "_files" in script


def test_a_preparation_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed(capsys, "show", str(ROOT / "configs/gsc_prepare.yaml"), "corpora.train.shard_utterances=64")
    lines = {line.split()[0]: line.split()[-1] for line in shown.splitlines()}
    assert lines["corpora.train.source.name"] == "file"
    assert lines["corpora.train.shard_utterances"] == "override"
    assert lines["storage.patience_s"] == "default"
    assert main(["show", str(ROOT / "configs/gsc_prepare.yaml"), "corpora.train.sorce=1"]) == 2
    assert "did you mean 'source'" in capsys.readouterr().err


def test_a_sweep_is_shown_with_its_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(ROOT / "configs/sweep_synthetic.yaml")
    shown = printed(capsys, "show", path, "trials=3", "training.batch=32")
    ours, _, theirs = shown.partition("\n# the experiment that its trials change, ")
    lines = {line.split()[0]: line.split()[-1] for line in ours.splitlines()}
    assert (lines["trials"], lines["metric"], lines["concurrent"]) == ("override", "file", "default")
    origins = {line.split()[0]: line.split()[-1] for line in theirs.splitlines()[1:]}
    assert theirs.splitlines()[0].endswith("configs/synthetic_ssps.yaml")
    assert (origins["training.batch"], origins["training.epochs"]) == ("override", "override")
    assert (origins["views.segment_s"], origins["ray.silent_s"]) == ("file", "default")
