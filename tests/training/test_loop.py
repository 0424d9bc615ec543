"""The loop: interrupted anywhere and resumed it does what it would have done, to the bit; divergence is never saved."""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayssl.errors import CheckpointError, UserError
from rayssl.experiment.config import Experiment
from rayssl.training import checkpoint
from rayssl.training.context import Answer, InProcessMemory
from rayssl.training.loop import Loop
from rayssl.training.metrics import read_metrics
from rayssl.training.recalling import Recaller
from rayssl.views.recipes import Segment
from tests.runs import batches, build, content, experiment, fit, records, write_corpus

STEPS = 9  # three epochs of three


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, (9, 10, 6))
    return folder


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, dict[str, Any]]:
    settings = experiment(tmp_path_factory.mktemp("whole"), corpus)
    return settings, content(fit(settings))


def test_the_run_does_what_it_is_to_be_resumed_for(whole: tuple[Experiment, dict[str, Any]]) -> None:
    """Else the tests below would compare nothing: the memory fills, clusters, and gives positives."""
    run = whole[0].run
    last = records(run, "epoch")
    assert [line["epoch"] for line in last] == [1, 2, 3] and [line["step"] for line in last] == [3, 6, 9]
    assert "coverage" not in last[0] and all(0.3 < line["coverage"] <= 1 for line in last[1:])
    assert {"speaker_accuracy", "nmi_speaker", "useful_rate", "loss", "ntxent"} <= last[2].keys()
    assert [line["step"] for line in records(run, "step")] == list(range(1, STEPS + 1))
    assert [line["epoch"] for line in records(run, "refresh")] == [2, 3]
    assert last[2]["loss"] == pytest.approx(np.mean([line["loss"] for line in records(run, "step")[6:]]))


@pytest.fixture(scope="module")
def images(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Path]]:
    """By ``every_steps``: the run's folder at each time the loop asked for a batch, as a kill would have left it."""
    made: dict[int, list[Path]] = {}
    for every in (1, 2, 0):
        root = tmp_path_factory.mktemp(f"every-{every}")
        settings = experiment(root / "run", corpus, f"training.checkpoints.every_steps={every}")
        loop = build(settings)

        def watched(rows: Iterator[dict[str, Any]], root: Path = root, loop: Loop = loop) -> Iterator[dict[str, Any]]:
            for at in range(STEPS + 1):
                assert loop.saver.idle(60)  # it must not write while its files are copied
                shutil.copytree(root / "run", root / f"image-{at}")
                row = next(rows, None)
                if row is None:
                    return
                yield row

        loop.fit(watched(batches(settings, loop)))
        made[every] = [root / f"image-{at}" for at in range(STEPS + 1)]
    return made


def test_resumed_after_a_crash_while_a_checkpoint_was_being_written(
    corpus: Path, whole: tuple[Experiment, dict[str, Any]], images: dict[int, list[Path]], tmp_path: Path
) -> None:
    image = Path(shutil.copytree(images[1][5], tmp_path / "image"))
    newest = max((image / "checkpoints").iterdir())
    (newest / "meta.json").unlink()
    (newest / ".state.pt.0123456789ab.part").write_bytes(b"half")
    resumed_equals_uninterrupted(corpus, whole, image, 1)
    assert not list(image.rglob("*.part")), "a later checkpoint removes what the crash left"


@pytest.mark.parametrize("every", [1, pytest.param(2, marks=pytest.mark.long)])
@pytest.mark.parametrize("at", range(STEPS + 1))
def test_resumed_equals_uninterrupted(
    corpus: Path, whole: tuple[Experiment, dict[str, Any]], images: dict[int, list[Path]], every: int, at: int
) -> None:
    resumed_equals_uninterrupted(corpus, whole, images[every][at], every)


def test_resumed_from_the_end_of_an_epoch(
    corpus: Path, whole: tuple[Experiment, dict[str, Any]], images: dict[int, list[Path]]
) -> None:
    """In mid-epoch, after a clustering that the checkpoint does not know."""
    resumed_equals_uninterrupted(corpus, whole, images[0][5], 0)


def resumed_equals_uninterrupted(
    corpus: Path, whole: tuple[Experiment, dict[str, Any]], image: Path, every: int
) -> None:
    settings = experiment(image, corpus, f"training.checkpoints.every_steps={every}")
    loop = fit(settings)
    torch.testing.assert_close(content(loop), whole[1], rtol=0, atol=0)
    for kind in ("step", "epoch", "refresh"):
        assert records(settings.run, kind) == records(whole[0].run, kind)
    assert loop.step == STEPS


def test_interrupted_again_and_again(corpus: Path, tmp_path: Path, whole: tuple[Experiment, dict[str, Any]]) -> None:
    """The batches break off after every single step."""
    settings = experiment(tmp_path, corpus, "training.checkpoints.every_steps=1")
    lives = 0
    while not checkpoint.steps(settings.run) or checkpoint.steps(settings.run)[-1] < STEPS - 1:
        fit(settings, 1)
        lives += 1
    assert lives > STEPS / 2
    torch.testing.assert_close(content(fit(settings)), whole[1], rtol=0, atol=0)
    for kind in ("step", "epoch", "refresh"):
        assert records(settings.run, kind) == records(whole[0].run, kind)


@pytest.mark.parametrize("rung", [1, 2])
def test_stopped_after_an_epoch_and_gone_on_with(
    corpus: Path, tmp_path: Path, whole: tuple[Experiment, dict[str, Any]], rung: int
) -> None:
    """A rung of a sweep: the batches end there, schedules are those of the whole, and nothing shows it afterwards."""
    settings = experiment(tmp_path, corpus)
    loop = build(settings)
    rows = itertools.takewhile(lambda raw: raw["epoch"] < rung, batches(settings, loop))
    metrics = loop.fit(rows, rung)
    assert loop.state.log is not None
    loop.state.log.close()
    assert checkpoint.read_meta(checkpoint.locate(settings.run, "last")).epoch == rung
    assert metrics == checkpoint.read_meta(checkpoint.locate(settings.run, "last")).metrics
    torch.testing.assert_close(content(fit(settings)), whole[1], rtol=0, atol=0)
    for kind in ("step", "epoch", "refresh"):
        assert records(settings.run, kind) == records(whole[0].run, kind)


def test_a_finished_run_returns_its_figures(whole: tuple[Experiment, dict[str, Any]]) -> None:
    loop = build(whole[0])
    metrics = loop.fit(iter(()))
    assert metrics["loss"] == records(whole[0].run, "epoch")[-1]["loss"]


def test_figures_of_speed_count_only_what_was_timed(corpus: Path, tmp_path: Path) -> None:
    """The steps of another process would make a resumed run look fast."""
    settings = experiment(tmp_path, corpus, "training.checkpoints.every_steps=1")
    fit(settings, 1)
    loop = build(settings)
    assert loop.step == loop._epoch.steps == 1 and loop._epoch.speed(8)["utterances_per_s"] == 0


@pytest.mark.long
def test_waiting_for_data_is_a_share_of_the_time(corpus: Path, tmp_path: Path) -> None:
    """Also at the start of an epoch, where batches come late and the memory is clustered."""
    settings = experiment(tmp_path, corpus)
    loop = build(settings)

    def late(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for row in rows:
            if row["step"] == 0:
                time.sleep(0.3)
            yield row

    loop.fit(late(batches(settings, loop)))
    lines = [line for line in read_metrics(f"{settings.run}/metrics.jsonl") if "data_wait" in line]
    assert {line["kind"] for line in lines} == {"step", "epoch"}
    assert all(0 <= line["data_wait"] <= 1 for line in lines)
    assert all(line["data_wait"] > 0 for line in lines if line["kind"] == "epoch")


class Late(InProcessMemory):
    """Answers a tenth of a second after it was asked."""

    def exchange(self, remember: Any, ids: Any, epoch: int) -> Answer:
        found = super().exchange(remember, ids, epoch)
        later: Answer = Future()
        threading.Timer(0.1, lambda: later.set_result(found.result())).start()
        return later


@pytest.mark.long
def test_waiting_for_the_memory_is_a_share_of_the_time(corpus: Path, tmp_path: Path) -> None:
    shares = []
    for kind in (Late, InProcessMemory):
        settings = experiment(tmp_path / kind.__name__, corpus)
        loop = build(settings)
        assert isinstance(loop.state.memory, InProcessMemory)
        loop.state.memory = kind(loop.state.memory.memory)
        loop.recaller = Recaller(loop.state.memory, loop.state.ahead, loop.state.steps_per_epoch)
        loop.fit(batches(settings, loop))
        lines = [line for line in read_metrics(f"{settings.run}/metrics.jsonl") if "data_wait" in line]
        assert all(0 <= line["memory_wait"] <= 1 for line in lines)
        shares.append([line["memory_wait"] for line in lines if line["kind"] == "epoch"])
    assert min(shares[0][1:]) > max(shares[1])  # the first epoch asks for nothing


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["training.log_every=1"], "the loss is nan at step 1: "),
        (["training.log_every=99", "training.checkpoints.every_steps=1"], "not finite by step 1: "),
        (["training.log_every=99"], "not finite by step 3: "),
    ],
)
def test_a_loss_that_is_not_finite_ends_the_run_unsaved(
    corpus: Path, tmp_path: Path, overrides: list[str], text: str
) -> None:
    settings = experiment(tmp_path, corpus, *overrides)
    loop = build(settings)
    with torch.no_grad():
        next(loop.state.method.parameters()).fill_(float("nan"))
    with pytest.raises(UserError) as caught:
        loop.fit(batches(settings, loop))
    assert text in str(caught.value) and "training.optimiser.lr" in str(caught.value) and "\n" not in str(caught.value)
    assert checkpoint.steps(settings.run) == []


def test_weights_that_are_not_finite_are_not_saved(corpus: Path, tmp_path: Path) -> None:
    """A bad gradient after a good loss: a checkpoint of it would fail again at each resume."""
    settings = experiment(tmp_path, corpus, "training.checkpoints.every_steps=1")
    loop = build(settings)

    def poison(*_: object) -> None:
        if loop.step == 2:
            next(loop.state.method.parameters()).grad.fill_(float("nan"))  # type: ignore[union-attr]

    loop.optimiser.register_step_pre_hook(poison)
    with pytest.raises(UserError, match="not finite by step 3"):
        loop.fit(batches(settings, loop))
    assert checkpoint.steps(settings.run)[-1] == 2


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (
            ["encoder.backbone.embedding_dim=24"],
            "is of another architecture, ssps over ecapa(embedding_dim=16, ",
        ),
        (["training.batch=16"], "with 1 steps an epoch: the corpus or training.batch has changed"),
        (["training.optimiser.name=sgd"], "the state of another optimiser than sgd"),
        (["method.clusters=5"], "memory state: 'clusters."),
    ],
)
def test_a_checkpoint_of_another_run_is_one_line(corpus: Path, tmp_path: Path, overrides: list[str], text: str) -> None:
    fit(experiment(tmp_path, corpus), 5)
    with pytest.raises(CheckpointError) as caught:
        build(experiment(tmp_path, corpus, *overrides))
    assert text in str(caught.value) and "\n" not in str(caught.value)
    assert "/checkpoints/step-0000000003" in str(caught.value)


def test_settings_of_the_optimiser_may_change(corpus: Path, tmp_path: Path) -> None:
    fit(experiment(tmp_path, corpus), 5)
    loop = build(experiment(tmp_path, corpus, "training.optimiser.weight_decay=0.5"))
    assert [group["weight_decay"] for group in loop.optimiser.param_groups] == [0.5, 0.0]
    assert loop.optimiser.state_dict()["state"]


def test_batches_must_be_those_of_the_cursor(corpus: Path, tmp_path: Path) -> None:
    settings = experiment(tmp_path, corpus)
    loop = build(settings)
    rows = list(batches(settings, loop))
    with pytest.raises(RuntimeError, match=r"expected the batch of Cursor\(epoch=0, step=0\), got epoch 0 step 1"):
        loop.fit(iter(rows[1:]))
    with pytest.raises(RuntimeError, match="the batches ended at"):
        build(settings).fit(iter(rows[:6]))


def test_views_follow_seed_epoch_and_utterance(corpus: Path, tmp_path: Path) -> None:
    """Distorted where the recipe says so; the two views differently; never by the batch around an utterance."""
    from rayssl.training.inputs import make_views

    settings = experiment(tmp_path, corpus, "views.distort.noise.p=1.0")
    loop = build(settings)
    raw = next(batches(settings, loop)) | {"reference": np.zeros((8, 4800), np.int16)}
    raw["positive"] = raw["anchor"]
    segments = (*loop.state.segments.own[0], Segment(name="reference", seconds=0.3))
    common = {"recipes": loop.state.recipes, "seed": loop.state.seed, "device": torch.device("cpu")}
    views = make_views(raw | {"epoch": 1}, segments, **common)
    plain = torch.tensor(raw["anchor"]).float() / 32768
    assert not torch.allclose(views["anchor"].wave, plain, atol=1e-3)
    assert not torch.allclose(views["anchor"].wave, views["positive"].wave, atol=1e-3)
    assert views["reference"].keys is None and not views["reference"].wave.any()
    part = make_views({k: v[3:5] for k, v in raw.items() if np.ndim(v)} | {"epoch": 1}, segments, **common)
    torch.testing.assert_close(part["anchor"].wave, views["anchor"].wave[3:5])
    other = make_views(raw | {"epoch": 2}, segments, **common)
    assert not torch.allclose(other["anchor"].wave, views["anchor"].wave, atol=1e-3)


def test_each_segment_goes_through_its_recipe(corpus: Path, tmp_path: Path) -> None:
    """``none`` alone has no keys; the others differ from each other and from what was cut."""
    from rayssl.training.inputs import make_views

    strong = [f"views.strong.{name}.p=1.0" for name in ("pitch_shift", "white_noise", "time_mask")]
    settings = experiment(tmp_path, corpus, "views.distort.noise.p=1.0", "views.weak.fade.p=1.0", *strong)
    loop = build(settings)
    assert list(loop.state.recipes) == ["distort", "weak", "strong"]
    recipes = ("none", "distort", "weak", "strong")
    segments = [Segment(name=recipe, seconds=0.2, recipe=recipe) for recipe in recipes]
    raw = next(batches(settings, loop))
    raw |= dict.fromkeys(recipes, raw["anchor"])
    views = make_views(raw, segments, loop.state.recipes, seed=3, device=torch.device("cpu"))
    assert [view.keys is None for view in views.values()] == [True, False, False, False]
    torch.testing.assert_close(views["none"].wave, torch.tensor(raw["anchor"]).float() / 32768)
    for first, second in itertools.combinations(recipes, 2):
        assert not torch.allclose(views[first].wave, views[second].wave, atol=1e-3)
