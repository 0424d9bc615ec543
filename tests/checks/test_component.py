"""`rayssl check`: right components hold, and each that breaks a rule is told which one, and why."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rayssl.checks.component import _experiment, check
from rayssl.checks.encoder import check_encoder
from rayssl.checks.small_job import SmallJob
from rayssl.cli import main
from rayssl.data.shards import read_manifest
from rayssl.errors import ConfigError
from rayssl.methods.sleep import SleepConfig
from rayssl.models.encoder import EncoderConfig
from tests import outside
from tests.small_experiment import write_config

ROOT = Path(__file__).parents[2]


def failures(name: str, *assignments: str) -> dict[str, str]:
    outcomes = list(check(name, assignments))
    assert all("\n" not in outcome.text() for outcome in outcomes)
    return {outcome.name: outcome.detail for outcome in outcomes if not outcome.passed}


def encoder(folder: Path, **parts: str) -> EncoderConfig:
    file = outside.write(folder, outside.BACKBONE, "parts.py")
    named = {key: {"name": f"{file}:{name}"} for key, name in parts.items()}
    return EncoderConfig.model_validate({"backbone": {"name": f"{file}:Mean"}, **named})


def test_an_encoder_from_outside_holds(tmp_path: Path) -> None:
    outcomes = list(check_encoder(encoder(tmp_path, frontend="Energy", backbone="Mean")))
    assert [outcome.text() for outcome in outcomes if not outcome.passed] == [] and len(outcomes) == 5


def test_an_embedding_of_another_size(tmp_path: Path) -> None:
    found = {each.name: each for each in check_encoder(encoder(tmp_path, backbone="Sideways"))}
    assert not found["embeddings have their shape"].passed
    assert "[4, 3], expected finite [4, 16]" in found["embeddings have their shape"].detail


def test_what_has_no_such_name() -> None:
    with pytest.raises(ConfigError, match=r"'simcler': no component has this name; choose one of .* or file\.py:Class"):
        list(check("simcler"))
    with pytest.raises(ConfigError, match=r"unknown key 'method\.temprature'; did you mean 'temperature'"):
        list(check("simclr", ["temprature=1"]))


def guide(folder: Path, name: str) -> str:
    """The file of the guide's example that has the class ``name``."""
    text = (ROOT / "rayssl/methods/README.md").read_text()
    found = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if f"class {name}(" in block]
    assert len(found) == 1
    return outside.write(folder, found[0], "guide.py")


def test_the_guides_encoder_holds(tmp_path: Path) -> None:
    file = guide(tmp_path, "Convolved")
    parts = {"frontend": {"name": f"{file}:Energies"}, "backbone": {"name": f"{file}:Convolved", "hidden": 8}}
    outcomes = list(check_encoder(EncoderConfig.model_validate(parts)))
    assert [outcome.text() for outcome in outcomes if not outcome.passed] == []


@pytest.mark.parametrize(
    "name", ["sleep", "nightmel", "soundsleepnet", pytest.param("sleepformer", marks=pytest.mark.long)]
)
def test_parts_for_nights_get_a_job_of_nights(name: str, tmp_path: Path) -> None:
    """As a method, a front end or a backbone: two steps on short nights, whose pictures the front end takes."""
    job = SmallJob(str(tmp_path), _experiment(name, []))
    trace = job.train(2)
    manifest = read_manifest(f"{tmp_path}/corpus")
    assert manifest.nights is not None and manifest.mel is not None and "few" in manifest.splits
    assert len(trace.losses) == 2 and all(gradient.any() for gradient in trace.gradients.values())
    assert bool(trace.memory) == (name == "sleep")


def test_an_experiment_of_nights_is_checked_with_short_sequences(tmp_path: Path) -> None:
    backbone = {"name": "soundsleepnet", "width": 8, "embedding_dim": 16, "sequence": 40, "scored": [10, 30]}
    tree = {
        "run": "r",
        "corpus": {"uri": "c"},
        "labels": {"split": "hospital"},
        "encoder": {"frontend": {"name": "nightmel", "mel": {"hop_ms": 500}}, "backbone": backbone},
        "views": {"night": {"strong": {"noise": {"kinds": ["white"], "clips": 1, "clip_s": 5}}}},
        "method": {"name": "sleep", "ssc": {"weight": 1, "anchors": "memory"}},
    }
    job = SmallJob(str(tmp_path), _experiment(write_config(tmp_path / "nights.yaml", tree), []))
    settings = job.experiment()
    assert settings.encoder.backbone.model_dump() == {
        **settings.encoder.backbone.model_dump(), **backbone, "sequence": 6, "scored": None
    }  # fmt: skip
    assert isinstance(settings.method, SleepConfig) and settings.method.ssc.queue == 4
    assert len(job.train(1).losses) == 1


@pytest.mark.ranks
class TestTraining:
    """Each spawns two gloo processes of its own."""

    def test_a_method_of_ones_own_holds(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(ROOT)
        assert main(["check", "configs/own_method/barlow.py:BarlowTwins", "projector.sizes=[16, 16]"]) == 0
        lines = capsys.readouterr().out.splitlines()
        for rule in ("one rank = two ranks", "6 steps = 3 + resume + 3", "the same bits twice", "bfloat16 is close"):
            assert sum(rule in line and line.startswith("ok") for line in lines) == 1
        assert "5 checks in " in lines[-2] and lines[-2].endswith("all hold")
        own = "method.name=configs/own_method/barlow.py:BarlowTwins"
        assert lines[-1].startswith(f"next: rayssl train EXPERIMENT.yaml {own} ")

    @pytest.mark.parametrize("name", ["ssps", "daso", "sleep"])
    def test_ours_with_a_memory_hold(self, name: str) -> None:
        assert failures(name) == {}

    def test_the_guides_method_holds(self, tmp_path: Path) -> None:
        assert failures(guide(tmp_path, "Denoise") + ":Denoise") == {}

    def test_a_detached_gather(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = outside.write(tmp_path, outside.METHOD, "own.py")
        assert main(["check", f"{file}:Detached"]) == 1
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
        assert len(lines) == 1
        assert "one rank = two ranks: the loss is the same, but the gradient of '" in lines[0]
        assert "gathered without gradient; gather with rayssl.collectives.gather" in lines[0]

    @pytest.mark.parametrize(
        ("name", "rule", "why"),
        [
            ("Alone", "one rank = two ranks", "the loss of the first step is .* needs the rows of all ranks"),
            ("Forgetful", "6 steps = 3 + resume + 3", "registered buffers or parameters"),
            ("Unseeded", "the same bits twice", "draw from the keys of a view"),
            ("Broken", "it trains", "KeyError on line .* of own.py: .*temprature"),
        ],
    )
    def test_other_faults(self, name: str, rule: str, why: str, tmp_path: Path) -> None:
        found = failures(f"{outside.write(tmp_path, outside.METHOD, 'own.py')}:{name}")
        assert rule in found
        assert re.search(why, found[rule]), found
