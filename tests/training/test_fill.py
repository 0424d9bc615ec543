"""The pass that fills the memory: before each clustering, or once for SSPS that begins with another run's weights."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayssl.batches.plan import Cursor
from rayssl.errors import CheckpointError
from rayssl.experiment.config import Experiment
from rayssl.memory.utterances.exchange import RecallArrays, RememberArrays
from rayssl.methods.base import Remember, Views
from rayssl.training import checkpoint
from rayssl.training.context import Answer, InProcessMemory
from rayssl.training.filling import fill
from tests.runs import SSPS_METHOD, batches, build, content, experiment, fit, records, write_corpus

FILL: dict[str, Any] = {**SSPS_METHOD, "references": "fill"}
SIMCLR: dict[str, Any] = SSPS_METHOD["over"]


def started(source: str) -> dict[str, Any]:
    return {key: value for key, value in SSPS_METHOD.items() if key != "start_epoch"} | {"start_from": source}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, (9, 10, 6))  # 25 utterances: three batches of eight, and one that no epoch has
    return folder


@pytest.fixture(scope="module")
def source(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    settings = experiment(tmp_path_factory.mktemp("source"), corpus, method=SIMCLR)
    fit(settings)
    return settings


def methods(source: Experiment) -> dict[str, dict[str, Any]]:
    return {"fill": FILL, "start": started(source.run), "both": started(source.run) | {"references": "fill"}}


@pytest.mark.parametrize("kind", [*(pytest.param(k, marks=pytest.mark.long) for k in ("fill", "start")), "both"])
def test_interrupted_in_it_or_anywhere(corpus: Path, tmp_path: Path, source: Experiment, kind: str) -> None:
    """Batches of the pass count among those after which the stream breaks off, the more at each try."""
    method = methods(source)[kind]
    whole = experiment(tmp_path / "whole", corpus, method=method)
    expected = content(fit(whole))
    settings = experiment(tmp_path / "run", corpus, "training.checkpoints.every_steps=1", method=method)
    for lives in range(1, 30):
        if checkpoint.steps(settings.run) and checkpoint.steps(settings.run)[-1] == 8:
            break
        fit(settings, 1 + lives % 6)
    torch.testing.assert_close(content(fit(settings)), expected, rtol=0, atol=0)
    for record in ("step", "epoch", "refresh"):
        assert records(settings.run, record) == records(whole.run, record)


def test_references_are_of_the_same_weights(corpus: Path, tmp_path: Path) -> None:
    """Those of every utterance, the one that no epoch had too, are what the encoder finds at the clustering."""
    settings = experiment(tmp_path, corpus, "training.epochs=2", method=FILL)
    loop = build(settings)
    rows = list(batches(settings, loop))
    heard = {int(i): cut for row in rows if row["fill"] for i, cut in zip(row["id"], row["reference"], strict=True)}
    memory, encoder = loop.state.memory, loop.state.method.encoder
    assert isinstance(memory, InProcessMemory) and len(heard) == 25
    refresh, seen = memory.refresh, list[np.ndarray]()

    def watched(epoch: int) -> dict[str, float]:
        encoder.eval()
        with torch.no_grad():
            waves = torch.tensor(np.stack([heard[i] for i in range(25)])).float() / 32768
            seen.append(torch.nn.functional.normalize(encoder(waves, None), dim=1).numpy())
        encoder.train()
        return refresh(epoch)

    memory.refresh = watched  # type: ignore[method-assign]
    loop.fit(iter(rows))
    state = memory.memory.state_dict()
    assert len(seen) == 1 and state["references.filled"].all()
    np.testing.assert_allclose(state["references.rows"], seen[0], atol=1e-5)


def test_begins_with_the_other_runs_weights_and_recalls_at_once(
    corpus: Path, tmp_path: Path, source: Experiment
) -> None:
    settings = experiment(tmp_path, corpus, method=started(source.run))
    loop = build(settings)
    state = checkpoint.load(checkpoint.locate(source.run, "last")).state["method"]
    for name, value in loop.state.method.state_dict().items():
        assert torch.equal(value, state[name.removeprefix("base.")]), name
    fit(settings)
    epochs = records(settings.run, "epoch")
    assert len(epochs) == 3 and all(line["coverage"] > 0.3 for line in epochs)
    assert epochs[0]["queue_fill"] == epochs[0]["reference_fill"] == 1.0
    assert [line["epoch"] for line in records(settings.run, "refresh")] == [1, 2, 3]
    # and a run of SSPS may be begun with as well, by its checkpoint too
    further = experiment(tmp_path / "more", corpus, method=started(checkpoint.locate(settings.run, "last")))
    assert build(further).step == 0


def test_what_cannot_be_begun_with(corpus: Path, tmp_path: Path, source: Experiment) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no checkpoint there"):
        build(experiment(tmp_path, corpus, method=started(str(tmp_path / "nowhere"))))
    other = experiment(tmp_path, corpus, "encoder.backbone.embedding_dim=24", method=started(source.run))
    with pytest.raises(
        CheckpointError, match=r"step-0000000009: the checkpoint is of another architecture, simclr over"
    ):
        build(other)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_pass_has_the_precision_of_the_run(corpus: Path, tmp_path: Path, precision: str) -> None:
    """In bf16 the encoder computes in it, and the memory gets float32."""
    settings = experiment(tmp_path, corpus, "training.epochs=2", f"training.precision={precision}", method=FILL)
    loop, seen = build(settings), set[tuple[bool, torch.dtype]]()
    assert isinstance(loop.state.memory, InProcessMemory)
    memory, types = loop.state.memory, set[np.dtype[Any]]()
    convolution = next(part for part in loop.state.method.encoder.modules() if isinstance(part, torch.nn.Conv1d))
    convolution.register_forward_hook(lambda part, _, out: seen.add((part.training, out.dtype)))
    exchange = memory.exchange

    def watched(remember: Sequence[RememberArrays], ids: np.ndarray | None, epoch: int) -> Answer:
        types.update(part.references.dtype for part in remember if part.references is not None)
        return exchange(remember, ids, epoch)

    memory.exchange = watched  # type: ignore[method-assign]
    loop.fit(batches(settings, loop))
    expected = torch.bfloat16 if precision == "bf16" else torch.float32
    assert seen == {(True, expected), (False, expected)}, "in training, and in the pass"
    assert types == {np.dtype(np.float32)}


class Awaited(Future[RecallArrays | None]):
    """Notes when somebody takes its result."""

    def __init__(self, number: int, events: list[str]) -> None:
        super().__init__()
        self.set_result(None)
        self._number, self._events = number, events

    def result(self, timeout: float | None = None) -> RecallArrays | None:
        self._events.append(f"waits for {self._number}")
        return super().result(timeout)


def test_the_device_has_its_next_batch_before_anybody_waits(corpus: Path, tmp_path: Path) -> None:
    """For the copies of a batch, or for the memory, which may be two requests behind. In the end all are waited for."""
    settings = experiment(tmp_path, corpus, "training.epochs=2", method=FILL)
    loop, events = build(settings), list[str]()
    memory, compute = loop.state.memory, loop.state.method.fill
    assert isinstance(memory, InProcessMemory)
    launched, given = count(), count()

    def launch(views: Views) -> Remember:
        events.append(f"computes {next(launched)}")
        return compute(views)

    def exchange(remember: Sequence[RememberArrays], ids: np.ndarray | None, epoch: int) -> Answer:
        number = next(given)
        events.append(f"gives {number}")
        return Awaited(number, events)

    loop.state.method.fill = launch  # type: ignore[method-assign]
    memory.exchange = exchange  # type: ignore[method-assign]
    stream = (row for row in batches(settings, loop) if row["fill"])
    loop.cursor = Cursor(1, 0)
    fill(loop, next(stream), chain(stream, [{"fill": False}]))
    begins = ["computes 0", "computes 1", "gives 0", "computes 2", "gives 1", "computes 3", "gives 2"]
    assert events == [*begins, "waits for 0", "gives 3", "waits for 1", "waits for 2", "waits for 3"]


def test_a_pass_belongs_before_its_epoch(corpus: Path, tmp_path: Path) -> None:
    settings = experiment(tmp_path, corpus, method=FILL)
    loop = build(settings)
    rows = list(batches(settings, loop))
    late = [rows[0], next(row for row in rows if row["fill"])]
    with pytest.raises(RuntimeError, match="to fill a memory with came at"):
        loop.fit(iter(late))
