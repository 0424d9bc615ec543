"""``rayssl prepare`` of nights: the same corpus from many tasks, and what people are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayssl.data import shards
from rayssl.data.corpus import PrepareConfig
from rayssl.errors import CorpusError
from rayssl.progress import Line, Phase, Preparing
from rayssl.runtime import prepare as runtime
from tests.data.corpora import files_below, folder_config
from tests.data.nights.fake_nights import make, settings
from tests.data.nights.test_night_corpus import BAD, NIGHTS
from tests.runtime.recorder import Recorder


def local(nights: dict[str, str], out: Path, **more: Any) -> runtime.Summary:
    config = PrepareConfig(corpora={"sleep": settings(nights, out, **more)})
    return runtime.prepare(config, progress=False, local=True)


def test_the_summary_of_nights(tmp_path: Path) -> None:
    """Shares are those of the scored epochs; a night of which only a part is left out is still a night."""
    found = local(NIGHTS | BAD, tmp_path)
    made = found.corpora["sleep"]
    first, *lines = found.text().splitlines()
    assert first == (
        f"sleep: 5 of 8 nights, 0.45 h in 54 epochs, 4 subjects, {len(made.manifest.shards)} shards at {tmp_path} "
        f"({made.wall_s:.1f} s)"
    )
    assert lines == [
        "  stages: Wake 10 (19.2%), Light 18 (34.6%), Deep 19 (36.5%), REM 5 (9.6%); 2 epochs unscored",
        "  dropped 6 epochs: 5 gap, 1 not finite",
        "  left out a/n0: gap: nothing from epoch 7 on",
        "  left out b/n0: unscored: the labels end early",
        "  left out c/n0: gap: nothing from epoch 0 on",
        "  left out c/n0: gap: nothing from epoch 7 on",
        "  left out d/n0: truncated: file d/n0 ends at epoch 0",
        "  left out d/n1: gap: nothing from epoch 3 on",
        "  left out d/n1: truncated: file d/n1 ends at epoch 5",
        "  left out e/n0: silent: every sample is zero",
        "  left out e/n1: empty: no epoch of the night can be used (dropped: 1 gap, 2 not finite)",
    ]
    assert "utterance" not in found.text()
    again = local(NIGHTS | BAD, tmp_path).text().splitlines()
    assert again[0].endswith(f"at {tmp_path} (already complete)") and again[1:] == lines


def test_a_corpus_without_faults_is_told_in_two_lines(tmp_path: Path) -> None:
    splits = {"few": {"nights": {"subjects": 1}}, "all": {"nights": {}}}
    text = local({"a/n0": "WL", "b/n0": "??R?"}, tmp_path, splits=splits).text()
    number = 1 + ["2", "4"].index(text.partition("split few: ")[2][0])
    labelled, unlabelled = (2, 4)[number - 1], (4, 2)[number - 1]
    assert text.splitlines()[0].startswith("sleep: 2 nights, 0.05 h in 6 epochs, 2 subjects, 2 shards at ")
    assert text.splitlines()[1:] == [
        "  stages: Wake 1 (33.3%), Light 1 (33.3%), Deep 0 (0.0%), REM 1 (33.3%); 3 epochs unscored",
        f"  split few: {labelled} labelled epochs of 4 classes, {unlabelled} unlabelled epochs",
        "  split all: 6 labelled epochs of 4 classes, 0 unlabelled epochs",
        "    no night is unlabelled",
    ]


def test_nights_without_stages(tmp_path: Path) -> None:
    text = local({"a/n0": "??"}, tmp_path).text()
    assert "\n  stages: Wake 0 (0.0%), Light 0 (0.0%), Deep 0 (0.0%), REM 0 (0.0%); 2 epochs unscored" in text


@pytest.mark.parametrize(("count", "more"), [(20, 0), (21, 1), (33, 13)])
def test_at_most_twenty_rejects_are_told(tmp_path: Path, count: int, more: int) -> None:
    nights = {"z/n0": "W"} | {f"a/n{k:02d}": "!" for k in range(count)}
    lines = local(nights, tmp_path).text().splitlines()[2:]
    assert lines[:20] == [f"  left out a/n{k:02d}: truncated: file a/n{k:02d} ends at epoch 0" for k in range(20)]
    assert lines[20:] == ([f"  and {more} more: see {tmp_path}/rejects.parquet"] if more else [])
    assert len(shards.read_rejects(str(tmp_path))) == count


def test_the_summary_of_utterances_is_as_before(tmp_path: Path) -> None:
    config = PrepareConfig(corpora={"small": folder_config(tmp_path / "in", tmp_path / "out")})
    found = runtime.prepare(config, progress=False, local=True)
    made = found.corpora["small"]
    where = f"2 shards at {tmp_path / 'out'} ({made.wall_s:.1f} s)"
    assert found.text() == f"small: 12 utterances, 0.00 h, 3 speakers, 6 recordings, {where}" and made.rejects == []


def test_nights_are_counted_while_they_are_prepared(tmp_path: Path) -> None:
    screen = Recorder()
    events = screen.events
    config = PrepareConfig(corpora={"sleep": settings({"a/n0": "W", "a/n1": "W_", "b/n0": "!"}, tmp_path)})
    runtime.prepare(config, local=True, screen=screen)
    assert events[0] == Line(f"preparing sleep at {config.corpora['sleep'].out}")  # before anything is read
    told = [event for event in events if isinstance(event, Preparing)]
    assert {(event.corpus, event.unit) for event in told} == {("sleep", "nights")}
    assert [event.what for event in told if event.done == 0] == ["listing", "preparing"]
    last = told[-1]
    assert (last.what, last.done, last.total, last.rejected) == ("preparing", 3, 3, 1)  # a gap is none
    assert last.hours is not None and 0 < last.hours < 1
    phases = [event.what for event in events if isinstance(event, Phase)]
    assert phases == ["sleep: planned 3 nights in 3 pieces", "sleep: prepared 3 nights"]


@pytest.mark.ray
def test_tasks_make_the_corpus_of_one_process(ray_cluster: Any, tmp_path: Path) -> None:
    """Nights end in any order."""
    nights = NIGHTS | BAD | {f"f/n{k}": "WLDR" * (1 + k % 3) + "_n"[k % 2] + "L" for k in range(4)}
    splits = {"some": {"nights": {"subjects": 2, "held_out": 0.2}}}
    make(nights, tmp_path / "alone", splits=splits)
    config = PrepareConfig(corpora={"sleep": settings(nights, tmp_path / "out", splits=splits)})
    summary = runtime.prepare(config, progress=False)
    assert files_below(tmp_path / "out") == files_below(tmp_path / "alone")
    assert runtime.verify_corpora(config) == []
    again = runtime.prepare(config, progress=False)
    assert again.corpora["sleep"].reused and again.text().splitlines()[1:] == summary.text().splitlines()[1:]
    down = PrepareConfig(corpora={"sleep": settings({"a/n0": "W", "b/n0": "!"}, tmp_path / "x", max_reject_share=0.1)})
    with pytest.raises(CorpusError, match=r"1 of 2 nights \(50\.0%\) cannot be used, first 'b/n0'"):
        runtime.prepare(down, progress=False)
