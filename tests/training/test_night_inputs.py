"""Batches of a corpus of nights become pictures on the device: stored ones as they are, sound as the same pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rayssl.batches.plan import TURN_BIT
from rayssl.checks.small_nights import write_nights
from rayssl.data.shards import read_manifest, read_shard
from rayssl.experiment.job import resolve
from rayssl.models.nightmel import NightMelConfig
from rayssl.random import draws, draws_torch
from rayssl.training.inputs import _VIEW, make_views
from rayssl.training.nights import NightInput
from rayssl.views.recipes import Segment
from tests.night_runs import FRONTEND, SEQUENCE, night_experiment, write_night_corpus
from tests.runs import batches, build

FEW: dict[str, Any] = {"hospital": (6, 5), "home": (5, 5, 9)}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nights")
    write_night_corpus(folder / "mel", **FEW)
    write_nights(str(folder / "flac"), None, audio="flac", **FEW)
    return folder


def given(corpora: Path, kind: str) -> tuple[dict[str, Any], NightInput]:
    """The first batch, and what makes pictures of it."""
    settings = night_experiment(corpora / "run", corpora / kind, backbone="soundsleepnet")
    config = NightMelConfig.model_validate(FRONTEND)
    made = NightInput(read_manifest(str(corpora / kind)), SEQUENCE, config)
    return next(batches(settings, build(settings))), made


def test_stored_pictures_arrive_bit_for_bit(corpora: Path) -> None:
    raw, nights = given(corpora, "mel")
    manifest = read_manifest(str(corpora / "mel"))
    audio = [a for shard in manifest.shards for a in read_shard(str(corpora / "mel"), shard, ["audio"])["audio"]]
    stored = [np.frombuffer(each.as_py(), np.float16).reshape(8, 31) for each in audio]
    for part, name in ((raw, "weak"), (raw["labelled"], "labelled")):
        found = nights(torch.from_numpy(part[name]))
        assert found.shape == (len(part["id"]) // SEQUENCE, SEQUENCE, 8, 31) and found.dtype == torch.float32
        expected = np.stack([stored[k] for k in part["id"]]).astype(np.float32)
        np.testing.assert_array_equal(found.flatten(0, 1).numpy(), expected)


def test_sound_becomes_the_same_pictures(corpora: Path) -> None:
    """As float16 a picture is precise to a few thousandths; sound as int16 hardly less, above its noise floor."""
    (raw, nights), (sound, from_sound) = given(corpora, "mel"), given(corpora, "flac")
    np.testing.assert_array_equal(raw["id"], sound["id"])
    found, expected = from_sound(torch.from_numpy(sound["weak"])), nights(torch.from_numpy(raw["weak"]))
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)
    assert expected.std() > 0.5


class Told(nn.Module):
    """A recipe that notes the keys it was called with."""

    def forward(self, pictures: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        return pictures + keys.view(-1, 1, 1, 1) % 7


def test_a_sequence_has_one_key_of_its_first_epoch_and_its_turn(corpora: Path) -> None:
    raw, nights = given(corpora, "mel")
    raw["turn"] = raw["turn"] + np.repeat(np.arange(len(raw["turn"]) // SEQUENCE), SEQUENCE).astype(np.int32) % 2
    segments = (Segment(name="weak", seconds=30, recipe="none"), Segment(name="strong", seconds=30, recipe="strong"))
    recipes, where = nn.ModuleDict({"strong": Told()}), {"seed": 5, "device": torch.device("cpu")}
    views = make_views({**raw, "labelled": raw}, (), recipes, labelled=segments, nights=nights, **where)
    assert views["weak"].keys is None
    first = torch.from_numpy(raw["id"][::SEQUENCE] + (raw["turn"][::SEQUENCE].astype(np.int64) << TURN_BIT))
    epoch = raw["epoch"]
    expected = draws_torch.keys_torch(draws.fold(5, _VIEW, epoch, 101), first)
    keys = views["strong"].keys
    assert keys is not None and torch.equal(keys, expected) and len(set(keys.tolist())) == len(keys)
    plain = nights(torch.from_numpy(raw["strong"]))
    assert torch.equal(views["weak"].wave, nights(torch.from_numpy(raw["weak"])))
    assert torch.equal(views["strong"].wave, plain + keys.view(-1, 1, 1, 1) % 7)


def test_without_unlabelled_terms_there_is_one_stream(corpora: Path) -> None:
    """The labelled nights alone, with their stages; with such terms both, and no stage in the unlabelled one."""
    one = night_experiment(corpora / "run", corpora / "mel", method={"name": "sleep"}, backbone="soundsleepnet")
    job = resolve(one)
    assert list(job.streams) == ["train"] and job.segments.own[0][0].name == "labelled"
    raw = next(batches(one, build(one)))
    assert isinstance(raw["labelled"], np.ndarray) and (raw["label"] >= 0).any()  # a view, and no second batch
    two = night_experiment(corpora / "run", corpora / "mel", backbone="soundsleepnet")
    assert list(resolve(two).streams) == ["train", "labelled"]
    raw = next(batches(two, build(two)))
    assert (raw["label"] == -1).all() and (raw["truth"] >= 0).any() and (raw["labelled"]["label"] >= 0).any()
    assert not set(raw["id"]) & set(raw["labelled"]["id"])
