"""The data sets that ``rayssl fetch`` knows: address, size, hash and licence of each, and what it is for.

Sizes and hashes are those that others publish: OpenSLR in its own lists, TensorFlow Datasets and torchaudio (Speech
Commands, LibriSpeech), recipes of PaddlePaddle and Kiwano (VoxCeleb's lists). GitHub makes the archive of a
commit anew when it is asked for one, so only the tree of the commit says what must be in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rayssl.data.fetch import chosen
from rayssl.errors import ConfigError

Kind = Literal["sha256", "md5", "git tree"]

#: Where data sets are put, one folder each. The configurations name this place.
PLACE = "runs/data"


@dataclass(frozen=True)
class PublicFile:
    """A file to download: an archive (``.tar.gz``, ``.zip``), or a plain file.

    ``url``: its address. ``size``: bytes, 0 if nobody has published them; ``about`` is shown then. ``kind`` and
    ``expected``: its hash in hexadecimal, or the tree of its commit; None if no hash of it can be trusted.
    """

    url: str
    name: str
    size: int = 0
    kind: Kind | None = None
    expected: str = ""
    about: int = 0

    @property
    def bytes(self) -> int:
        """The size to show and to plan with."""
        return self.size or self.about


@dataclass(frozen=True)
class PublicSet:
    """A data set.

    Args:
        name: its name on the command line, and its folder below the place of all sets.
        what: what it holds.
        purpose: what it is for here.
        licence: the licence of the recordings.
        page: where its publisher describes it.
        files: what to download. Nothing: it cannot be downloaded without its publisher's consent; see ``by_hand``.
        by_hand: what to put where, in one line.
        strip: how many folders to leave out at the start of the names in the archives.
        unpacked: about how many bytes the folder needs, for each byte of the archives.
        tables: chooses clips; they are then stored as Parquet, with these names as utterances. None: files as they are.
        then: the command that comes next.
    """

    name: str
    what: str
    purpose: str
    licence: str
    page: str
    files: tuple[PublicFile, ...] = ()
    by_hand: str = ""
    strip: int = 0
    unpacked: float = 1.2
    tables: chosen.ClipSelection | None = None
    then: str = ""

    @property
    def bytes(self) -> int:
        """Of all downloads."""
        return sum(file.bytes for file in self.files)


_SPEECH_COMMANDS = PublicFile(
    "https://storage.googleapis.com/download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
    "speech_commands_v0.02.tar.gz",
    2_428_923_189,
    "sha256",
    "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
)
_SLR = "https://www.openslr.org/resources"
_VOXCELEB = "https://www.robots.ox.ac.uk/~vgg/data/voxceleb"
_ESC10 = "553c8f1743b9dba6b282e1323c3ca8fa76923448"
_CRY = "6baf5aca0460964ad072653585837f968a87c2af"

SETS = (
    PublicSet(
        name="speech-commands-sv",
        what="one-second words: 320 speakers to train, 100 to test, nine words, with trials",
        purpose="gsc_*.yaml, words_*.yaml",
        licence="CC BY 4.0",
        page="https://arxiv.org/abs/1804.03209",
        files=(_SPEECH_COMMANDS,),
        unpacked=0.1,
        tables=chosen.SPEECH_COMMANDS,
        then="rayssl prepare configs/gsc_prepare.yaml",
    ),
    PublicSet(
        name="fsdd",
        what="spoken digits: five of the six speakers, 25 recordings of each digit (Free Spoken Digit Dataset)",
        purpose="digits_*.yaml",
        licence="CC BY-SA 4.0",
        page="https://github.com/Jakobovski/free-spoken-digit-dataset",
        files=(
            PublicFile(
                "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/v1.0.10.tar.gz",
                "free-spoken-digit-dataset-1.0.10.tar.gz",
                kind="git tree",
                expected="2812395cc0d09f07e2bea672d0c436e937a1ab5f",
                about=15_602_882,
            ),
        ),
        strip=1,
        tables=chosen.FSDD,
        then="rayssl prepare configs/digits_prepare.yaml",
    ),
    PublicSet(
        name="esc10",
        what="environmental sounds: 400 clips of 5 s, ten classes, five folds (ESC-10, a part of ESC-50)",
        purpose="esc10_*.yaml",
        licence="CC BY 3.0, single clips CC0; its README names the authors",
        page="https://github.com/karolpiczak/ESC-10",
        files=(
            PublicFile(
                f"https://github.com/karolpiczak/ESC-10/archive/{_ESC10}.tar.gz",
                f"ESC-10-{_ESC10}.tar.gz",
                kind="git tree",
                expected="f8db9607bde042265b003ca19f94b63c484aeefe",
                about=42_000_000,
            ),
        ),
        strip=1,
        tables=chosen.ESC10,
        then="rayssl prepare configs/esc10_prepare.yaml",
    ),
    PublicSet(
        name="donateacry",
        what="infants' cries of five kinds, of which five in six are hungry (donateacry-corpus)",
        purpose="cry_*.yaml",
        licence="ODbL 1.0 / DbCL 1.0",
        page="https://github.com/gveres/donateacry-corpus",
        files=(
            PublicFile(
                f"https://github.com/gveres/donateacry-corpus/archive/{_CRY}.tar.gz",
                f"donateacry-corpus-{_CRY}.tar.gz",
                kind="git tree",
                expected="4533962919e3d204fe996f141fed58c8a9120c87",
                about=70_000_000,
            ),
        ),
        strip=1,
        tables=chosen.DONATEACRY,
        then="rayssl prepare configs/cry_prepare.yaml",
    ),
    PublicSet(
        name="speech-commands",
        what="Speech Commands v0.02 as published: 35 words, a folder each, and six background noises",
        purpose="words of your own choice",
        licence="CC BY 4.0",
        page="https://arxiv.org/abs/1804.03209",
        files=(_SPEECH_COMMANDS,),
        unpacked=1.5,
    ),
    PublicSet(
        name="mini-librispeech",
        what="read English speech: train-clean-5 and dev-clean-2, SPEAKER/CHAPTER/x.flac",
        purpose="trials of your own",
        licence="CC BY 4.0",
        page="https://www.openslr.org/31",
        files=(
            PublicFile(
                f"{_SLR}/31/train-clean-5.tar.gz",
                "train-clean-5.tar.gz",
                332_954_390,
                "md5",
                "5df7d4e78065366204ca6845bb08f490",
            ),
            PublicFile(
                f"{_SLR}/31/dev-clean-2.tar.gz",
                "dev-clean-2.tar.gz",
                126_046_265,
                "md5",
                "6d7ab67ac6a1d2c993d050e16d61080d",
            ),
        ),
        strip=1,
    ),
    PublicSet(
        name="librispeech-dev-clean",
        what="read English speech: 40 speakers, 5.4 h, SPEAKER/CHAPTER/x.flac",
        purpose="trials of your own",
        licence="CC BY 4.0",
        page="https://www.openslr.org/12",
        files=(
            PublicFile(
                f"{_SLR}/12/dev-clean.tar.gz",
                "dev-clean.tar.gz",
                337_926_286,
                "sha256",
                "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3",
            ),
        ),
        strip=1,
    ),
    PublicSet(
        name="musan",
        what="noises, music and speech to add",
        purpose="views.distort.noise",
        licence="CC BY 4.0; each folder has a LICENSE",
        page="https://www.openslr.org/17",
        files=(
            PublicFile(
                f"{_SLR}/17/musan.tar.gz",
                "musan.tar.gz",
                11_086_114_085,
                "md5",
                "0c472d4fc0c5141eca47ad1ffeb2a7df",
            ),
        ),
        strip=1,
        then="rayssl prepare configs/noises_prepare.yaml",
    ),
    PublicSet(
        name="rirs",
        what="impulse responses of rooms, simulated and recorded, and point noises (RIRS_NOISES)",
        purpose="views.distort.reverb",
        licence="Apache 2.0",
        page="https://www.openslr.org/28",
        files=(
            PublicFile(
                f"{_SLR}/28/rirs_noises.zip",
                "rirs_noises.zip",
                1_311_166_223,
                "md5",
                "e6f48e257286e05de56413b4779d8ffb",
            ),
        ),
        strip=1,
        unpacked=2.0,
        then="rayssl prepare configs/noises_prepare.yaml",
    ),
    PublicSet(
        name="voxceleb-trials",
        what="the cleaned lists of trials Vox1-O (veri_test2), Vox1-E (list_test_all2), Vox1-H (list_test_hard2)",
        purpose="voxceleb*.yaml",
        licence="CC BY 4.0",
        page=f"{_VOXCELEB}/vox1.html",
        files=tuple(
            PublicFile(f"{_VOXCELEB}/meta/{name}", name, kind="md5", expected=md5, about=about)
            for name, md5, about in (
                ("veri_test2.txt", "b73110731c9223c1461fe49cb48dddfc", 2_000_000),
                ("list_test_all2.txt", "a53e059deb562ffcfc092bf5d90d9f3a", 36_000_000),
                ("list_test_hard2.txt", "857790e09d579a68eb2e339a090343c8", 34_000_000),
            )
        ),
    ),
    PublicSet(
        name="voxceleb1",
        what="VoxCeleb1: 1,251 speakers, wav/SPEAKER/VIDEO/x.wav",
        purpose="voxceleb*.yaml",
        licence="CC BY 4.0 of the lists; the speech is that of the videos",
        page=f"{_VOXCELEB}/vox1.html",
        by_hand="ask for it on its page; put vox1_test_wav.zip's folders id10270 ... into {folder}/test",
    ),
    PublicSet(
        name="voxceleb2",
        what="VoxCeleb2's development part: 5,994 speakers, SPEAKER/VIDEO/x.wav",
        purpose="voxceleb*.yaml",
        licence="CC BY 4.0 of the lists; the speech is that of the videos",
        page=f"{_VOXCELEB}/vox2.html",
        by_hand="ask for it on its page; put its folders id00012 ... into {folder}/dev (m4a needs 'pip install av')",
    ),
    PublicSet(
        name="psg-audio",
        what="nights of sleep with the sound of two microphones: EDF in parts of an hour, stages in RML",
        purpose="nights of your own, see configs/README.md",
        licence="see its page",
        page="https://doi.org/10.11922/sciencedb.00345",
        by_hand="get it from its page, which may ask you to log in; put the EDF files with their RML into {folder}",
    ),
)


def find(name: str) -> PublicSet:
    """The set called ``name``. Raises `ConfigError`, with the names that there are."""
    for one in SETS:
        if one.name == name:
            return one
    raise ConfigError(f"no data set '{name}'; there are {', '.join(one.name for one in SETS)}")


def in_units(count: int) -> str:
    """A number of bytes for people: ``12.0 MB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
