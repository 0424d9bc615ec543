"""Segments of one recipe and one length go through it in one call, as on a GPU: same keys, same views, fewer launches.

Bound of a view's values: 1e-6, where they lie in [-1, 1]. Draws are of a row's own key, so only rounding differs: a
vectorised function may round otherwise at another place of a tensor. It was 3e-8 at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from rayssl.batches.plan import TURN_BIT
from rayssl.experiment.config import Experiment
from rayssl.methods.base import Views
from rayssl.random import draws, draws_torch
from rayssl.training import inputs
from rayssl.training.inputs import Raw, make_views
from rayssl.views.modules import build_recipes
from rayssl.views.recipes import Segment
from tests.night_runs import night_experiment, write_night_corpus
from tests.runs import DINO_METHOD, FEW, RATE, SDPN_METHOD, SSPS_METHOD, batches, build, experiment

CPU = torch.device("cpu")
ROWS, LABELLED_ROWS = 8, 5
PARTS = "{pitch_shift: {p: 0.5}, time_stretch: {p: 0.5}, white_noise: {p: 0.5}, mixed_noise: {p: 0.5}, \
time_shift: {p: 0.5}, fade: {p: 0.5}, time_mask: {p: 0.5}, gain: {p: 0.5}}"
DRAWN = (f"views.weak={PARTS}", f"views.strong={PARTS}", "views.distort.reverb.p=0.6", "views.distort.gain.p=0.5")
CLAR: dict[str, Any] = {"name": "clar", "projector": {"sizes": [12, 8]}}
STREAM = {**CLAR, "labels": "cross_entropy", "labels_from": "stream"}
SIX_CROPS = {**DINO_METHOD, "locals": 4}

# of each method: its settings, overrides, and the calls of recipes in joined mode, with their rows
CASES: dict[str, tuple[dict[str, Any], tuple[str, ...], list[tuple[str, int]]]] = {
    "simclr": (SSPS_METHOD["over"], (), [("distort", 16)]),
    "simclr and a reference": (SSPS_METHOD, (), [("distort", 16)]),
    "simclr with a range of levels for each kind": (
        SSPS_METHOD["over"],
        ("views.distort.noise.snr_db_of={white: [0, 5], babble: [5, 10]}",),
        [("distort", 16)],
    ),
    "dino": (SIX_CROPS, (), [("distort", 16), ("distort", 32)]),
    "dino and a reference": ({**SSPS_METHOD, "over": DINO_METHOD}, (), [("distort", 16), ("distort", 16)]),
    "dino with crops of one length": ({**SIX_CROPS, "local_s": 0.2}, (), [("distort", 48)]),
    "sdpn": (SDPN_METHOD, (), [("distort", 16)]),  # its global crop is clean
    "clar": (CLAR, (), [("strong", 16)]),
    "clar with a labelled stream": (STREAM, FEW[:1], [("strong", 26)]),
    "fixmatch": ({"name": "fixmatch"}, FEW[:1], [("weak", 13), ("strong", 8)]),
}


def settings_of(name: str) -> Experiment:
    method, overrides, _ = CASES[name]
    return experiment(Path("run"), Path("corpus"), *DRAWN, *overrides, method=method)


def batch(segments: Sequence[Segment], rows: int, seed: int) -> Raw:
    """Noise as the data tasks give it; every second utterance comes for the second time."""
    draw = np.random.default_rng(seed)
    cuts = {s.name: draw.normal(0, 2000, (rows, s.samples(RATE))).astype(np.int16) for s in segments}
    return {"id": np.arange(rows) * 7 + seed, "turn": np.arange(rows) % 2, "epoch": 2, "step": 0, **cuts}


def given(name: str) -> tuple[Raw, dict[str, Any]]:
    """A batch with its labelled one, and the other arguments of `make_views`."""
    settings = settings_of(name)
    own, few = settings.method.segments(settings.views, 1), settings.method.labelled_segments(settings.views, 1)
    raw = batch(own, ROWS, 1) | {"labelled": batch(few, LABELLED_ROWS, 2)}
    recipes = build_recipes(settings.views, RATE, settings.seed)
    return raw, {"segments": own, "labelled": few, "recipes": recipes, "seed": 3, "device": CPU}


@contextmanager
def called(recipes: nn.ModuleDict) -> Iterator[list[tuple[str, int]]]:
    """Notes each call of a recipe and its rows."""
    found: list[tuple[str, int]] = []
    hooks = [
        recipe.register_forward_pre_hook(lambda _, args, name=name: found.append((name, len(args[0]))))
        for name, recipe in recipes.items()
    ]
    yield found
    for hook in hooks:
        hook.remove()


def agree(joined: Views, apart: Views) -> None:
    assert list(joined) == list(apart)
    for name, view in joined.items():
        other = apart[name]
        if other.keys is None:
            assert view.keys is None and torch.equal(view.wave, other.wave), name
        else:
            assert view.keys is not None and torch.equal(view.keys, other.keys), name
            torch.testing.assert_close(view.wave, other.wave, rtol=0, atol=1e-6)
        assert view.wave.is_contiguous() and view.wave.dtype == torch.float32


@pytest.mark.parametrize("name", CASES)
def test_joined_views_are_those_of_separate_calls(name: str) -> None:
    raw, how = given(name)
    with called(how["recipes"]) as calls:
        apart = make_views(raw, join=False, **how)
    distorted = [s for s in (*how["segments"], *how["labelled"]) if s.recipe != "none"]
    assert [recipe for recipe, _ in calls] == [s.recipe for s in distorted]
    with called(how["recipes"]) as calls:
        joined = make_views(raw, join=True, **how)
    assert calls == CASES[name][2]
    agree(joined, apart)
    assert list(joined) == [s.name for s in (*how["segments"], *how["labelled"])]


def test_a_view_has_its_own_keys() -> None:
    """By their definition: of the seed, the epoch, the number of the segment, and the utterance with its turn."""
    raw, how = given("clar with a labelled stream")
    views = make_views(raw, join=True, **how)
    for part, segments, first in ((raw, how["segments"], 0), (raw["labelled"], how["labelled"], 100)):
        ids = torch.from_numpy(part["id"] + (part["turn"].astype(np.int64) << TURN_BIT))
        for number, segment in enumerate(segments, start=first):
            expected = draws_torch.keys_torch(draws.fold(3, inputs._VIEW, 2, number), ids)
            keys = views[segment.name].keys
            assert keys is not None and torch.equal(keys, expected)
    assert not torch.allclose(views["anchor"].wave, views["positive"].wave, atol=1e-3)


def test_on_a_cpu_nothing_is_joined_unless_it_is_asked_for() -> None:
    raw, how = given("dino")
    with called(how["recipes"]) as calls:
        found = make_views(raw, **how)
    assert calls == [("distort", ROWS)] * 6
    for name, view in make_views(raw, join=False, **how).items():
        assert torch.equal(view.wave, found[name].wave)


def test_a_call_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that large batches need no more memory than the limit says; a segment is never divided."""
    raw, how = given("dino")
    whole = make_views(raw, join=True, **how)
    for most, rows in ((1600 * 24, [8, 8, 24, 8]), (1, [8] * 6)):
        monkeypatch.setattr(inputs, "_AT_ONCE", most)
        with called(how["recipes"]) as calls:
            agree(make_views(raw, join=True, **how), whole)
        assert [count for _, count in calls] == rows


def test_nights_are_joined_over_both_streams(tmp_path: Path) -> None:
    write_night_corpus(tmp_path / "nights")
    settings = night_experiment(tmp_path / "run", tmp_path / "nights")
    loop = build(settings)
    raw, segments = next(batches(settings, loop)), loop.state.segments
    with called(loop.state.recipes) as calls:
        apart = loop.views(raw, segments.own[0], segments.labelled)
    rows = {name: len(view.wave) for name, view in apart.items()}
    assert [recipe for recipe, _ in calls] == ["weak", "strong", "weak", "strong"]
    loop.join_views = True
    with called(loop.state.recipes) as calls:
        joined = loop.views(raw, segments.own[0], segments.labelled)
    assert calls == [
        ("weak", rows["weak"] + rows["labelled"]),
        ("strong", rows["strong"] + rows["labelled_noisy"]),
    ]
    agree(joined, apart)


class Launches(TorchDispatchMode):
    """Counts operations that a GPU starts a kernel for: all that return no view of what they were given."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        aliases = [value.alias_info for value in func._schema.returns]
        self.count += not any(alias is not None and not alias.is_write for alias in aliases)
        return func(*args, **(kwargs or {}))


def launches(raw: Raw, how: dict[str, Any], join: bool) -> int:
    with Launches() as found:
        make_views(raw, join=join, **how)
    return found.count


def launches_of_a_call(how: dict[str, Any], seconds: float) -> int:
    wave, keys = torch.zeros(ROWS, round(seconds * RATE)), torch.arange(ROWS)
    with Launches() as found:
        how["recipes"]["distort"](wave, keys)
    return found.count


@pytest.mark.parametrize(("name", "lengths"), [("simclr", [0.2]), ("dino", [0.2, 0.1])])
def test_a_step_launches_one_distortion_for_each_length(name: str, lengths: list[float]) -> None:
    raw, how = given(name)
    least = sum(launches_of_a_call(how, seconds) for seconds in lengths)
    joined, apart = launches(raw, how, True), launches(raw, how, False)
    views = len(how["segments"])
    # beside the calls: ids, and for each length two tensors that are joined, a division, and keys
    assert least < joined <= least + 8 + 18 * len(lengths) + views
    assert apart > views * launches_of_a_call(how, min(lengths)), "this would be seen"
    assert joined < apart * (len(lengths) + 0.2) / views


def test_the_number_of_segments_adds_next_to_no_launches() -> None:
    raw, how = given("dino")
    fewer = {**how, "segments": how["segments"][:3]}  # two global crops and a local one
    # the local crops become one tensor, and the keys of each begin with an operation of their own
    assert launches(raw, how, True) - launches(raw, fewer, True) == 1 + 3


def test_views_share_no_memory_with_each_other_or_with_the_batch() -> None:
    raw, how = given("simclr and a reference")
    before = {name: raw[name].copy() for name in ("anchor", "positive", "reference")}
    views = make_views(raw, join=True, **how)
    positive = views["positive"].wave.clone()
    for name in ("anchor", "reference"):
        views[name].wave.zero_()
    assert torch.equal(views["positive"].wave, positive)
    assert all(np.array_equal(raw[name], value) for name, value in before.items())
