"""The settings and the listing of a source identify a corpus: what is hashed stays the same bytes for ever."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayssl.data import corpus
from rayssl.data.corpus import PrepareConfig, PreparedCorpusConfig
from rayssl.data.sources.registry import SOURCES
from rayssl.errors import ConfigError
from rayssl.schema import parse
from tests.data.corpora import write_folder, write_parquet, write_tar

FILES = {f"spk{k % 3}/rec{k // 3 % 2}/{k:02d}.flac": b"audio" * k for k in range(12)}
SOURCES_OF = {
    "folder": {"uri": "audio", "layout": ["speaker", "recording"]},
    "csv": {"uri": "audio", "csv": "list.csv", "files": "spk*"},
    "parquet": {"uri": "rows", "recording": "session"},
    "where": {"uri": "rows", "where": {"session": ["rec1"]}, "label": "digit"},
    "webdataset": {"uri": "tars"},
    "synthetic": {"speakers": 3, "seconds": 0.5},
}
NAMES = {"csv": "folder", "where": "parquet"}
# Digest of the plan as the first commit with recipe 2 wrote it; settings of the source as commit 16a23d4 wrote them.
PINNED = {
    "folder": (
        "61926409851865b0",
        '{"name": "folder", "uri": "audio", "files": "*", "layout": ["speaker", "recording"], "csv": null}',
    ),
    "csv": (
        "57e7a8e65b604273",
        '{"name": "folder", "uri": "audio", "files": "spk*", "layout": [], "csv": "list.csv"}',
    ),
    "parquet": (
        "8131b84206fbe83f",
        '{"name": "parquet", "uri": "rows", "files": "*.parquet", "id": "id", "audio": "audio", "speaker": "speaker", '
        '"recording": "session", "label": null}',
    ),
    "where": (
        "a409910576a7705a",
        '{"name": "parquet", "uri": "rows", "files": "*.parquet", "id": "id", "audio": "audio", "speaker": "speaker", '
        '"recording": null, "label": "digit", "where": {"session": ["rec1"]}}',
    ),
    "webdataset": (
        "4eed687ed491f5aa",
        '{"name": "webdataset", "uri": "tars", "files": "*.tar", "speaker": "speaker", "recording": "recording", '
        '"label": "label"}',
    ),
    "synthetic": (
        "ee65e7b604458b47",
        '{"name": "synthetic", "seed": 0, "speakers": 3, "recordings": 4, "utterances": 4, "seconds": 0.5, '
        '"first_speaker": 0, "channel": 0.6}',
    ),
}


@pytest.mark.parametrize("kind", list(PINNED))
def test_a_corpus_prepared_long_ago_is_still_the_same(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "audio", FILES)
    rows = "".join(f"{name},{name.split('/')[0]},{name.split('/')[1]}\n" for name in FILES)
    (tmp_path / "list.csv").write_text("path,speaker,recording\n" + rows)
    write_parquet(tmp_path / "rows/0.parquet", FILES)
    write_tar(tmp_path / "tars/0.tar", FILES)
    monkeypatch.chdir(tmp_path)
    source = {"name": NAMES.get(kind, kind), **SOURCES_OF[kind]}
    changes = {"shard_utterances": 5, "conditions": {"count": 4, "per_utterance": 2}}
    settings = PreparedCorpusConfig.model_validate({"source": source, "out": f"out/{kind}", **changes})
    digest, dumped = PINNED[kind]
    assert json.dumps(corpus.content_settings(settings)["source"]) == dumped
    assert corpus.plan(settings, 0).digest == digest


def test_every_source_of_ours_is_found_and_has_its_own_name() -> None:
    assert SOURCES.names()[: len(SOURCES.builtin)] == list(SOURCES.builtin)
    for name in SOURCES.builtin:
        assert SOURCES.find(name).model_fields["name"].default == name


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"name": "foldr", "uri": "u"}, r"'corpora.a.source.name': unknown name 'foldr' \(did you mean 'folder'\?\)"),
        ({"uri": "u"}, "'corpora.a.source.name': choose one of 'folder', 'parquet', "),
        ({"name": "folder", "url": "u"}, "'corpora.a.source.uri' is required .*unknown key"),
        ({"name": "folder", "uri": "u", "layot": []}, "unknown key 'corpora.a.source.layot'; did you mean 'layout'"),
        ({"name": "rayssl.data.decode:DecodeError"}, "is not a source: the class needs a Config that extends rayssl"),
    ],
)
def test_mistakes_are_told_with_their_key(source: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(PrepareConfig, {"corpora": {"a": {"source": source, "out": "o"}}}, "c.yaml")
