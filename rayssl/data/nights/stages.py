"""The names of sleep stages in public formats, as indices into `STAGES`: Wake, Light, Deep, REM.

Light is N1 and N2; Deep is N3, and stages 3 and 4 of Rechtschaffen and Kales (R&K). Movement time and artefacts are
`UNSCORED`. Case, spaces, hyphens and underscores do not matter, nor does one of the words of `PREFIXES` before a name.
"""

from __future__ import annotations

import re

from rayssl.data.sources.nights import STAGES, UNSCORED

WAKE, LIGHT, DEEP, REM = range(len(STAGES))
#: What stands before a stage in EDF+ ("Sleep stage W") and RemLogic ("SLEEP-S0").
PREFIXES = ("SLEEPSTAGE", "SLEEP", "STAGE")

_NAMES = {
    WAKE: "W WAKE AWAKE WK WAKEFULNESS S0 0",
    LIGHT: "N1 N2 S1 S2 1 2 NREM1 NREM2 NONREM1 NONREM2 LIGHT L",
    DEEP: "N3 N4 S3 S4 3 4 NREM3 NREM4 NONREM3 NONREM4 DEEP D SWS",
    REM: "R REM 5",
    UNSCORED: "? NOTSCORED UNSCORED UNKNOWN UNDEFINED NONE NA N/A U X E N NREM 6 7 8 9 M MT MOVEMENT MOVEMENTTIME "
    "M(T) ARTIFACT ARTEFACT A",
}
_STAGE_OF = {name: stage for stage, names in _NAMES.items() for name in names.split()} | {"-1": UNSCORED, "": UNSCORED}


def stage(name: str) -> int | None:
    """The stage that ``name`` means: an index into `STAGES` or `UNSCORED`; None if the name is unknown.

    ``Sleep stage N2``, ``NonREM2``, ``S2`` and ``2`` are Light; ``?``, ``NotScored`` and no name are `UNSCORED`.
    """
    bare = name.strip().upper()
    if bare in _STAGE_OF:
        return _STAGE_OF[bare]
    short = re.sub(r"[\s_-]", "", bare)
    for prefix in ("", *PREFIXES):
        found = _STAGE_OF.get(short.removeprefix(prefix))
        if found is not None and (short != prefix or not prefix):
            return found
    return None


def has_prefix(name: str) -> bool:
    """Whether ``name`` says that it is a sleep stage: it begins with one of the `PREFIXES`, and a stage follows."""
    short = re.sub(r"[\s_-]", "", name.upper())
    return any(short.startswith(prefix) and len(short) > len(prefix) for prefix in PREFIXES)
