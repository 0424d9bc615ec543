"""What the configurations read is what `rayssl fetch` brings, or what a preparation beside them makes; and they run."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from rayssl.cli import main
from rayssl.data.fetch import chosen
from rayssl.data.fetch.catalogue import PLACE, SETS
from rayssl.data.fetch.chosen import Clip
from rayssl.data.fetch.tables import COLUMNS, TRIALS
from rayssl.data.trials import write as write_trials
from tests.configs.test_configs import EXPERIMENTS, FOLDER, PREPARED, SWEEPS, TREES, made_small
from tests.runs import records

FETCHED = {one.name: one for one in SETS}
LARGE = ("voxceleb", "sweep_voxceleb2")  # for a cluster with GPUs: they stay in a bucket


def texts(tree: Any) -> Iterator[str]:
    """All strings of a configuration."""
    if isinstance(tree, dict):
        for value in tree.values():
            yield from texts(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from texts(value)
    elif isinstance(tree, str):
        yield tree


def sets_of(name: str) -> set[str]:
    """The fetched sets that a preparation reads."""
    return {text.split("/")[2] for text in texts(TREES[name]) if text.startswith(f"{PLACE}/")}


@pytest.mark.parametrize("name", TREES)
def test_no_configuration_reads_what_an_outsider_has_not(name: str) -> None:
    """No folder beside the project, no folder of one machine; a bucket only for what no single machine can do."""
    whole = (FOLDER / name).read_text()
    assert "../" not in whole.replace("../README", "").replace("$schema=../schemas", "") and "file://" not in whole
    assert not [text for text in texts(TREES[name]) if text.startswith(("/", "~"))]
    if not name.startswith(LARGE):
        assert not [text for text in texts(TREES[name]) if "://" in text]


@pytest.mark.parametrize("name", PREPARED)
def test_a_preparation_reads_a_fetched_set_or_generates_its_audio(name: str) -> None:
    for corpus in TREES[name]["corpora"].values():
        source = corpus["source"]
        lists = [trials["source"] for trials in corpus.get("trials", {}).values() if "source" in trials]
        for place in [source["uri"], *lists] if "uri" in source else lists:
            assert place.startswith(f"{PLACE}/") and place.split("/")[2] in FETCHED, place
        assert "uri" in source or source["name"].startswith("synthetic")
    whole = (FOLDER / name).read_text()
    assert {one for one in sets_of(name) if f"rayssl fetch {one}" not in whole} <= {"voxceleb2"}, "its header names it"


@pytest.mark.parametrize("name", [*EXPERIMENTS, *SWEEPS])
def test_an_experiment_reads_what_a_preparation_makes(name: str) -> None:
    made = {corpus["out"] for prepared in PREPARED for corpus in TREES[prepared]["corpora"].values()}
    made |= {
        trials["out"]
        for prepared in PREPARED
        for corpus in TREES[prepared]["corpora"].values()
        for trials in corpus.get("trials", {}).values()
    }
    runs = {TREES[experiment]["run"] for experiment in EXPERIMENTS}
    tree = TREES[name]
    evaluation = tree.get("evaluation", {})
    read = {tree.get("corpus", {}).get("uri"), evaluation.get("corpus"), evaluation.get("trials")} - {None}
    started = {text.partition("=")[2] for text in tree.get("overrides", []) if "start_from=" in text}
    assert read <= made and started <= runs


@pytest.mark.parametrize("one", [one for one in SETS if one.then], ids=lambda one: one.name)
def test_what_comes_next_is_a_preparation_that_reads_the_set(one: Any) -> None:
    (name,) = re.fullmatch(r"rayssl prepare configs/(\w+\.yaml)", one.then).groups()  # type: ignore[union-attr]
    assert one.name in sets_of(name)


def mirror(folder: Path, clips: list[Clip], seconds: float) -> Path:
    """The tables of a mirror: tones with noise, whose pitch is the class and the speaker's."""
    folder.mkdir()
    parts: dict[str, list[tuple[Clip, bytes]]] = {}
    time = np.arange(int(16000 * seconds)) / 16000
    for number, clip in enumerate(clips):
        pitch = 200 + 7 * (sum(clip.label.encode()) % 97) + 3 * (sum(clip.speaker.encode()) % 89)
        noise = np.random.default_rng(number).normal(0, 0.02, len(time))
        file = io.BytesIO()
        soundfile.write(file, 0.3 * np.sin(2 * np.pi * pitch * time) + noise, 16000, format="FLAC")
        parts.setdefault(clip.part, []).append((clip, file.getvalue()))
    for part, found in parts.items():
        columns: dict[str, Any] = {name: [getattr(clip, name, None) for clip, _ in found] for name in COLUMNS}
        columns["audio"] = pa.array([audio for _, audio in found], pa.binary())
        pq.write_table(pa.table(columns), folder / f"{part}-00000-of-00001.parquet")
    return folder


WORDS = ("left", "one", "cat", "house", "marvin", "happy", "bed", "learn", "off")
CRIES = ("hungry", "discomfort", "tired", "belly_pain", "burping")


def words() -> list[Clip]:
    return [
        Clip(part, f"{part}{who}/{word}_{k}.flac", f"{part}{who}", word, f"r{k}")
        for part, count in (("train", 12), ("test", 4))
        for who in range(count)
        for word in WORDS
        for k in range(2)
    ]


def digits() -> list[Clip]:
    found = [
        f"recordings/{digit}_{who}_{k}.wav" for digit in range(10) for who in ("a", "b") for k in (0, 5, 6, 7, 8, 9)
    ]
    return [clip for clip in map(chosen.FSDD.clip, found) if clip is not None]


def sounds() -> list[Clip]:
    found = [f"{n:03} - Sound {n}/{fold}-{n}{k}-A.ogg" for n in range(10) for fold in (1, 2, 3, 4) for k in range(2)]
    return [clip for clip in map(chosen.ESC10.clip, found) if clip is not None]


def cries() -> list[Clip]:
    return [
        Clip(part, f"cry/{part}{label}{k}.flac", f"{part}{label}{k}", label, str(k))
        for part, count in (("train", 8), ("test", 2))
        for label in CRIES
        for k in range(count)
    ]


TOURS = {
    "gsc_simclr.yaml": ("speech-commands-sv", "gsc_prepare.yaml", words, 1.0),
    "words_fixmatch.yaml": ("speech-commands-sv", "words_prepare.yaml", words, 1.0),
    "digits_clar.yaml": ("fsdd", "digits_prepare.yaml", digits, 0.5),
    "esc10_clar.yaml": ("esc10", "esc10_prepare.yaml", sounds, 0.5),
    "cry_daso.yaml": ("donateacry", "cry_prepare.yaml", cries, 0.5),
}


@pytest.mark.long
@pytest.mark.parametrize("name", TOURS)
def test_fetch_prepare_and_train_in_an_empty_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the headers say, from the mirror that is made here; with nothing beside but the configurations."""
    monkeypatch.chdir(tmp_path)
    public, prepared, clips, seconds = TOURS[name]
    folder = mirror(tmp_path / "mirror", clips(), seconds)
    if FETCHED[public].tables.trials is not None:  # type: ignore[union-attr]
        tests = [clip for clip in clips() if clip.part == "test"]
        write_trials(str(folder / TRIALS), FETCHED[public].tables.trials(tests))  # type: ignore[union-attr, misc]
    assert main(["fetch", public, "--from", "mirror"]) == 0
    assert main(["prepare", str(FOLDER / prepared), "--local", "--quiet"]) == 0
    changes = [change for change in made_small(TREES[name]) if not change.startswith("labels.")]
    assert main(["train", str(FOLDER / name), *changes, "training.epochs=1", "--local"]) == 0
    assert len(records(TREES[name]["run"], "step")) >= 2
