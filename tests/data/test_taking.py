"""Parts of a source: two corpora of one source share no speaker."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayssl.data import corpus, shards
from rayssl.data.corpus import PreparedCorpusConfig
from rayssl.data.sources.base import Reference
from rayssl.data.taking import TakeConfig
from rayssl.errors import CorpusError
from tests.data import corpora

LISTED = [Reference(f"u{k}", f"s{k % 40}", f"r{k % 3}") for k in range(400)] + [Reference("nobody")]


@pytest.mark.parametrize("by", ["speaker", "recording", "utterance"])
@pytest.mark.parametrize("held_out", [0.25, None])
def test_the_parts_divide_the_source(by: str, held_out: float | None) -> None:
    names = {"speaker": "s3", "recording": "s3/r0", "utterance": "u7"}
    rule = {"by": by, "held_out": [names[by]] if held_out is None else held_out}
    held, rest = (TakeConfig.model_validate({"part": part, **rule}).of(LISTED) for part in ("held_out", "rest"))
    assert sorted([*held, *rest]) == sorted(LISTED) and held and rest
    keys = {
        "speaker": lambda one: one.speaker,
        "recording": lambda one: one.recording_name(),
        "utterance": lambda one: one.name,
    }
    assert {keys[by](one) for one in held} & {keys[by](one) for one in rest} == set()
    if by != "utterance":
        assert Reference("nobody") in rest
    if held_out is not None:
        assert 0.1 < len(held) / len(LISTED) < 0.4


def test_a_share_is_the_same_in_any_listing_and_another_by_another_seed() -> None:
    rule = TakeConfig(part="held_out", held_out=0.3)
    whole = rule.of(LISTED)
    assert [one for start in range(0, len(LISTED), 7) for one in rule.of(LISTED[start : start + 7])] == whole
    assert rule.model_copy(update={"seed": 1}).of(LISTED) != whole


@pytest.mark.parametrize("write", ["folder", "parquet"])
def test_two_corpora_of_one_source(tmp_path: Path, write: str) -> None:
    if write == "folder":
        uri = corpora.write_folder(tmp_path / "in", corpora.clips())
        source: dict[str, object] = {"name": "folder", "uri": uri, "layout": ["speaker", "recording"]}
    else:
        source = {"name": "parquet", "uri": corpora.write_parquet(tmp_path / "in/a.parquet", corpora.clips())}
    found = {}
    for part in ("rest", "held_out"):
        out = f"{tmp_path}/{part}"
        take = {"part": part, "held_out": ["spk1"]}
        settings = PreparedCorpusConfig.model_validate({"source": source, "out": out, "take": take})
        corpora.prepare(settings)
        found[part] = set(shards.read_labels(out)["speaker"])
        assert shards.read_manifest(out).settings["take"]["part"] == part
    assert found == {"rest": {"spk0", "spk2"}, "held_out": {"spk1"}}


def test_a_name_that_nobody_has_is_a_mistake(tmp_path: Path) -> None:
    uri = corpora.write_folder(tmp_path / "in", corpora.clips())
    source = {"name": "folder", "uri": uri, "layout": ["speaker"]}
    take = {"part": "held_out", "held_out": ["spk1", "spk9"]}
    settings = PreparedCorpusConfig.model_validate({"source": source, "out": f"{tmp_path}/out", "take": take})
    with pytest.raises(CorpusError, match=r"take\.held_out: 'spk9' is no speaker of the source"):
        corpus.plan(settings, 0)


def test_a_corpus_without_it_keeps_its_settings(tmp_path: Path) -> None:
    """Else every corpus of before would be prepared again."""
    settings = PreparedCorpusConfig.model_validate({"source": {"name": "synthetic"}, "out": "x"})
    assert "take" not in corpus.content_settings(settings)
