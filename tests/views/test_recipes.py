"""View configuration: defaults hold, and mistakes name the key."""

import pytest

from rayssl.errors import ConfigError
from rayssl.schema import parse
from rayssl.views.recipes import Segment, ViewsConfig


def test_defaults() -> None:
    views = parse(ViewsConfig, {}, "run.yaml")
    assert (views.segment_s, views.reference_s) == (2.0, 4.0)
    assert Segment(name="a", seconds=2.0, distort=True).samples(16000) == 32000


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"distort": {"noise": {"p": 1.5}}}, "distort.noise.p"),
        ({"distort": {"noise": {"snr_db": [10, 0]}}}, "distort.noise.snr_db.*first bound"),
        ({"distort": {"noise": {"kinds": ["white", "corpus"]}}}, "distort.noise.*give 'corpus'"),
        ({"distort": {"noise": {"corpus": "s3://noises/a"}}}, "distort.noise.*give 'corpus'"),
        ({"distort": {"noise": {"kinds": ["white", "white"]}}}, "named once"),
        ({"distort": {"noise": {"kinds": ["purple"]}}}, "distort.noise.kinds"),
        ({"distort": {"reverb": {"rt60_s": [0.0, 0.3]}}}, "rt60_s"),
        ({"distort": {"revreb": {"p": 0.3}}}, "unknown key 'distort.revreb'; did you mean 'reverb'"),
        ({"segment_s": 0}, "segment_s"),
    ],
)
def test_mistakes_name_the_key(tree: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(ViewsConfig, tree, "run.yaml")
