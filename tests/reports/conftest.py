"""Run folders for the tests of reports, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayssl.reports.content import Picture
from rayssl.reports.run.figures import pictures
from rayssl.reports.run.page import write_report
from rayssl.reports.run.reading import read_run
from tests.reports.example_classes import write_class_run
from tests.reports.example_run import write_run


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run with SSPS and evaluation, small enough to draw in a moment."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    return write_run(folder, epochs=6, steps=10, speakers=6, per_speaker=12)


@pytest.fixture(scope="session")
def drawn(small_run: Path) -> dict[str, Picture]:
    """The pictures of the small run."""
    return pictures(read_run(str(small_run)))


@pytest.fixture(scope="session")
def page(small_run: Path) -> str:
    """The report that the small run's folder gets; drawn on its own, not from `drawn`."""
    assert write_report(str(small_run)) == f"{small_run}/report.html"
    return (small_run / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def class_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run on a long-tailed corpus, evaluated as a classifier, without trials."""
    return write_class_run(tmp_path_factory.mktemp("runs") / "classes", classes=7, epochs=6, steps=5)


@pytest.fixture(scope="session")
def class_page(class_run: Path) -> str:
    """The report of the classification run."""
    write_report(str(class_run))
    return (class_run / "report.html").read_text(encoding="utf-8")
