"""A mistake in an experiment of nights is one line that names the key or the corpus, and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayssl.checks.small_nights import write_nights
from rayssl.errors import UserError
from rayssl.experiment.build import build_method
from rayssl.experiment.config import Experiment
from rayssl.experiment.job import resolve
from rayssl.schema import parse
from tests.night_runs import ANCHORED_SLEEP, night_experiment, write_night_corpus
from tests.runs import ENCODER, SPLITS, write_corpus


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpora")
    splits: dict[str, Any] = {
        "few": {"nights": {"labelled": ["hospital/*"], "unlabelled": ["home/*"]}},
        "nobody": {"nights": {"labelled": [], "unlabelled": ["*"]}},
        "wake": {"nights": {"labelled": ["hospital/2"], "unlabelled": ["home/*"]}},
        "none_left": {"nights": {"labelled": ["*"]}},
    }
    # the third hospital night begins two stages before the end of the list: see `rayssl.checks.small_nights`
    write_night_corpus(folder / "nights", hospital=(9, 5, 1), home=(6, 6), splits=splits)
    write_nights(str(folder / "sound"), None, hospital=(5, 4), home=(5, 5), audio="flac")
    write_corpus(folder / "tones", (9,), splits=SPLITS)
    return folder


def message(corpora: Path, corpus: str, *changes: str, method: dict[str, Any] | None = None) -> str:
    """What `rayssl train` prints, without the folder of the test."""

    def build() -> None:
        build_method(resolve(night_experiment(corpora / "run", corpora / corpus, *changes, method=method)))

    with pytest.raises(UserError) as caught:
        build()
    text = str(caught.value).replace(f"{corpora}/", "")
    assert "\n" not in text
    return text


def test_a_corpus_without_nights(corpora: Path) -> None:
    expected = "tones: method.name=sleep needs a corpus of nights; prepare it from a source of nights"
    assert message(corpora, "tones") == expected


@pytest.mark.parametrize("corpus", ["nights", "sound"])
def test_an_encoder_of_utterances(corpora: Path, corpus: str) -> None:
    encoder = str(ENCODER).replace("'", "")
    expected = (
        "encoder: method.name=sleep needs an encoder of nights; choose frontend nightmel with sleepformer or "
        "soundsleepnet"
    )
    assert message(corpora, corpus, f"encoder={encoder}") == expected


@pytest.mark.parametrize(
    ("key", "value", "theirs"),
    [("n_mels", "9", "8"), ("hop_ms", "500.0", "1000.0"), ("f_max", "7000.0", "8000.0"), ("win_ms", "40.0", "50.0")],
)
def test_other_pictures_than_the_corpus_has(corpora: Path, key: str, value: str, theirs: str) -> None:
    expected = (
        f"encoder.frontend.mel.{key}: is {value}, but the pictures of nights were made with {theirs}; use the same"
    )
    assert message(corpora, "nights", f"encoder.frontend.mel.{key}={value}") == expected


def test_sound_becomes_whatever_pictures_the_encoder_wants(corpora: Path) -> None:
    settings = night_experiment(corpora / "run", corpora / "sound", "encoder.frontend.mel.n_mels=9")
    assert resolve(settings).manifest.mel is None


def test_pictures_that_no_rate_allows(corpora: Path) -> None:
    found = message(corpora, "sound", "encoder.frontend.mel.f_max=9000")
    assert found == "'encoder.frontend.mel.f_max': must be at most 8000 Hz, got 9000"


def test_class_aware(corpora: Path) -> None:
    expected = "labels.class_aware: sequences have several stages; use method.stage_power instead"
    assert message(corpora, "nights", "labels.class_aware=true") == expected


@pytest.mark.parametrize("name", ["simclr", "vicreg", "classifier", "fixmatch"])
def test_other_methods_on_pictures(corpora: Path, name: str) -> None:
    expected = f"nights: holds pictures of epochs of sleep, which method.name={name} cannot use; choose sleep"
    assert message(corpora, "nights", method={"name": name}) == expected


def test_more_memory_actors_than_stages(corpora: Path) -> None:
    found = message(corpora, "nights", "memory.shards=5", method=ANCHORED_SLEEP)
    assert found == "memory.shards=5: a memory of 4 classes has only 4 pieces; set memory.shards to 4 at most"


def test_the_memory_keeps_features_of_the_head(corpora: Path) -> None:
    found = message(corpora, "nights", "method.features=backbone", method=ANCHORED_SLEEP)
    assert found.startswith("method.ssc.anchors=memory keeps features of the head; set method.features=head or ")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("method.ssc.queue=0", "method.ssc.queue"),
        ("method.ssc.temperature=0", "method.ssc.temperature"),
        ("method.ssc.anchors=memry", "method.ssc.anchors"),
        ("method.noise.nights=all", "method.noise.nights"),
        ("method.sequential.w_min=1.5", "method.sequential.w_min"),
        ("method.ccssl.weight=-1", "method.ccssl.weight"),
        ("method.sequental={weight: 1}", "method.sequental"),
        ("encoder.backbone.scored=[0, 9]", "encoder.backbone"),
    ],
)
def test_keys(corpora: Path, change: str, expected: str) -> None:
    assert f"'{expected}'" in message(corpora, "nights", change)


def test_without_labels(corpora: Path) -> None:
    tree = night_experiment(corpora / "run", corpora / "nights").model_dump(mode="json")
    with pytest.raises(UserError, match=r"method\.name=sleep: learns from labels; name a split in labels\.split"):
        parse(Experiment, {**tree, "labels": None}, "x.yaml")


def test_splits_that_teach_nothing(corpora: Path) -> None:
    few = "and two stages are needed; choose other nights in splits.<name>.nights.labelled"
    found = message(corpora, "nights", "labels.split=nobody")
    assert found == f"labels.split: the labelled nights have epochs of no stage, {few}"
    found = message(corpora, "nights", "labels.split=wake")
    assert found == f"labels.split: the labelled nights have epochs of Light only, {few}"
    assert "none_left" in message(corpora, "nights", "labels.split=none_left")
    assert "has no split 'fewer'" in message(corpora, "nights", "labels.split=fewer")


def test_ssps_does_not_go_over_it(corpora: Path) -> None:
    found = message(
        corpora, "nights", method={"name": "ssps", "over": {"name": "sleep"}, "clusters": 4, "start_epoch": 1}
    )
    assert "method.over.name=sleep: learns from the labels of a split" in found


def test_the_keys_are_described() -> None:
    """Every key of the method and of its terms is named in the docstring of its class."""
    from rayssl.methods import semi, sleep

    for name in ("NoiseTerm", "FixMatchTerm", "SequentialTerm", "CcsslTerm", "SscTerm", "Sleep"):
        kind = getattr(sleep, f"{name}Config")
        text = f"{kind.__doc__} {semi.LabelledMethodConfig.__doc__ if name == 'Sleep' else ''}"
        assert [key for key in kind.model_fields if key != "name" and f"``{key}``" not in text] == []
