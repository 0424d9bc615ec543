"""View configuration: defaults hold, and mistakes name the key."""

import pytest

from rayssl.errors import ConfigError
from rayssl.schema import parse
from rayssl.views.recipes import Segment, ViewsConfig


def test_defaults() -> None:
    views = parse(ViewsConfig, {}, "run.yaml")
    assert (views.segment_s, views.reference_s) == (2.0, 4.0)
    assert (Segment(name="a", seconds=2.0).recipe, Segment(name="a", seconds=2.0).disjoint) == ("none", False)
    for recipe in (views.weak, views.strong):
        assert {part["p"] for part in recipe.model_dump().values()} == {0.0}
    assert Segment(name="a", seconds=2.0, recipe="distort").samples(16000) == 32000


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"distort": {"noise": {"p": 1.5}}}, "distort.noise.p"),
        ({"distort": {"noise": {"snr_db": [10, 0]}}}, "distort.noise.snr_db.*first bound"),
        ({"distort": {"noise": {"kinds": ["white", "corpus"]}}}, "distort.noise.*give 'corpus'"),
        ({"distort": {"noise": {"corpus": "s3://noises/a"}}}, "distort.noise.*give 'corpus'"),
        ({"distort": {"noise": {"kinds": ["white", "music"]}}}, "distort.noise.*give 'corpora.music'"),
        ({"distort": {"noise": {"corpora": {"speech": "s3://noises/a"}}}}, "distort.noise.*give 'corpora.speech'"),
        ({"distort": {"noise": {"snr_db_of": {"music": [0, 1]}}}}, "distort.noise.*'snr_db_of.music'"),
        ({"distort": {"noise": {"snr_db_of": {"white": [3, 1]}}}}, "distort.noise.snr_db_of.*first bound"),
        ({"distort": {"noise": {"kinds": ["white", "white"]}}}, "names a kind twice"),
        ({"distort": {"noise": {"kinds": ["purple"]}}}, "distort.noise.kinds"),
        ({"distort": {"reverb": {"rt60_s": [0.0, 0.3]}}}, "rt60_s"),
        ({"distort": {"revreb": {"p": 0.3}}}, "unknown key 'distort.revreb'; did you mean 'reverb'"),
        ({"segment_s": 0}, "segment_s"),
        ({"weak": {"fade": {"p": 2}}}, "weak.fade.p"),
        ({"strong": {"time_mask": {"most": 1.0}}}, "strong.time_mask.most"),
        ({"strong": {"time_shift": {"most": 1.5}}}, "strong.time_shift.most"),
        (
            {"strong": {"time_stretch": {"rate": [0.0, 1.5]}}},
            "'strong.time_stretch': .*'rate' must be within 0.25 and 4",
        ),
        ({"strong": {"time_stretch": {"rate": [1.5, 0.5]}}}, "strong.time_stretch.rate.*first bound"),
        ({"strong": {"pitch_shift": {"semitones": [-15, 36]}}}, "'semitones' must be within -24 and 24"),
        ({"weak": {"pitchshift": {"p": 0.5}}}, "unknown key 'weak.pitchshift'; did you mean 'pitch_shift'"),
    ],
)
def test_mistakes_name_the_key(tree: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(ViewsConfig, tree, "run.yaml")


def test_segments_name_a_known_recipe() -> None:
    with pytest.raises(ConfigError, match="'recipe': input should be 'none', 'distort', 'weak' or 'strong'"):
        parse(Segment, {"name": "a", "seconds": 1.0, "recipe": "loud"}, "run.yaml")
