"""`rayssl fetch` with sets and mirrors that the tests make, and a server on loopback."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayssl.cli import main
from rayssl.data.fetch import catalogue, chosen, fetching
from rayssl.data.fetch.catalogue import PublicFile, PublicSet
from rayssl.data.sources.folder import FolderConfig
from rayssl.data.sources.parquet import ParquetConfig
from rayssl.data.trials import read as read_trials
from rayssl.errors import CorpusError, StorageError, StorageOutage
from tests.data.fetch.server import Files, serving
from tests.data.fetch.test_archives import tar, zipped

WAV = b"RIFF" + bytes(range(256)) * 200


def a_set(path: Path, url: str = "http://127.0.0.1:9", **changes: object) -> PublicSet:
    """A set of one archive, the file at ``path``, with its true size and hash."""
    content = path.read_bytes()
    file = PublicFile(f"{url}/{path.name}", path.name, len(content), "sha256", hashlib.sha256(content).hexdigest())
    one = PublicSet("tones", "tones", "tests", "CC0 1.0", "https://tones.example", (file,), strip=1)
    return dataclasses.replace(one, **changes)  # type: ignore[arg-type]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    (tmp_path / "mirror").mkdir()
    return tar(tmp_path / "mirror" / "tones.tar.gz", ("set/a/x.wav", WAV), ("set/b/y.wav", WAV[::-1]))


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


class Said(list[str]):
    """The lines that `fetching.fetch` says."""

    def fetch(self, one: PublicSet, into: Path, mirror: Path | None = None, *, keep: bool = False) -> str:
        how = fetching.FetchOptions(into, mirror, keep, wait_s=0)
        return fetching.fetch(one, how, self.append, lambda *_: None)


def left(folder: Path) -> list[str]:
    """All files but locks."""
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"
    )


def test_from_a_mirror_and_a_second_call(tmp_path: Path, archive: Path) -> None:
    one, said = a_set(archive), Said()
    assert "2 files, 102.4 kB" in said.fetch(one, tmp_path / "data", archive.parent)
    assert left(tmp_path / "data") == ["tones/.fetched.json", "tones/a/x.wav", "tones/b/y.wav"]
    assert (tmp_path / "data/tones/b/y.wav").read_bytes() == WAV[::-1]
    assert len(said) == 1 and "is right" in said[0]
    record = json.loads((tmp_path / "data/tones/.fetched.json").read_text())
    assert record["sources"][0]["verified"] == "sha256" and record["licence"] == "CC0 1.0"
    archive.unlink()
    again = Said()
    assert "tones is in" in again.fetch(one, tmp_path / "data", archive.parent) and again == []
    config = FolderConfig(uri=str(tmp_path / "data/tones"), layout=["label"])
    assert [(each.name, each.label) for each in config.build().list()] == [("a/x.wav", "a"), ("b/y.wav", "b")]


@pytest.mark.parametrize("keep", [False, True])
def test_from_a_server_that_breaks_off(tmp_path: Path, archive: Path, keep: bool) -> None:
    with serving(Files({archive.name: archive.read_bytes()}, cuts=[100, 50])) as files:
        Said().fetch(a_set(archive, files.url), tmp_path / "data", keep=keep)
    kept = [f"downloads/{archive.name}"] if keep else []
    assert left(tmp_path / "data") == [*kept, "tones/.fetched.json", "tones/a/x.wav", "tones/b/y.wav"]


def test_no_network_says_what_to_put_where(tmp_path: Path, archive: Path) -> None:
    with pytest.raises(StorageOutage) as caught:
        Said().fetch(a_set(archive), tmp_path / "data")
    text = str(caught.value)
    assert "http://127.0.0.1:9/tones.tar.gz" in text and "rayssl fetch tones --from F" in text and "\n" not in text
    assert not (tmp_path / "data/tones").exists()


def test_a_wrong_hash(tmp_path: Path, archive: Path) -> None:
    """Of a mirror the file stays; a download is removed, and the next call downloads it again."""
    one, good = a_set(archive), archive.read_bytes()
    wrong = good[:-20] + bytes(20)
    archive.write_bytes(wrong)
    with pytest.raises(CorpusError, match=r"its sha256 is .*, and not .*; get it again from http"):
        Said().fetch(one, tmp_path / "data", archive.parent)
    assert archive.read_bytes() == wrong and not (tmp_path / "data/tones").exists()
    with serving(Files({archive.name: wrong})) as files:
        served = dataclasses.replace(one, files=(dataclasses.replace(one.files[0], url=f"{files.url}/{archive.name}"),))
        with pytest.raises(CorpusError, match="it is removed: fetch it again"):
            Said().fetch(served, tmp_path / "data")
        assert left(tmp_path / "data") == []
        files.content[archive.name] = good
        Said().fetch(served, tmp_path / "data")
    assert (tmp_path / "data/tones/a/x.wav").read_bytes() == WAV


def test_without_a_published_hash_it_says_so_and_records_what_it_saw(tmp_path: Path, archive: Path) -> None:
    one = a_set(archive)
    one, said = dataclasses.replace(one, files=(dataclasses.replace(one.files[0], kind=None, expected=""),)), Said()
    said.fetch(one, tmp_path / "data", archive.parent)
    sha = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert "cannot be verified" in said[0] and sha in said[0]
    source = json.loads((tmp_path / "data/tones/.fetched.json").read_text())["sources"][0]
    assert source["sha256"] == sha and source["verified"] is None


def test_an_archive_that_leads_out_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "mirror").mkdir()
    bad = zipped(tmp_path / "mirror/tones.zip", ("set/a/x.wav", WAV), ("set/../../../evil.wav", WAV))
    with pytest.raises(CorpusError, match="leads out of the folder"):
        Said().fetch(a_set(bad), tmp_path / "data", bad.parent)
    assert left(tmp_path) == ["mirror/tones.zip"]


def test_what_an_earlier_call_left_unfinished_goes(tmp_path: Path, archive: Path) -> None:
    (tmp_path / "data/.tones.killed.tmp/data/a").mkdir(parents=True)
    (tmp_path / "data/.tones.killed.tmp/data/a/x.wav").write_bytes(b"half")
    Said().fetch(a_set(archive), tmp_path / "data", archive.parent)
    assert left(tmp_path / "data") == ["tones/.fetched.json", "tones/a/x.wav", "tones/b/y.wav"]


def test_a_folder_that_is_not_whole_or_not_ours(tmp_path: Path, archive: Path) -> None:
    one = a_set(archive)
    Said().fetch(one, tmp_path / "data", archive.parent)
    (tmp_path / "data/tones/a/x.wav").unlink()
    with pytest.raises(CorpusError, match=r"incomplete \(1 of 2 files, 51204 of 102408 bytes\); delete this folder"):
        Said().fetch(one, tmp_path / "data", archive.parent)
    (tmp_path / "data/tones/.fetched.json").unlink()
    with pytest.raises(CorpusError, match="not made by rayssl fetch"):
        Said().fetch(one, tmp_path / "data", archive.parent)


def test_a_mirror_without_the_file(tmp_path: Path, archive: Path) -> None:
    one = a_set(archive)
    archive.rename(archive.with_name("other.tar.gz"))
    with pytest.raises(CorpusError, match=r"no tones\.tar\.gz; get it from http"):
        Said().fetch(one, tmp_path / "data", archive.parent)
    with pytest.raises(CorpusError, match="no such folder"):
        Said().fetch(one, tmp_path / "data", tmp_path / "nowhere")


def test_too_little_room(tmp_path: Path, archive: Path) -> None:
    with pytest.raises(StorageError, match=r"tones needs about .* are free; make room"):
        Said().fetch(a_set(archive, unpacked=1e15), tmp_path / "data", archive.parent)


@pytest.fixture
def small_files() -> Iterator[None]:
    """This process may write files of 60 kB at most, as if the disk were full then."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_what_the_system_refuses_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mirror").mkdir()
    path = tar(tmp_path / "mirror/tones.tar.gz", ("set/x.wav", WAV * 3))
    with pytest.raises(StorageError, match="File too large; correct it"):
        Said().fetch(a_set(path), tmp_path / "data", path.parent)
    assert left(tmp_path / "data") == []


DIGITS = [
    (f"fsdd-1/recordings/{digit}_{who}_{number}.wav", WAV + bytes([digit, number]))
    for digit in range(10)
    for who in ("ann", "bob", "theo")
    for number in (0, 4, 5, 24, 25)
]


def test_tables_of_an_archive(tmp_path: Path) -> None:
    """Chosen clips alone, in the parts that their authors advise, under the names of the mirrors, byte for byte."""
    (tmp_path / "mirror").mkdir()
    path, said = tar(tmp_path / "mirror/tones.tar.gz", *DIGITS, ("fsdd-1/README.md", b"")), Said()
    choice = dataclasses.replace(chosen.FSDD, counts={"train": 40, "test": 41})
    said.fetch(a_set(path, tables=choice), tmp_path / "data", path.parent)
    assert left(tmp_path / "data/tones") == [
        ".fetched.json", "test-00000-of-00001.parquet", "train-00000-of-00001.parquet",
    ]  # fmt: skip
    assert [line for line in said if "test: 40 clips, and not 41" in line] and "train" not in "".join(said[1:])
    source = ParquetConfig(uri=str(tmp_path / "data/tones"), files="train-*.parquet", label="label").build()
    listed = list(source.list())
    assert len(listed) == 40 and {each.label for each in listed} == set("0123456789")
    (last,) = [each for each in listed if each.name == "fsdd/bob/7_24.flac"]
    assert last.speaker == "bob" and source.read(last) == WAV + bytes([7, 24])


def test_tables_of_a_mirror(tmp_path: Path) -> None:
    """They are copied; another set's are refused."""
    (tmp_path / "mirror").mkdir()
    path = tar(tmp_path / "mirror/tones.tar.gz", *DIGITS)
    one = a_set(path, tables=chosen.FSDD)
    Said().fetch(one, tmp_path / "data", path.parent)
    tables = tmp_path / "data/tones"
    Said().fetch(one, tmp_path / "other", tables)
    for name in ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"):
        assert (tmp_path / "other/tones" / name).read_bytes() == (tables / name).read_bytes()
    with pytest.raises(CorpusError, match=r"no trials_test\.txt; it is not a mirror of this set"):
        Said().fetch(dataclasses.replace(one, tables=chosen.SPEECH_COMMANDS), tmp_path / "third", tables)
    (tables / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(CorpusError, match=r"no test-\*\.parquet"):
        Said().fetch(one, tmp_path / "third", tables)


def test_words_have_the_clips_and_trials_of_the_list(tmp_path: Path) -> None:
    """Of the real list of clips; trials are all pairs of a speaker's different words, and as many of two speakers."""
    words = chosen._words()
    assert {part: list(words.values()).count(part) for part in ("train", "test")} == chosen.SPEECH_COMMANDS.counts
    names = [f"./{word}/{speaker}_nohash_{number}.wav" for speaker, word, number in words]
    (tmp_path / "mirror").mkdir()
    path = tar(
        tmp_path / "mirror/tones.tar.gz", *((name, b"RIFF" + name.encode()) for name in (*names, "./no/0_x.wav"))
    )
    said = Said()
    said.fetch(a_set(path, tables=chosen.SPEECH_COMMANDS, strip=0), tmp_path / "data", path.parent)
    assert len(said) == 1  # no clip is missing
    trials = read_trials(str(tmp_path / "data/tones/trials_test.txt"))
    assert len(trials) == len(set(trials)) == 16_268 and sum(trial.label for trial in trials) == 8_134
    for trial in trials:
        (one, first), (two, second) = (name.split("/") for name in (trial.enrol, trial.test))
        assert (one == two) == bool(trial.label) and first.split("_")[0] != second.split("_")[0]


@pytest.mark.parametrize(
    ("choice", "name", "clip"),
    [
        (
            chosen.ESC10,
            "006 - Person sneeze/4-170247-B.ogg",
            ("all", "esc10/006_4-170247-B.flac", "freesound-170247", "person_sneeze", "fold4"),
        ),
        (
            chosen.DONATEACRY,
            "donateacry_corpus_cleaned_and_updated_data/tired/D6CDA191-4962-4308-9a36-46d5648a95ed-1431-1.7-m-04-ti.wav",
            (
                "test",
                "cry/D6CDA191-4962-4308-9a36-46d5648a95ed-1431-1.7-m-04-ti.flac",
                "d6cda191-4962-4308-9a36-46d5648a95ed",
                "tired",
                "1431",
            ),
        ),
        (chosen.ESC10, "README.md", None),
        (chosen.DONATEACRY, "donateacry-ios-upload-bucket/x.caf", None),
        (chosen.SPEECH_COMMANDS, "_background_noise_/pink_noise.wav", None),
    ],
)
def test_what_a_name_says(choice: chosen.ClipSelection, name: str, clip: tuple[str, ...] | None) -> None:
    assert choice.clip(name) == (None if clip is None else chosen.Clip(*clip))


def test_the_catalogue_is_sound() -> None:
    """Each address by https, each hash of the length of its kind, each name once."""
    lengths = {"sha256": 64, "md5": 32, "git tree": 40, None: 0}
    assert len({one.name for one in catalogue.SETS}) == len(catalogue.SETS)
    for one in catalogue.SETS:
        assert bool(one.files) != bool(one.by_hand) and one.licence and one.page.startswith("https://")
        for file in one.files:
            assert file.url.startswith("https://") and file.bytes > 0
            assert len(file.expected) == lengths[file.kind]
            assert file.name.endswith((*fetching._ARCHIVES, ".txt"))


def test_the_command_lists_shows_and_fetches(
    tmp_path: Path, archive: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fetch"]) == 0
    listed = capsys.readouterr().out
    for one in catalogue.SETS:
        assert one.name in listed and one.licence in listed
    assert "2.4 GB to download" in listed and listed.endswith("next: rayssl fetch NAME\n")
    one = a_set(archive, name="fsdd", then="rayssl prepare configs/digits_prepare.yaml")
    monkeypatch.setattr(catalogue, "SETS", (one,))
    assert main(["fetch", "fsdd", "--from", "mirror"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "licence: CC0 1.0" in lines[1] and lines[-1] == "next: rayssl prepare configs/digits_prepare.yaml"
    assert (tmp_path / "runs/data/fsdd/a/x.wav").exists()
    assert main(["fetch", "fsdd"]) == 0
    assert "fsdd is in runs/data/fsdd: 2 files" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["fsd"], ["no data set 'fsd'", "fsdd"]),
        (["voxceleb2"], ["publisher's consent", "runs/data/voxceleb2/dev"]),
        (["psg-audio"], ["10.11922/sciencedb.00345", "runs/data/psg-audio"]),
        (["fsdd", "--into", "s3://bucket/x"], ["--into", "folder of this machine"]),
        (["fsdd", "--from", "nowhere"], ["nowhere", "no such folder"]),
        (["--from", "nowhere"], ["name the data set"]),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    parts: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fetch", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and [part for part in parts if part not in error] == [], error
