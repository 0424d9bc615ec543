"""``rayssl prepare`` on a Ray cluster makes what the pure functions make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayssl.data import trials
from rayssl.data.corpus import PrepareConfig
from rayssl.errors import CorpusError, StorageError
from tests.data.corpora import clips, files_below, folder_config, prepare, write_folder

pytestmark = pytest.mark.ray


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
