"""`rayssl check` of a source: a good one passes every check, and each fault is found by the check that is for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayssl.checks.component import check
from rayssl.checks.outcome import Outcome
from rayssl.checks.source import check_source
from rayssl.data.sources.base import SourceConfig
from rayssl.data.sources.folder import FolderConfig
from rayssl.data.sources.parquet import ParquetConfig
from rayssl.data.sources.synthetic import SyntheticConfig
from rayssl.errors import ConfigError
from tests.data.corpora import clips, write_folder, write_parquet
from tests.data.sources.tones import tones_config

CHECKS = [
    "settings can be located",
    "it lists utterances",
    "names are unique",
    "listing again gives the same",
    "audio can be used",
    "reading again gives the same",
    "order and company do not matter",
    "another process gives the same",
]


def failed(config: SourceConfig) -> dict[str, str]:
    return {one.name: one.detail for one in check_source(config) if not one.passed}


@pytest.mark.long
def test_good_sources_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(6):
        files = {f"s{k}/r/{n}.flac": data for n, data in enumerate(clips(3).values())}
        write_parquet(tmp_path / f"rows/{k}.parquet", files)
    write_folder(tmp_path / "audio", clips() | {"spk0/rec0/0.wav": b"text" * 99})
    monkeypatch.chdir(tmp_path)
    outcomes: dict[str, list[Outcome]] = {}
    for config in (
        tones_config(tmp_path / "own", tones=10),
        FolderConfig(uri="audio"),
        ParquetConfig(uri="rows", recording="session"),
        SyntheticConfig(speakers=2, seconds=0.3),
    ):
        outcomes[config.short_name] = [*check_source(config)]
    for found in outcomes.values():
        assert [one.name for one in found] == CHECKS
        assert [one.text() for one in found if not one.passed] == []
    assert outcomes["parquet"][1].detail == "12 utterances in the first 4 of 6 parts, with speaker, recording"
    assert outcomes["folder"][4].detail.endswith(
        "1 rejected, first 'spk0/rec0/0.wav': unreadable: format not recognised"
    )
    assert outcomes["Tones"][4].detail.startswith("7 of 8 read, 0.25 to 0.25 s; 1 rejected, first 'p2/9': too high")


READ = "        speaker, tone = map(int, reference.locator)\n"
TONES = "            for tone in range(self.config.tones):\n"
USABLE, ELSEWHERE = "audio can be used", "another process gives the same"
# what is changed in the file, the check that finds it, and what that says
FAULTS = {
    "nothing": (TONES, "            for tone in ():\n", "it lists utterances", "nothing"),
    "one name": ("p{speaker}/{tone}", "p/{tone}", "names are unique", "two utterances are named 'p/0'"),
    "clock": (
        '"room"',
        "str(id(object))[:4] + str(np.random.rand())",
        "listing again gives the same",
        "first ('p0/0', ",
    ),
    "set": (
        TONES,
        TONES.replace("range", "map(int, set(map(str, range(20)))) or range"),
        ELSEWHERE,
        "it lists other references, or",
    ),
    "loud": ("np.float32(0.2)", "np.float32(2)", USABLE, "'p0/0': samples up to 2, they must be in [-1, 1]"),
    "silent": (
        "return np.float32",
        "return b'' and np.float32",
        USABLE,
        "0 of 8 read; 8 rejected, first 'p0/0': empty",
    ),
    "raises": (READ, READ + "        1 / 0\n", USABLE, "reading failed at 'p0/0': ZeroDivisionError: "),
    "dice": (
        READ,
        READ + "        speaker += np.random.rand()\n",
        "reading again gives the same",
        "read once more, 'p0/0' has other audio than before",
    ),
    "what was read before": (
        READ,
        READ + "        speaker += getattr(self, 'before', 0)\n        self.before = tone\n",
        "order and company do not matter",
        "read in reverse, 'p",
    ),
    "moves": (
        "        tones: int = 4\n",
        "        tones: int = 4\n        def located(self): return self.model_copy(update={'tones': self.tones + 1})\n",
        "settings can be located",
        "located() changes what it returned before: ",
    ),
    "needs the driver": (
        READ,
        READ + "        import os\n        assert 'rayssl-check' not in os.getcwd(), 'where am I'\n",
        ELSEWHERE,
        "AssertionError: where am I",
    ),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_fault_is_found_by_its_check(fault: str, tmp_path: Path) -> None:
    old, new, check, detail = FAULTS[fault]
    found = failed(tones_config(tmp_path, old, new))
    assert detail in found.get(check, ""), found
    assert "\n" not in found[check]


def test_the_command_finds_sources_by_name_and_in_files(tmp_path: Path) -> None:
    assert [one.passed for one in check("synthetic", ["speakers=2", "seconds=0.3"])] == [True] * len(CHECKS)
    name = tones_config(tmp_path).name
    assert next(one for one in check(name, ["tones=5"]) if one.name == CHECKS[1]).detail.startswith("15 utterances")
    with pytest.raises(ConfigError, match=r"unknown key 'source\.tonez'; did you mean 'tones'"):
        list(check(name, ["tonez=5"]))
    with pytest.raises(ConfigError, match=r"'source\.uri' is required"):
        list(check("folder"))
