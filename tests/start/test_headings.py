"""What columns hold, by their names and values."""

from __future__ import annotations

import pytest

from rayssl.start import headings


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [
        (["client_id", "path", "sentence", "accents"], {"speaker": "client_id"}),
        (["filename", "fold", "target", "category"], {"label": "category"}),
        (["Speaker ID", "Session", "wav"], {"speaker": "Speaker ID", "recording": "Session"}),
        (["path", "text"], {}),
        (["spk", "speaker", "label"], {"speaker": "speaker", "label": "label"}),
    ],
)
def test_facts(columns: list[str], wanted: dict[str, str]) -> None:
    assert headings.fact_columns(columns) == wanted


def test_the_path_is_what_ends_like_audio() -> None:
    rows = [{"a": f"{k}.wav", "b": "x", "file": str(k)} for k in range(4)]
    assert headings.path_column(["b", "a", "file"], rows) == "a"
    two = [{"source": "x.wav", "file": "y.flac"}]
    assert headings.path_column(["source", "file"], two) == "file"  # by its name, since both end so
    assert headings.path_column(["b", "file"], [{"b": "x", "file": "3"}]) == "file"
    assert headings.path_column(["b", "c"], [{"b": "x", "c": "y"}]) is None
