"""A data set by its address ``hf://``, with the client of Hugging Face and a hub on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.data.corpora import clips, write_parquet
from tests.data.sources.hub import hub

_CODE = """
import json
from rayssl.data.sources.checked import CheckedSource
from rayssl.data.sources.parquet import ParquetConfig
source = CheckedSource(ParquetConfig(uri="hf://datasets/us/talks/data", files="train-*.parquet"))
references = [one for part in source.parts() for one in source.list_part(part)]
some = references[::3]
audio = {some[k].name: len(data) for k, data in source.read(some)}
print(json.dumps([source.parts(), [one.name for one in references], audio]))
"""


def test_a_data_set_by_its_address(tmp_path: Path) -> None:
    files = clips()
    write_parquet(tmp_path / "data/train-0.parquet", files, structs=True)
    write_parquet(tmp_path / "data/test-0.parquet", files)
    with hub(tmp_path) as address:
        environment = {
            **os.environ,
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", _CODE], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
    assert done.returncode == 0, done.stderr
    parts, names, audio = json.loads(done.stdout)
    assert parts == ["train-0.parquet"] and names == list(files)
    assert audio == {name: len(files[name]) for name in names[::3]}
