"""``rayssl prepare --local``, and corpora that an earlier rayssl has made."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayssl import storage
from rayssl.cli import main
from rayssl.data import corpus, shards
from rayssl.data.corpus import PrepareConfig
from rayssl.errors import CorpusError
from rayssl.progress import Preparing
from rayssl.runtime import prepare as runtime
from rayssl.runtime import telling
from tests.data.corpora import clips, files_below, folder_config, write_folder
from tests.runtime.recorder import Recorder

KEPT = "made by an earlier rayssl; kept as it is; --overwrite makes it again"


def local(settings: corpus.PreparedCorpusConfig, **how: Any) -> runtime.Summary:
    return runtime.prepare(PrepareConfig(corpora={"small": settings}), progress=False, local=True, **how)


def made_earlier(out: Path) -> dict[str, bytes]:
    """Makes the corpus at ``out`` one of recipe 1. It has another plan, and its settings name no recipe."""
    place = out / shards.MANIFEST
    tree = json.loads(place.read_text())
    assert tree["settings"].pop("recipe") == 2
    tree["settings"]["plan"] = "0123456789abcdef"
    place.write_text(json.dumps(tree))
    return files_below(out)


def test_a_corpus_of_an_earlier_rayssl_stays_as_it_is(tmp_path: Path) -> None:
    settings = folder_config(tmp_path / "in", tmp_path / "out")
    manifest = local(settings).corpora["small"].manifest
    before = made_earlier(tmp_path / "out")
    again = local(settings)
    assert again.corpora["small"].reused and f"\n  {KEPT}" in again.text()
    assert files_below(tmp_path / "out") == before
    renewed = local(settings, overwrite=True)
    assert renewed.corpora["small"].manifest == manifest and KEPT not in renewed.text()
    assert not renewed.corpora["small"].reused and local(settings).corpora["small"].reused


def test_its_splits_and_trials_still_change(tmp_path: Path) -> None:
    uri = write_folder(tmp_path / "in", clips())

    def settings(**more: Any) -> corpus.PreparedCorpusConfig:
        source = {"name": "folder", "uri": uri, "layout": ["label", "recording"]}
        return corpus.PreparedCorpusConfig.model_validate({"source": source, "out": str(tmp_path / "out"), **more})

    local(settings())
    made_earlier(tmp_path / "out")
    split = local(settings(splits={"half": {"labelled": {"share": 0.5}}})).corpora["small"]
    assert split.note == KEPT and split.manifest.splits["half"].labelled == 6
    assert runtime.verify_corpora(PrepareConfig(corpora={"small": settings()})) == []


def test_with_other_settings_it_is_an_error(tmp_path: Path) -> None:
    local(folder_config(tmp_path / "in", tmp_path / "out"))
    before = made_earlier(tmp_path / "out")
    with pytest.raises(CorpusError, match=r"out: holds a corpus that was made with other settings .*--overwrite"):
        local(folder_config(tmp_path / "in", tmp_path / "out", format="pcm16"))
    assert files_below(tmp_path / "out") == before


def test_files_of_a_plan_do_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither beside the corpus that was made, nor beside one that was complete, or is another."""
    monkeypatch.setattr("rayssl.data.sorting._RUN_BYTES", 1)
    settings = folder_config(tmp_path / "in", tmp_path / "out")
    local(settings)
    before = files_below(tmp_path / "out")
    assert not any(".work" in path for path in before)
    assert local(settings).corpora["small"].reused
    other = folder_config(tmp_path / "in", tmp_path / "out", format="pcm16")
    with pytest.raises(CorpusError, match="--overwrite"):
        local(other)
    assert files_below(tmp_path / "out") == before
    assert local(other, overwrite=True).corpora["small"].manifest.format == "pcm16"
    monkeypatch.undo()
    local(folder_config(tmp_path / "in", tmp_path / "memory", format="pcm16"))
    assert files_below(tmp_path / "out") == files_below(tmp_path / "memory")


def test_a_long_listing_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "_EVERY_S", 0.0)
    settings, screen = folder_config(tmp_path / "in", tmp_path / "out"), Recorder()
    local(settings, screen=screen)
    told = [event for event in screen.events if isinstance(event, Preparing)]
    found = {
        what: [event.done for event in told if event.what == what] for what in ("listing", "planning", "preparing")
    }
    for counts in found.values():
        assert counts == sorted(counts) and counts[-1] == 12
    assert {event.total for event in told if event.what != "preparing"} == {None}


@pytest.mark.s3
def test_files_of_a_plan_lie_in_an_object_store(
    s3_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayssl.data.sorting._RUN_BYTES", 1)
    out = f"{s3_server.bucket('plans')}/out"
    manifest = local(folder_config(tmp_path / "in", out)).corpora["small"].manifest
    alone = local(folder_config(tmp_path / "in", tmp_path / "out")).corpora["small"].manifest
    assert manifest == alone
    assert not any(".work" in file for file in storage.list_files(out))


def test_progress_is_json_or_lines_or_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = folder_config(tmp_path / "in", tmp_path / "out")
    file = tmp_path / "prepare.yaml"
    file.write_text(yaml.safe_dump({"corpora": {"small": settings.model_dump(mode="json")}}))
    assert main(["prepare", str(file), "--local", "--log", "json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[0]["event"] == "line" and events[0]["text"] == f"preparing small at {tmp_path / 'out'}"
    done = [event for event in events if event["event"] == "preparing" and event["what"] == "preparing"]
    assert done[-1]["done"] == done[-1]["total"] == 12 and done[-1]["hours"] > 0
    assert events[-1]["text"].startswith("small: 12 utterances")
    other = ["--local", "--overwrite", "corpora.small.format=pcm16"]  # makes it again
    assert main(["prepare", str(file), *other]) == 0
    lines = capsys.readouterr().out.splitlines()
    timed = [line for line in lines if re.match(r"\d\d:\d\d:\d\d ", line)]
    assert timed == lines[: len(timed)] and timed[0].endswith(f" preparing small at {tmp_path / 'out'}")
    assert re.search(r"small: prepared 12 utterances in \d+\.\d s$", timed[-1])
    assert main(["prepare", str(file), "--local", "--overwrite", "--quiet"]) == 0  # and in FLAC again
    quiet = capsys.readouterr()
    assert quiet.out.startswith("small: 12 utterances") and quiet.err == ""
