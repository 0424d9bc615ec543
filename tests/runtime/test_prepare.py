"""``rayssl prepare`` on a Ray cluster makes what the pure functions make."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rayssl.data import corpus, trials
from rayssl.data.corpus import PrepareConfig
from rayssl.errors import CorpusError, StorageError
from tests.data.corpora import clips, encoded, files_below, folder_config, prepare, sine, write_folder, write_parquet
from tests.data.sources.tones import corpus_of, tones_file

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]


def test_tasks_make_the_same_corpus_and_a_second_run_reuses_it(ray_cluster: Any, tmp_path: Path) -> None:
    from rayssl.runtime import prepare as runtime

    changes = {"conditions": {"count": 4, "per_utterance": 2}}
    wanted = {"trials": {"t": {"out": str(tmp_path / "trials.txt"), "pairs": 10}}}
    prepare(folder_config(tmp_path / "in", tmp_path / "alone", **changes))
    config = PrepareConfig(corpora={"small": folder_config(tmp_path / "in", tmp_path / "out", **changes, **wanted)})
    summary = runtime.prepare(config, progress=False)
    assert files_below(tmp_path / "out") == files_below(tmp_path / "alone")
    assert not summary.corpora["small"].reused
    assert summary.corpora["small"].trials["t"].targets == 10
    assert "small: 24 utterances" in summary.text()
    assert len(trials.read(str(tmp_path / "trials.txt"))) == 20
    assert runtime.prepare(config, progress=False).corpora["small"].reused
    assert runtime.verify_corpora(config) == []


@pytest.mark.parametrize("changes", [{}, {"conditions": {"count": 4, "per_utterance": 2}, "join": {"min_s": 0.4}}])
def test_tasks_list_plan_and_make_the_corpus_of_one_process(
    changes: dict[str, Any], ray_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine parts are listed in tasks in some order, and the tasks find their rows in files."""
    from rayssl.runtime import prepare as runtime

    for k in range(9):
        write_parquet(
            tmp_path / f"in/{k}.parquet", {f"spk{k}/rec{n // 2}/{n}.flac": encoded(sine(n)) for n in range(4)}
        )
    for out, local in (("alone", True), ("out", False)):
        source = {"name": "parquet", "uri": str(tmp_path / "in"), "recording": "session"}
        corpus = {"source": source, "out": str(tmp_path / out), "shard_utterances": 5, **changes}
        config = PrepareConfig.model_validate({"corpora": {"small": corpus}})
        runtime.prepare(config, progress=False, local=local)
        monkeypatch.setattr("rayssl.data.sorting._RUN_BYTES", 500)
    assert files_below(tmp_path / "out") == files_below(tmp_path / "alone")
    assert runtime.verify_corpora(config) == []


def test_overwriting_must_be_asked_for(ray_cluster: Any, tmp_path: Path) -> None:
    from rayssl.runtime import prepare as runtime

    prepare(folder_config(tmp_path / "in", tmp_path / "out"))
    other = PrepareConfig(corpora={"small": folder_config(tmp_path / "in", tmp_path / "out", format="pcm16")})
    with pytest.raises(CorpusError, match="--overwrite"):
        runtime.prepare(other, progress=False)
    assert runtime.prepare(other, progress=False, overwrite=True).corpora["small"].manifest.format == "pcm16"


def test_an_error_in_a_task_is_the_users_one_line(ray_cluster: Any, tmp_path: Path) -> None:
    from rayssl.runtime import prepare as runtime

    settings = folder_config(tmp_path / "in", tmp_path / "out", clips() | {"spk0/rec0/bad.wav": b"text" * 99})
    with pytest.raises(CorpusError, match=r"1 of 13 utterances .*max_reject_share"):
        runtime.prepare(PrepareConfig(corpora={"small": settings}), progress=False)
    blocked = folder_config(tmp_path / "in2", tmp_path / "in2" / "spk0/rec0/00.flac" / "out")
    with pytest.raises(StorageError, match=r"00\.flac") as caught:
        runtime.prepare(PrepareConfig(corpora={"small": blocked}), progress=False)
    assert "\n" not in str(caught.value)


def test_splits_are_made_renewed_and_told(ray_cluster: Any, tmp_path: Path) -> None:
    from rayssl.runtime import prepare as runtime

    uri = write_folder(tmp_path / "in", clips())

    def config(**splits: Any) -> PrepareConfig:
        source = {"name": "folder", "uri": uri, "layout": ["label", "recording"]}
        corpus = {"source": source, "out": str(tmp_path / "out"), "shard_utterances": 5, "splits": splits}
        return PrepareConfig.model_validate({"corpora": {"small": corpus}})

    quarter = {"labelled": {"share": 0.25}}
    first = runtime.prepare(config(quarter=quarter), progress=False)
    assert "\n  split quarter: 3 labelled of 3 classes, 9 unlabelled" in first.text()
    second = runtime.prepare(config(quarter=quarter, ten={"labelled": {"per_class": 10}}), progress=False)
    assert second.corpora["small"].reused
    assert second.text().splitlines()[1:] == [
        "  split quarter: 3 labelled of 3 classes, 9 unlabelled",
        "  split ten: 12 labelled of 3 classes, 0 unlabelled",
        "    18 fewer labelled than asked for, too few utterances in 3 classes: "
        "spk0 4 of 10, spk1 4 of 10, spk2 4 of 10",
        "    no utterance is unlabelled",
    ]
    damaged = tmp_path / "out" / "splits" / "ten.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert [problem.partition(": ")[0] for problem in runtime.verify_corpora(config())] == [str(damaged)] * 2
    both = config(quarter=quarter, ten={"labelled": {"per_class": 10}})
    assert runtime.prepare(both, progress=False).corpora["small"].manifest == second.corpora["small"].manifest
    assert runtime.verify_corpora(both) == []


def test_tasks_prepare_a_source_in_a_users_file(
    ray_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file travels with the settings; listing in tasks and here is the same, and what it raises is one line."""
    from rayssl.runtime import prepare as runtime

    parts = "    def parts(self): return [str(k) for k in range(self.config.speakers)]\n"
    parts += (
        "    def list_part(self, part): return [r for r in self.list() if str(r.locator[0]) == part]\n    def read(self"
    )
    tones_file(tmp_path, "    def read(self", parts)
    monkeypatch.chdir(tmp_path)
    source = {"name": "tones.py:Tones", "speakers": 9}  # in as many parts, so that tasks list them
    prepare(corpus_of(source, tmp_path / "alone"))
    config = PrepareConfig(corpora={"small": corpus_of(source, tmp_path / "out")})
    manifest = runtime.prepare(config, progress=False).corpora["small"].manifest
    assert manifest.rows == 36
    assert files_below(tmp_path / "out") == files_below(tmp_path / "alone")
    deaf = PrepareConfig(corpora={"small": corpus_of({**source, "tones": -1}, tmp_path / "deaf")})
    with pytest.raises(CorpusError, match=r"the source tones\.py:Tones: no utterances found"):
        runtime.prepare(deaf, progress=False)
    (tmp_path / "broken").mkdir()
    name = tones_file(
        tmp_path / "broken", "        if tone == 9:", "        if tone == 1: tone /= 0\n        if tone == 9:"
    )
    broken = PrepareConfig(corpora={"small": corpus_of({"name": name}, tmp_path / "none")})
    with pytest.raises(CorpusError, match=r"reading failed at 'p\d/1': ZeroDivisionError: .* of tones\.py") as caught:
        runtime.prepare(broken, progress=False)
    assert "\n" not in str(caught.value)


def test_a_node_that_lacks_what_a_source_imports_says_so(ray_cluster: Any, tmp_path: Path) -> None:
    from rayssl.runtime import prepare as runtime

    need = (
        "\nimport os\nif os.environ.get('RAYSSL_TEST_DRIVER') is None: import nowhere_installed\nclass Tones(Source):"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYSSL_TEST_DRIVER", "1")
        name = tones_file(tmp_path, "\nclass Tones(Source):", need)
        config = PrepareConfig(corpora={"small": corpus_of({"name": name}, tmp_path / "out")})
    with pytest.raises(
        CorpusError, match=r"cannot load the source on the node .*: ModuleNotFoundError: .*'nowhere_ins"
    ):
        runtime.prepare(config, progress=False)


def test_a_unit_is_made_without_torch(tmp_path: Path) -> None:
    """Also one of a user's source, in a process that has only what was sent."""
    settings = corpus_of({"name": tones_file(tmp_path)}, tmp_path / "out")
    plan = corpus.plan(settings, 0)
    work, unit = plan.work, plan.units[0]
    code = "import pickle, sys; import rayssl.runtime.prepare as runtime; sent = pickle.load(sys.stdin.buffer)\n"
    code += "made = runtime.process(*sent); print(made.shard.rows, sorted({'torch', 'ray'} & {*sys.modules}))"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    done = subprocess.run(command, input=pickle.dumps((work, unit)), capture_output=True, check=False)
    assert done.stdout == f"{unit.utterances} []\n".encode(), done.stderr.decode()
