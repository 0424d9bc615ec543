"""Names as users give them to files survive the whole way: from the listing to shards, trials and what reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayssl import storage
from rayssl.data import shards, trials
from rayssl.data.corpus import PreparedCorpusConfig
from rayssl.data.trials import TrialsConfig
from tests.data.corpora import encoded, prepare, sine

BASES = [
    "plain", "with space", " leading", "trailing ", "tab\there", "line\nbreak", "hash#mark", "what?", "100%", "a%20b",
    "%23", "ümlaut", "日本", "quote'\"", "back\\slash", "semi;colon,comma", "-dash", "a&b=c+d", "star*[x]{y}", "~home",
    "e\u0301 combining", "$HOME", "line\u2028sep", "#c", "x@1.000-2.000",
]  # fmt: skip


def files() -> dict[str, bytes]:
    """A file of each name below each of two speakers in two recordings."""
    return {
        f"s{k % 2}{base if k % 3 else ''}/r{k // 2 % 2}/{base}.flac": encoded(sine(k, 0.3))
        for k, base in enumerate(BASES * 2)
    }


def check(uri: str, out: str, given: dict[str, bytes]) -> None:
    source = {"name": "folder", "uri": uri, "layout": ["-", "recording"]}
    settings = PreparedCorpusConfig.model_validate({"source": source, "out": out, "min_s": 0})
    manifest = prepare(settings)
    rejects = shards.read_rejects(out)
    assert not rejects and manifest.rows == len(given)
    names = [name for part in manifest.shards for name in shards.read_shard(out, part, ["name"])["name"].to_pylist()]
    assert sorted(names) == sorted(given)
    listed = [trials.Trial(k % 2, one, other) for k, (one, other) in enumerate(zip(names, names[::-1], strict=True))]
    trials.write(storage.join(out, "trials.txt"), listed)
    assert trials.read_for(storage.join(out, "trials.txt"), out) == listed


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_names_of_files_survive(scheme: str, tmp_path: Path) -> None:
    given = files()
    for name, data in given.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    check(f"{scheme}{tmp_path}/in", f"{scheme}{tmp_path}/out", given)


def test_made_trials_of_such_names_are_read_again(tmp_path: Path) -> None:
    given = files()
    for name, data in given.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    source = {"name": "folder", "uri": str(tmp_path / "in"), "layout": ["speaker", "recording"]}
    prepare(PreparedCorpusConfig.model_validate({"source": source, "out": str(tmp_path / "out")}))
    made = trials.make(TrialsConfig(out=str(tmp_path / "t.txt"), pairs=40), str(tmp_path / "out"))
    assert len(trials.read_for(str(tmp_path / "t.txt"), str(tmp_path / "out"))) == made.trials > 0


@pytest.mark.s3
def test_keys_of_an_object_store_survive(s3_server: Any) -> None:
    bucket = s3_server.bucket("names")
    fs, path = storage.filesystem(f"{bucket}/in")
    given = {name: data for name, data in files().items() if "\n" not in name and "\u2028" not in name}
    given |= {"double//slash.flac": encoded(sine(1, 0.3)), "a//b///c.flac": encoded(sine(2, 0.3))}
    for name, data in given.items():
        fs.pipe_file(f"{path}/{name}", data)
    source = {"name": "folder", "uri": f"{bucket}/in"}
    manifest = prepare(PreparedCorpusConfig.model_validate({"source": source, "out": f"{bucket}/out"}))
    rejects = [(reject.name, reject.reason) for reject in shards.read_rejects(f"{bucket}/out")]
    assert not rejects and manifest.rows == len(given)
