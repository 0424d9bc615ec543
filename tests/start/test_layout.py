"""What folders mean: pure functions of paths."""

from __future__ import annotations

from collections import Counter

import pytest

from rayssl.start import layout


def tree(*folders: str, files: int = 3) -> list[str]:
    return [f"{folder}/{k:02d}.wav" if folder else f"{k:02d}.wav" for folder in folders for k in range(files)]


IDS = [f"id{10270 + k}" for k in range(12)]


@pytest.mark.parametrize(
    ("paths", "purpose", "wanted", "pattern"),
    [
        (tree("voice1", "voice2", "voice3"), "speakers", ["speaker"], "*"),
        (tree("speaker_anna", "speaker_bob"), "speakers", ["speaker"], "*"),
        (tree(*[f"{name}/{video}" for name in IDS for video in "ab"]), "speakers", ["speaker", "recording"], "*"),
        (tree(*[f"a/b/{name}/{v}" for name in IDS for v in "ab"]), "speakers", ["-", "-", "speaker", "recording"], "*"),
        (tree(*[f"{part}/{name}" for part in ("train", "test-b") for name in IDS]), "speakers", ["-", "speaker"], "*"),
        (tree("yes", "no", "stop"), "classes", ["label"], "*"),
        (tree("001 - Dog bark", "002 - Rain", "003 - Sea waves"), "classes", ["label"], "*"),
        (tree(*"0123456789"), "classes", ["label"], "*"),
        (tree(*[f"{word}/{name}" for word in ("yes", "no") for name in IDS]), "classes", ["label", "speaker"], "*"),
        (tree(*[f"{word}/take{k}" for word in ("yes", "no") for k in range(4)]), "classes", ["label"], "*"),
        (tree(*[f"name{chr(97 + k % 26)}x{k}" for k in range(40)]), "speakers", ["speaker"], "*"),
        ([*tree(*IDS, files=9), "readme.wav"], "speakers", ["speaker"], "*/*"),
        (tree(""), None, [], "*"),
        (tree("audio"), None, [], "*"),
        (tree(*[f"episode {k}" for k in range(9)], files=1), None, [], "*"),
    ],
)  # fmt: skip
def test_layouts(paths: list[str], purpose: str | None, wanted: list[str], pattern: str) -> None:
    found = layout.guess(paths)
    assert (found.purpose, found.layout, found.files) == (purpose, wanted, pattern), found.why
    assert found.why


def test_the_user_decides_and_short_clips_tip_the_scale() -> None:
    odd = tree("ada", "berta", "carla")
    assert layout.guess(odd).purpose == "speakers" and layout.guess(odd).unsure
    short = layout.guess(odd, median_s=0.9)
    assert short.purpose == "classes" and short.unsure and "0.9 s" in short.why
    assert layout.guess(odd, "classes").layout == ["label"] and not layout.guess(odd, "classes").unsure
    assert layout.guess(tree("yes", "no"), "speakers").layout == ["speaker"]
    assert layout.guess(tree("a", "b", files=1), "speakers").layout == ["speaker"]
    assert layout.guess(tree(""), "speakers").layout == []


def test_kind_names_its_evidence() -> None:
    for names in (["voice1", "voice2"], ["yes", "no"], ["p225", "p226"], Counter({"x": 1, "y": 2})):
        purpose, why, _ = layout.kind(names)
        assert purpose in ("speakers", "classes") and sorted(names)[0] in why


def test_prefixes_of_file_names() -> None:
    named = [f"{who}_{k}.wav" for who in ("anna", "bob") for k in range(4)]
    assert layout.prefixes(named) == ["anna", "bob"]
    assert layout.prefixes([f"{k}.wav" for k in range(9)]) == []
    assert layout.prefixes([f"rec_{k}.wav" for k in range(9)]) == []  # one group says nothing
    assert layout.prefixes([f"{k}_x.wav" for k in range(9)]) == []
