"""What a user reads after a mistake in a configuration: one line, the dotted key, the way out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayssl.data.corpus import PrepareConfig
from rayssl.errors import ConfigError
from rayssl.experiment.config import Experiment
from rayssl.runs.origin import origins
from rayssl.schema import Config, flatten, load_yaml, override, parse
from tests.runs import experiment

SSPS = {"name": "ssps", "start_epoch": 1, "clusters": 4}


def tree(**changes: Any) -> dict[str, Any]:
    return {
        "run": "r",
        "corpus": {"uri": "c"},
        "encoder": {"backbone": {"name": "ecapa"}},
        "method": {"name": "simclr"},
        **changes,
    }


def message(given: dict[str, Any], *overrides: str, model: type[Config] = Experiment) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(model, override(given, list(overrides)), "x.yaml")
    text = str(caught.value)
    assert "\n" not in text and text.startswith("x.yaml: ")
    return text.removeprefix("x.yaml: ")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("trainig={}", "unknown key 'trainig'; did you mean 'training'?"),
        ("training.epoch=3", "unknown key 'training.epoch'; did you mean 'epochs'?"),
        ("encoder.backbone.chanels=3", "unknown key 'encoder.backbone.chanels'; did you mean 'channels'?"),
        ("method.temprature=1", "unknown key 'method.temprature'; did you mean 'temperature'?"),
        ("ray.zzz=1", "unknown key 'ray.zzz'; known keys here: collective_timeout_s, cpus_per_worker, gpu, "),
    ],
)
def test_unknown_key(change: str, expected: str) -> None:
    assert message(tree(), change).startswith(expected)


def test_unknown_key_below_a_union_member() -> None:
    text = message(tree(method={**SSPS, "over": {"name": "simclr", "temprature": 1}}))
    assert text == "unknown key 'method.over.temprature'; did you mean 'temperature'?"


def test_suggestions_are_of_the_named_member_only() -> None:
    """``temperature`` is SimCLR's; to a user of SSPS it must not be suggested, and the known keys are those of SSPS."""
    text = message(tree(method={**SSPS, "temperature": 1}))
    assert text.startswith("unknown key 'method.temperature'; ") and "mean 'temperature'" not in text
    text = message(tree(method={**SSPS, "zzz": 1}))
    assert "start_epoch" in text and "margin" not in text


@pytest.mark.parametrize(
    ("frontend", "expected"),
    [
        (
            {"name": "lgomel"},
            "'encoder.frontend.name': unknown name 'lgomel' (did you mean 'logmel'?); choose one of 'fbank', ",
        ),
        ({"name": None}, "'encoder.frontend.name': choose one of 'fbank', 'logmel', 'nightmel', 'raw', 'spectrum'"),
        (
            {"zzz": 3},
            "unknown key 'encoder.frontend.zzz'; known keys here: f_max, f_min, hop_ms, n_fft, n_mels, name, no",
        ),
        ({"name": "spectrum", "bin": 3}, "unknown key 'encoder.frontend.bin'; did you mean 'bins'?"),
        ({"n_mels": 0}, "'encoder.frontend.n_mels': input should be greater than or equal to 1, got 0"),
        (5, "'encoder.frontend': expected keys below it, got 5"),
    ],
)
def test_a_union_with_a_default_member(frontend: Any, expected: str) -> None:
    """A frontend without a name is log-mel, and only log-mel's keys are suggested for it."""
    assert message(tree(encoder={"frontend": frontend})).startswith(expected)


def test_unknown_key_below_a_key_of_the_users_choice() -> None:
    source = {"name": "synthetic", "speekers": 3}
    text = message({"corpora": {"mine": {"source": source, "out": "o"}}}, model=PrepareConfig)
    assert text == "unknown key 'corpora.mine.source.speekers'; did you mean 'speakers'?"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("training.epochs=many", "'training.epochs': input should be a valid integer, "),
        ("training.optimiser.lr=-1", "'training.optimiser.lr': input should be greater than 0, got -1"),
        ("training.optimiser.lr=.nan", "'training.optimiser.lr': input should be a finite number, got nan"),
        ("training=5", "'training': expected keys below it, got 5"),
        ("method=simclr", "'method': expected keys below it, got 'simclr'"),
        ("training.checkpoints.milestones=[1, a]", "'training.checkpoints.milestones.1': "),
        ("ray.gpu=perhaps", "'ray.gpu': input should be a valid boolean, "),
        ("encoder.backbone.channels=30", "'encoder.backbone': 'channels' (30) must be a multiple of 'scale' (8)"),
        ("ray.workers=3", "training.batch=256 is not divisible by ray.workers=3; change one of them"),
    ],
)
def test_wrong_value(change: str, expected: str) -> None:
    text = message(tree(), change)
    assert text.startswith(expected)
    assert "more)" not in text  # a plain union's members are one problem, not several


def test_a_value_of_two_kinds_names_both() -> None:
    assert "boolean" in (text := message(tree(), "ray.gpu=perhaps")) and "'auto'" in text and "'perhaps'" in text


def test_missing_key_and_how_many_follow() -> None:
    without = {key: value for key, value in tree().items() if key != "corpus"}
    assert message(without) == "'corpus' is required and not given"
    del without["run"]
    assert message(without) == "'run' is required and not given; 'corpus' is required and not given"
    many = message({f"wrong{k}": 1 for k in range(9)} | tree())
    assert many.count("unknown key") == 6 and many.endswith(" (and 3 more)")


@pytest.mark.parametrize(
    ("key", "paths"),
    [
        ("epochs", "'training.epochs'"),
        ("lr", "'training.optimiser.lr'"),
        ("readers", "'corpus.readers'"),
        ("workers", "'ray.workers'"),
    ],
)
def test_a_key_without_its_section_is_found(key: str, paths: str) -> None:
    assert message({**tree(), key: 1}).startswith(f"unknown key '{key}'; did you mean {paths}")


def test_words_that_yaml_reads_as_truth_values_are_explained() -> None:
    text = message({**tree(), "labels": {"split": True}})
    assert text.endswith("got True: YAML reads yes, no, on and off as true and false, put quotes around the word")


@pytest.mark.parametrize(
    "text", ["a: 1\nb: 2\na: 3\n", "x:\n  a: 1\n  a: 1\n", "- {a: 1, a: 2}\n", "x: [{a: 1, a: 2}]\n"]
)
def test_a_key_that_comes_twice_is_an_error(text: str) -> None:
    with pytest.raises(
        ConfigError, match=r"^f\.yaml: not valid YAML: the key 'a' comes twice, in lines \d and \d; make"
    ):
        load_yaml(text, "f.yaml")


def test_an_override_must_not_hold_a_key_twice_either() -> None:
    with pytest.raises(ConfigError, match=r"^override 'method=\{a: 1, a: 2\}': the value is not valid YAML"):
        override({}, ["method={a: 1, a: 2}"])


def test_a_merged_key_may_come_again() -> None:
    found = load_yaml("base: &base {a: 1, b: 2}\nown: {<<: *base, a: 3}\n", "f.yaml")
    assert found["own"] == {"a": 3, "b": 2}


@pytest.mark.parametrize("method", [{}, {"name": "simclear"}])
def test_union_tag(method: dict[str, str]) -> None:
    names = (
        "simclr dino moco swav vicreg sdpn ssps pseudo_speakers supervised clar classifier fixmatch usadtm daso sleep"
    )
    known = ", ".join(f"'{name}'" for name in names.split())
    unknown = "unknown name 'simclear' (did you mean 'simclr'?); " if method else ""
    outside = ", or package.module:Class or file.py:Class" if method else ""
    assert message(tree(method=method)) == f"'method.name': {unknown}choose one of {known}{outside}"


def test_overrides_are_yaml_and_make_what_is_absent() -> None:
    given = {"a": {"b": 1}, "none": None}
    changed = override(given, ["a.b=[1, x]", "a.c.d=true", "none.e=0.5", "f=", "a.b=2.0", "text=a=b"])
    assert changed == {"a": {"b": 2.0, "c": {"d": True}}, "none": {"e": 0.5}, "f": None, "text": "a=b"}
    assert given == {"a": {"b": 1}, "none": None}


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("training.epochs", "override 'training.epochs': write it as key.path=value"),
        ("=3", "override '=3': write it as key.path=value"),
        ("run.name.x=3", "override 'run.name.x=3': 'run' holds a value, not keys"),
        ("run=[1", "override 'run=[1': the value is not valid YAML"),
    ],
)
def test_bad_override(assignment: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(tree(), [assignment])
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1\nb: 2", "x.yaml: not valid YAML: "),
        ("- 1", "x.yaml: has no keys at its top level, but is a list"),
        ("", "x.yaml: is empty; give a configuration"),
    ],
)
def test_bad_yaml(text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_yaml(text, "x.yaml")
    assert str(caught.value).startswith(expected) and "\n" not in str(caught.value)


def test_yaml_runs_no_code() -> None:
    with pytest.raises(ConfigError, match=r"x\.yaml: not valid YAML"):
        load_yaml("a: !!python/object/apply:os.getcwd []", "x.yaml")


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1, {"e": 2}]}) == {"a.b": 1, "a.c": {}, "d": [1, {"e": 2}]}
    assert flatten({}) == {}


def test_configurations_are_frozen_and_read_back_equal(tmp_path: Path) -> None:
    made = experiment(tmp_path, tmp_path)
    with pytest.raises(ValueError, match="frozen"):
        made.seed = 4  # type: ignore[misc]
    assert parse(Experiment, made.model_dump(mode="json"), "x.yaml") == made


def test_origins() -> None:
    file = tree(views={}, training={"epochs": 5, "optimiser": {"lr": 1.0}})
    overrides = ["training.optimiser.lr=2.0", "method={name: simclr, temperature: 0.5}", "memory={half: true}"]
    changed = override(file, overrides)
    where = origins(changed, overrides, parse(Experiment, changed, "x.yaml"))
    expected = {
        "run": "file",
        "training.epochs": "file",
        "training.optimiser.lr": "override",
        "training.optimiser.momentum": "default",
        "method.temperature": "override",
        "method.projector.sizes": "default",
        "memory.half": "override",
        "memory.sync": "default",
        "views.segment_s": "default",  # the file's empty mapping gives nothing
        "encoder.backbone.name": "file",
        "encoder.backbone.channels": "default",
    }
    assert {key: where[key] for key in expected} == expected


def test_ssps_must_start_and_needs_enough_utterances(tmp_path: Path) -> None:
    assert message(tree(method=SSPS), "training.epochs=1").startswith("method.start_epoch=1 is not before ")
    from rayssl.experiment.job import resolve
    from tests.runs import write_corpus

    write_corpus(tmp_path, (6, 5))
    # an epoch of batches of 8 leaves three out, so that no more than 8 references are there to be clustered
    settings = experiment(tmp_path, tmp_path, "method.clusters=9")
    with pytest.raises(ConfigError, match=r"method\.clusters=9 must be .* 8 of 11 utterances of .* batches of 8"):
        resolve(settings)
    assert resolve(experiment(tmp_path, tmp_path, "method.clusters=8")).utterances is not None


def test_a_memory_that_cannot_be_shared_or_overlap(tmp_path: Path) -> None:
    from rayssl.experiment.job import resolve
    from tests.runs import write_corpus

    write_corpus(tmp_path, (6, 5))
    with pytest.raises(ConfigError, match=r"^memory\.shards=5: .* 11 utterances has only 4 pieces; .* to 4"):
        resolve(experiment(tmp_path, tmp_path, "memory.shards=5"))
    settings = experiment(tmp_path, tmp_path, "memory.shards=4", "memory.half=true", "memory.gpus=0.5")
    job = resolve(settings)
    found = job.utterances
    assert found is not None and found.device == "cuda"
    assert found.reference_dtype == found.positive_dtype == "float16"
    assert job.header()[-1] == "memory: 4 shards of 0.0 MB, and an index of 0.0 MB"
    large = replace(found, utterances=10_000_000, queue=10_000_000, reference_dim=256, positive_dim=256)
    line = "memory: 4 shards of 2.6 GB, and an index of 0.5 GB"
    assert replace(job, utterances=large).header()[-1] == line
    assert settings.memory.actors == 5
    with pytest.raises(ConfigError, match=r"memory\.clustering=overlapped needs a method that clusters"):
        experiment(tmp_path, tmp_path, "memory.clustering=overlapped", "method.sampling=speaker")


def test_the_bound_of_ssps_needs_labels_and_no_clusters(tmp_path: Path) -> None:
    assert "set method.clusters" in message(tree(method={"name": "ssps", "start_epoch": 1}), "training.epochs=2")
    from rayssl.experiment.job import job_of, resolve
    from rayssl.memory.utterances.memory import UtteranceMemory
    from tests.runs import write_corpus

    settings = experiment(tmp_path, tmp_path, "method.sampling=speaker", "method.clusters=0")
    manifest = write_corpus(tmp_path, (6, 5))
    found = resolve(settings).utterances
    assert found is not None
    assert UtteranceMemory(found).version == 0
    with pytest.raises(ConfigError, match=r"method\.sampling=speaker: .* no labels of speaker and recording"):
        job_of(settings, manifest.model_copy(update={"recordings": 0}))


def test_yaml_reads_every_key_as_a_name() -> None:
    """In YAML `on:`, `off:`, `yes:` and `no:` are truth values: nobody could write such a key."""

    def below(model: type[Config]) -> set[type[Config]]:
        return {model, *(each for child in model.__subclasses__() for each in below(child))}

    assert Experiment in below(Config) and PrepareConfig in below(Config)
    names = {name for model in below(Config) for name in model.model_fields}
    assert [name for name in sorted(names) if yaml.safe_load(name) != name] == []
