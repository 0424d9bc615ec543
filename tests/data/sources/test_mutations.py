"""Lists, tars, manifests, trials and configurations with random damage: read, or one line of the project's own."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from rayssl import storage
from rayssl.data import shards, trials
from rayssl.data.sources.folder import FolderConfig
from rayssl.data.sources.kaldi import KaldiConfig
from rayssl.data.sources.lhotse import LhotseConfig
from rayssl.data.sources.webdataset import WebDatasetConfig
from rayssl.errors import UserError
from rayssl.experiment.config import Experiment
from rayssl.schema import load_yaml, parse
from tests.data.corpora import encoded, sine
from tests.runs import write_corpus

PIECES = (b"\t", b",", b'"', b"\n", b"\r", b"\0", b"\xff", b"\xef\xbb\xbf", b":", b"{", b"- ", b"&a ", b"*a", b"<<: ")


def mutated(data: bytes, chance: random.Random) -> bytes:
    made = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 5])):
        at = chance.randrange(max(1, len(made)))
        kind = chance.randrange(4)
        if kind == 0:
            made[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            del made[at : at + chance.choice([1, 3, 50])]
        elif kind == 2:
            made[at:at] = chance.choice(PIECES)
        else:
            made[at:at] = made[max(0, at - 20) : at]
    return bytes(made)


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for number in range(3):
            for name, data in ((f"{number}.flac", encoded(sine(number, 0.1))), (f"{number}.json", b'{"speaker": "s"}')):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def read_tar(root: Path) -> None:
    source = WebDatasetConfig(uri=str(root / "0.tar")).build()
    for reference in source.list():
        source.read(reference)


CONFIG = Path(__file__).parents[3] / "configs" / "gsc_ssps_simclr.yaml"
LIST = b"path,speaker,label\n" + b"".join(b'a%d.wav,s%d,"x y"\n' % (k, k % 3) for k in range(10))
CUTS = b"".join(
    b'{"id": "c%d", "start": 0.5, "duration": 1.0, "channel": 0, "supervisions": [{"id": "s", "recording_id": "r",'
    b' "start": 0, "duration": 1, "channel": 0, "speaker": "ann", "custom": {"x": 1}}], "recording": {"id": "r",'
    b' "sources": [{"type": "file", "channels": [0, 1], "source": "a.wav"}], "sampling_rate": 16000,'
    b' "num_samples": 32000, "duration": 2.0, "channel_ids": [0, 1], "transforms": null}, "type": "MonoCut"}\n' % k
    for k in range(4)
)
READ: dict[str, Callable[[Path], object]] = {
    "list.csv": lambda root: list(FolderConfig(uri=str(root), csv=str(root / "list.csv")).build().list()),
    "trials.txt": lambda root: trials.read(str(root / "trials.txt")),
    "0.tar": read_tar,
    "segments": lambda root: list(KaldiConfig(uri=str(root)).build().list()),
    "cuts.jsonl": lambda root: list(LhotseConfig(uri=str(root), cuts="cuts.jsonl").build().list()),
    "cuts.jsonl.gz": lambda root: list(LhotseConfig(uri=str(root), cuts="cuts.jsonl.gz").build().list()),
    "manifest.json": lambda root: shards.read_manifest(str(root)),
    "c.yaml": lambda root: parse(Experiment, load_yaml(storage.read_text(str(root / "c.yaml")), "c"), "c"),
}


@pytest.mark.parametrize("name", READ)
def test_a_mutated_file_is_read_or_told_in_one_line(tmp_path: Path, name: str) -> None:
    write_corpus(tmp_path, (4, 4))
    (tmp_path / "wav.scp").write_text("r1 a.wav\n")
    sound = {
        "list.csv": LIST,
        "trials.txt": b"".join(b"%d\tu%d\tu%d\n" % (k % 2, k, k + 1) for k in range(10)),
        "0.tar": tar(),
        "segments": b"a r1 0 1\nb r1 1 2\n",
        "cuts.jsonl": CUTS,
        "cuts.jsonl.gz": gzip.compress(CUTS),
        "manifest.json": (tmp_path / "manifest.json").read_bytes(),
        "c.yaml": CONFIG.read_bytes(),
    }[name]
    chance = random.Random(name)
    for _ in range(250):
        (tmp_path / name).write_bytes(mutated(sound, chance))
        assert "\n" not in told(READ[name], tmp_path)


def told(read: Callable[[Path], object], root: Path) -> str:
    try:
        read(root)
    except UserError as error:
        return str(error)
    return ""
