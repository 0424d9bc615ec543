"""The keys of the three kinds of files, and the verbs that show them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayssl.cli import main
from rayssl.errors import ConfigError
from rayssl.experiment.config import Experiment
from rayssl.keys.listing import Key, find, in_lines, keys, nearest, of_component
from rayssl.keys.reference import markdown
from rayssl.keys.roots import ROOTS
from rayssl.keys.values import in_words
from rayssl.methods.registry import METHODS
from rayssl.models.encoder import EncoderConfig
from rayssl.models.registry import BACKBONES, FRONTENDS
from rayssl.schema import flatten

CONFIGS = Path(__file__).parents[2] / "configs"
EXPERIMENT = keys("experiment", installed=False)


def one(path: str, choice: str = "") -> Key:
    (found,) = [key for key in EXPERIMENT if key.path == path and key.choice == choice]
    return found


def test_values_defaults_and_choices() -> None:
    assert in_lines(one("training.batch")) == "integer of at least 2; default 256"
    assert in_lines(one("run")) == "text; must be given"
    assert in_lines(one("training")) == "section; may be left out"
    assert in_lines(one("encoder")) == "section; must be given"
    assert in_lines(one("ray.gpu")) == "true or false or auto; default auto"
    assert one("method.temperature", "method.name: moco").default == "0.03"
    assert one("method.temperature", "method.name: clar").default == "0.5"
    # defaults of a section are those that the section above gives it
    assert one("views.night.strong.noise.p").default == "0.8"
    assert one("views.night.weak.noise.p").default == "0.0"
    assert one("method.projector.sizes", "method.name: swav").default == "[2048, 128]"
    assert one("method.over", "method.name: ssps").like == "method"
    assert one("encoder.beside").like == "encoder"


def test_every_leaf_of_every_component_is_there() -> None:
    """The defaults of an experiment, and of each component, are those that the listing says."""
    paths = {key.path for key in EXPERIMENT}
    given = {"run": "r", "corpus": {"uri": "c"}, "encoder": {}, "method": {"name": "simclr"}}
    assert set(flatten(Experiment.model_validate(given).model_dump(mode="json"))) <= paths
    for at, registry in (("method", METHODS), ("encoder.frontend", FRONTENDS), ("encoder.backbone", BACKBONES)):
        for name in registry.builtin:
            fields = set(registry.find(name).model_fields)
            choice = f"{at}.name: {name}"
            assert fields <= {key.path.removeprefix(f"{at}.") for key in EXPERIMENT if key.choice == choice}
    assert set(EncoderConfig.model_fields) <= {path.removeprefix("encoder.") for path in paths}


@pytest.mark.parametrize(
    ("wanted", "first"),
    [
        ("views.distort", "views.distort"),
        ("training.trackers.0.uri", "training.trackers[].uri"),
        ("method.over.temperature", "method.temperature"),
        ("encoder.beside.backbone.channels", "encoder.backbone.channels"),
        ("daso", "method.name"),
        ("unit_rows", "corpus.unit_rows"),
        ("noise.snr_db", "views.distort.noise.snr_db"),
    ],
)
def test_a_key_is_found(wanted: str, first: str) -> None:
    assert find(wanted, EXPERIMENT)[0].path == first


def test_names_of_the_users_stand_in_paths() -> None:
    listed = keys("preparation", installed=False)
    assert find("corpora.mine.splits.few.labelled.share", listed)[0].path == (
        "corpora.<name>.splits.<name>.labelled.share"
    )
    assert {key.path for key in find("corpora.mine.join", listed)} == {
        "corpora.<name>.join",
        "corpora.<name>.join.min_s",
        "corpora.<name>.join.leftover",
    }


def test_what_is_like_a_key() -> None:
    assert nearest("temprature", EXPERIMENT) == "method.temperature"
    assert nearest("training.optimizer.lr", EXPERIMENT) == "training.optimiser.lr"
    assert nearest("simclrr", EXPERIMENT) == "simclr"
    assert nearest("xyzzy", EXPERIMENT) is None


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}, "number above 0, at most 0.5"),
        ({"type": "integer", "minimum": 2, "multipleOf": 2}, "integer of at least 2, a multiple of 2"),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 4, "maxItems": 4}, "list of 4, each integer"),
        ({"type": "array", "items": {"enum": ["a", "b"]}}, "list of any of a, b"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "text or null"),
        ({"type": "object", "additionalProperties": {"$ref": "#/$defs/X"}}, "names, each with keys"),
        ({"title": "Choices"}, "any value"),
    ],
)
def test_values_in_words(schema: dict[str, object], words: str) -> None:
    assert in_words(schema) == words


def test_a_component_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from rayssl.methods.base import Method, MethodConfig\n\n\n"
        "class Mine(Method):\n"
        '    """Learns nothing. It only shows a key."""\n\n'
        "    class Config(MethodConfig):\n"
        "        push: float = 0.5\n"
        '        """How far views are pushed apart, from 0 to 1."""\n'
    )
    assert [key.path for key in of_component(f"{path}:Mine")] == ["method.name", "method.push"]
    assert main(["keys", f"{path}:Mine"]) == 0
    assert "method.push\n  number; default 0.5\n    How far views are pushed apart" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="no such file"):
        of_component(f"{tmp_path}/absent.py:Mine")


def test_verb_keys(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["keys", "temperature"]) == 0
    shown = capsys.readouterr().out
    assert "# experiment" in shown and "# sweep" not in shown
    assert "with method.name: moco\n\nmethod.temperature\n" in shown
    assert max(map(len, shown.splitlines())) <= 60
    assert main(["keys", "--of", "sweep", "metric"]) == 0
    assert capsys.readouterr().out.startswith("metric\n  text; must be given\n")
    assert main(["keys", "trainng.batch"]) == 2
    assert "no key is called 'trainng.batch'; did you mean 'training.batch'?" in capsys.readouterr().err


def test_the_reference_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert (CONFIGS / "KEYS.md").read_text() == markdown(), "run: rayssl keys --markdown > configs/KEYS.md"
    assert main(["keys", "--markdown"]) == 0
    assert capsys.readouterr().out == markdown()


def test_the_reference_has_every_key() -> None:
    page = markdown()
    for kind in ROOTS:
        for key in keys(kind, installed=False):
            assert f"- **`{key.path.rpartition('.')[2]}`** (" in page
            parent = key.path.rpartition(".")[0]
            assert not parent or f"`{parent}`" in page
