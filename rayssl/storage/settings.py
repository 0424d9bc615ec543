"""How long a job waits for its store."""

from __future__ import annotations

from pydantic import Field

from rayssl.schema import Config
from rayssl.storage.attempts import be_patient


class StorageConfig(Config):
    """``patience_s``: how long to try again, once the store has answered, if it gives no good answer; 0: for seconds.

    An absent bucket and refused keys are told at once.
    """

    patience_s: float = Field(600.0, ge=0)

    def apply(self) -> None:
        """To be called when the store has answered: a wrong address is told within seconds until then."""
        be_patient(self.patience_s)
