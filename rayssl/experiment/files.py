"""Configuration files, read from a disk or a store."""

from __future__ import annotations

import difflib
import errno
from pathlib import Path

from rayssl import storage
from rayssl.errors import ConfigError, StorageError
from rayssl.schema import Tree, load_yaml


def read_yaml(where: str) -> Tree:
    """The mapping in the YAML file or URI ``where``.

    Raises:
        ConfigError: it is absent on the disk, a folder or no text, or as `load_yaml` raises.
        StorageError: it cannot be read.
    """
    try:
        text = storage.read_text(where)
    except StorageError as error:
        if error.errno == errno.EISDIR:
            record = storage.join(where, "config.yaml")
            hint = f"; the settings of the run there are {record}" if storage.exists(record) else ""
            raise ConfigError(f"{where}: is a folder; give a YAML file{hint}") from None
        if error.errno is None and "not UTF-8" in str(error):
            raise ConfigError(f"{where}: is no text; give a YAML file") from None
        if error.errno in storage.ABSENT and not storage.is_remote(where):
            raise ConfigError(f"{where}: no such file; {_near(where)}") from None
        raise
    return load_yaml(text, where)


def _near(where: str) -> str:
    """What may have been meant by a path that does not exist."""
    path = Path(where)
    there = [each.name for each in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, there, n=1)
    if close:
        return f"did you mean {path.parent / close[0]}?"
    return "rayssl list configs shows what there is, rayssl init writes a configuration"
