"""``rayssl prepare`` on a Ray cluster makes what the pure functions make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayssl.data import trials
from rayssl.data.corpus import PrepareConfig
from rayssl.errors import CorpusError, StorageError
from tests.data.corpora import clips, files_below, folder_config, prepare

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
