"""Configuration files, read from a disk or a store."""

from __future__ import annotations

import errno

from rayssl import storage
from rayssl.errors import ConfigError, StorageError
from rayssl.schema import Tree, load_yaml


def read_yaml(where: str) -> Tree:
    """The mapping in the YAML file or URI ``where``.

    Raises:
        ConfigError: it is a folder or no text, or as `load_yaml` raises.
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
        raise
    return load_yaml(text, where)
