"""What a page says of a run that has no results yet."""

from __future__ import annotations

import shlex

from rayssl.reports.content import Code, Paragraph
from rayssl.reports.run.reading import Run


def not_evaluated(run: Run) -> Paragraph:
    """The command that evaluates ``run``."""
    command = Code(f"rayssl evaluate {shlex.quote(run.uri)}")
    return Paragraph(["This run has not been evaluated yet; ", command, " does that."])
