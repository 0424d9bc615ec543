"""How long a job waits for its store."""

from __future__ import annotations

from pydantic import Field

from rayssl.schema import Config
from rayssl.storage.attempts import be_patient


class StorageConfig(Config):
    """How long a job waits for its store.

    An absent bucket and refused keys are told at once.
    """

    patience_s: float = Field(600.0, ge=0)
    """How many seconds a job tries again when a store that has answered before gives no good answer. 0 tries for a few
    seconds only. Raise it if the store may be away for longer, for example during its maintenance.
    """

    def apply(self) -> None:
        """To be called when the store has answered: a wrong address is told within seconds until then."""
        be_patient(self.patience_s)
