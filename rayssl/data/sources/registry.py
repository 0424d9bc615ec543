"""The sources that ``source.name`` can choose."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from rayssl.data.sources.base import SourceConfig
from rayssl.registry import Registry

SOURCES = Registry(
    "source",
    SourceConfig,
    {
        "folder": "rayssl.data.sources.folder:Folder",
        "parquet": "rayssl.data.sources.parquet:Parquet",
        "webdataset": "rayssl.data.sources.webdataset:WebDataset",
        "kaldi": "rayssl.data.sources.kaldi:Kaldi",
        "lhotse": "rayssl.data.sources.lhotse:Lhotse",
        "synthetic": "rayssl.data.sources.synthetic:Synthetic",
        "nights": "rayssl.data.sources.night_files:NightFiles",
        "synthetic_nights": "rayssl.data.sources.night_synthetic:SyntheticNights",
    },
    group="rayssl.sources",
)
AnySource: TypeAlias = Annotated[SourceConfig, SOURCES]
