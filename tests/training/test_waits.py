"""A census of host waits: how often a training step of each method would make the host wait for a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rayssl
from rayssl.experiment.config import Experiment
from rayssl.memory.utterances.exchange import RememberArrays
from rayssl.methods.registry import METHODS
from rayssl.training.context import Answer, InProcessMemory
from rayssl.training.inputs import Raw
from rayssl.training.recalling import Recaller
from rayssl.views.augment import build_augment
from rayssl.views.recipes import AugmentConfig
from tests.night_runs import ANCHORED_SLEEP, SLEEP_METHOD, night_experiment, write_night_corpus
from tests.runs import (
    DASO_METHOD,
    DINO_METHOD,
    FEW,
    MOCO_METHOD,
    PSEUDO_METHOD,
    SDPN_METHOD,
    SPLITS,
    SSPS_METHOD,
    SWAV_METHOD,
    USADTM_METHOD,
    VICREG_METHOD,
    batches,
    build,
    experiment,
    write_corpus,
)
from tests.training.waits import DEVICE, Waits, counted

EVERY = "{pitch_shift: {p: 0.5}, time_stretch: {p: 0.5}, white_noise: {p: 0.5}, mixed_noise: {p: 0.5}, \
time_shift: {p: 0.5}, fade: {p: 0.5}, time_mask: {p: 0.5}, gain: {p: 0.5}}"
LABELS = ("labels.split=few", "training.epoch_steps=3", f"views.weak={EVERY}")
STREAMS = (*FEW, f"views.weak={EVERY}", f"views.strong={EVERY}")
CLAR: dict[str, Any] = {"name": "clar", "projector": {"sizes": [12, 8]}}
PARTS, BF16, LARS = "training.accumulate=2", "training.precision=bf16", "training.optimiser={name: lars, clip_each: 1}"
LEVELS = "views.distort.noise.snr_db_of={white: [0, 5], babble: [5, 10]}"  # a range for each kind of noise


def over(method: dict[str, Any]) -> dict[str, Any]:
    return {**SSPS_METHOD, "over": method}


# of each method: its settings, overrides, and the waits of a step that its published algorithm needs, by file. None
# needs any: pseudo-labels, queues of classes and positives of a memory are arithmetic with fixed shapes
CASES: dict[str, tuple[dict[str, Any], tuple[str, ...], dict[str, int]]] = {
    "simclr": (SSPS_METHOD["over"], (), {}),
    "moco": (MOCO_METHOD, (), {}),
    "dino": (DINO_METHOD, (), {}),
    "swav": (SWAV_METHOD, (), {}),
    "vicreg": (VICREG_METHOD, (), {}),
    "sdpn": (SDPN_METHOD, (), {}),
    "ssps": (SSPS_METHOD, (), {}),
    "ssps over moco": (over(MOCO_METHOD), (), {}),
    "moco both ways": (
        over({**MOCO_METHOD, "symmetric": True, "enqueue": "recalled", "negatives": "others"}),
        ("training.optimiser.clip_each=1", "encoder.frontend.normalise=mean_variance", LEVELS),
        {},
    ),
    "ssps over dino": (over(DINO_METHOD), (), {}),
    "ssps over swav": (over(SWAV_METHOD), (), {}),
    "ssps over vicreg": (over(VICREG_METHOD), (), {}),
    "ssps over sdpn": (over(SDPN_METHOD), (), {}),
    "clar": (CLAR, (f"views.weak={EVERY}",), {}),
    "clar with a classifier": ({**CLAR, "labels": "cross_entropy"}, LABELS, {}),
    "clar with a labelled stream": ({**CLAR, "labels": "cross_entropy", "labels_from": "stream"}, STREAMS, {}),
    "clar with negatives of other classes": (
        {**CLAR, "labels": "cross_entropy", "labels_from": "stream", "negatives": "other_classes"},
        STREAMS,
        {},
    ),
    "clar by supcon": ({**CLAR, "labels": "supcon"}, LABELS, {}),
    "supervised": ({"name": "supervised"}, (), {}),
    "pseudo_speakers": (PSEUDO_METHOD, (), {}),
    "classifier": ({"name": "classifier"}, (*LABELS, "training.batch=4"), {}),
    "fixmatch": ({"name": "fixmatch", "threshold": 0.3}, STREAMS, {}),
    "usadtm": (USADTM_METHOD, STREAMS, {}),
    "usadtm by cosine": ({**USADTM_METHOD, "rule": "cosine", "features": "current"}, STREAMS, {}),
    "daso": (DASO_METHOD, STREAMS, {}),
    # the ways of a step
    "ssps in parts": (SSPS_METHOD, (PARTS, LARS), {}),
    "ssps over dino in parts": (over(DINO_METHOD), (PARTS, BF16, "training.optimiser.clip_each=3"), {}),
    "moco in parts": (MOCO_METHOD, (PARTS, "training.optimiser.name=adam_lars"), {}),
    "swav in parts": (SWAV_METHOD, (PARTS, BF16), {}),
    "vicreg in bf16": (VICREG_METHOD, (BF16, LARS), {}),
    "sdpn in bf16": (SDPN_METHOD, (BF16, "training.optimiser.clip_each=3"), {}),
    "clar in bf16": (CLAR, (f"views.weak={EVERY}", BF16, "training.optimiser.name=adam_lars"), {}),
    "daso in parts": (DASO_METHOD, (*STREAMS, PARTS, BF16, LARS), {}),
    "pseudo_speakers in bf16": (PSEUDO_METHOD, (BF16, "training.optimiser.name=adamw"), {}),
}
NIGHTS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "sleep": (SLEEP_METHOD, {}),
    "sleep with a memory": (ANCHORED_SLEEP, {}),
}
# in the default layer: they cover most of the code
SOON = ("dino", "ssps", "daso", "fixmatch", "sleep", "ssps in parts")
COMMON = (
    "training.epochs=2",
    "training.log_every=1000",
    "training.optimiser.clip_norm=1",
)  # a line of the log waits, and is seldom


def chosen(names: Any) -> list[Any]:
    return [name if name in SOON else pytest.param(name, marks=pytest.mark.long) for name in names]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, (9, 10, 6), splits=SPLITS)
    return folder


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nights")
    write_night_corpus(folder)
    return folder


def census(settings: Experiment) -> list[Waits]:
    """The waits of each step of a whole run: inputs, forward and backward pass, update, and the words to the memory.

    The views are joined, as on a GPU.
    """
    loop, found = build(settings), list[Waits]()
    loop.join_views, loop.state.context.device = True, DEVICE
    step = loop._train_step

    def watched(raw: Raw, rows: Iterator[Raw]) -> None:
        with counted() as waits:
            step(raw, rows)
        found.append(waits)

    loop._train_step = watched  # type: ignore[method-assign]
    loop.fit(iter([placed(row) for row in batches(settings, loop)]))  # outside the count, as in a thread of its own
    return found


class Ordered(InProcessMemory):
    """Notes when it is given something; it is given rows in every step of the second epoch."""

    def __init__(self, memory: InProcessMemory, events: list[str]) -> None:
        super().__init__(memory.memory)
        self._events = events

    def exchange(self, remember: Sequence[RememberArrays], ids: np.ndarray | None, epoch: int) -> Answer:
        self._events.append(f"gives {len(remember)}")
        return super().exchange(remember, ids, epoch)


def test_the_memory_is_given_a_step_after_its_backward_pass_has_begun(corpus: Path, tmp_path: Path) -> None:
    """So a GPU has work while the host waits for what it copies. The answer is asked for in the same words."""
    loop, events = build(experiment(tmp_path, corpus, *COMMON)), list[str]()
    assert isinstance(loop.state.memory, InProcessMemory)
    memory = loop.state.memory = Ordered(loop.state.memory, events)
    loop.recaller = Recaller(memory, 1, loop.state.steps_per_epoch)
    weight = next(p for p in loop.state.method.parameters() if p.requires_grad)
    weight.register_hook(lambda _: events.append("backward"))
    loop.optimiser.register_step_pre_hook(lambda *_: events.append("update"))
    loop.state.method.register_forward_hook(lambda *_: events.append("forward"))
    loop.fit(batches(experiment(tmp_path, corpus, *COMMON), loop))
    step = ["forward", "backward", "gives 1", "update"]
    assert events == [*step * 3, "forward", "gives 0", *step[1:], *step * 2]


def placed(raw: Raw) -> Raw:
    """As `rayssl.training.feed` brings a batch to a GPU."""
    own = {name: torch.from_numpy(array) for name, array in raw.items() if isinstance(array, np.ndarray)}
    return raw | {"placed": own} | {name: placed(part) for name, part in raw.items() if isinstance(part, dict)}


@pytest.mark.parametrize("name", chosen(CASES))
def test_waits_of_a_step(corpus: Path, tmp_path: Path, name: str) -> None:
    method, overrides, expected = CASES[name]
    steps = census(experiment(tmp_path, corpus, *COMMON, *overrides, method=method))
    assert len(steps) >= 3
    assert steps[-1].by_file() == expected, steps[-1]
    assert all(waits.keys() <= steps[-1].keys() for waits in steps)


@pytest.mark.parametrize("name", chosen(NIGHTS))
def test_waits_of_a_step_of_sleep(nights: Path, tmp_path: Path, name: str) -> None:
    method, expected = NIGHTS[name]
    steps = census(night_experiment(tmp_path, nights, *COMMON, method=method))
    assert all(waits.by_file() == expected for waits in steps), steps


def test_no_method_is_left_out() -> None:
    seen = {method["name"] for method, *_ in (*CASES.values(), *NIGHTS.values())}
    assert seen == set(METHODS.names())


# what a line of rayssl may say with x on the device and rows in NumPy, and by what it would wait
WAITING = {
    "x.sum().item()": "_local_scalar_dense",
    "x[x > 2]": "index",
    "x[[0, 1]]": "__getitem__",
    "x[None, rows.astype(int)]": "__getitem__",
    "x[torch.arange(2)]": "__getitem__",
    "x[torch.from_numpy(rows).long()]": "__getitem__",
    "x.__setitem__(slice(0, 2), torch.from_numpy(rows))": "__setitem__",
    "x.__setitem__([0], 3.0)": "__setitem__",
    "torch.from_numpy(rows).to(x.device)": "to",
    "(torch.zeros(2) + torch.ones(2)).to(x)": "to",
    "torch.tensor(rows, device=x.device)": "tensor",
    "x.new_tensor(rows)": "new_tensor",
    "x[:2].copy_(torch.zeros(2))": "copy_",
    "torch.zeros(2).copy_(x[:2])": "copy_",
    "x.tolist()": "tolist",
    "(x + 1).to('cpu')": "to",
    "x.to(device=torch.device('cpu'))": "to",
    "torch.linalg.inv(x[:4].view(2, 2) + torch.eye(2, device=x.device))": "_linalg_check_errors",
}
AT_ONCE = (
    "x[torch.arange(2, device=x.device)]",
    "x[rows.size :, None][0]",
    "x.__setitem__(0, 3.0)",
    "x.__setitem__(x > 2, 0.0)",
    "x.to(torch.float64).to(x.device).to(x)",
    "torch.zeros(2, device=x.device)[torch.zeros_like(x).long()]",
    "torch.where(x > 2, 1.0, x) * torch.tensor(2.0)",
    "torch.from_numpy(rows).cpu().tolist()",
    "torch.zeros(2)[[0]].to('cpu')",
)


def waits_of(line: str) -> Waits:
    """The waits of a line of Python that stands in a file of rayssl."""
    code = compile(line, f"{rayssl.__path__[0]}/losses/made_up.py", "eval")
    known = {"x": torch.arange(6.0), "rows": np.array([1.0, 0.0]), "torch": torch}
    with counted() as waits:
        eval(code, known)
    return waits


@pytest.mark.parametrize("line", WAITING)
def test_what_would_wait_is_seen(line: str) -> None:
    assert waits_of(line) == {f"losses/made_up.py:1 {WAITING[line]}": 1}


@pytest.mark.parametrize("line", AT_ONCE)
def test_what_would_not_wait_is_not_counted(line: str) -> None:
    assert not waits_of(line)


def test_only_lines_of_rayssl_count() -> None:
    x = torch.arange(6.0)
    with counted() as waits:
        x[x > 2].sum().item()
    assert not waits
    with counted() as waits:
        keys = torch.arange(2, device=DEVICE)
        build_augment(AugmentConfig.model_validate({"pitch_shift": {"p": 1.0}}), 16000, 5)(
            torch.zeros(2, 3200, device=DEVICE), keys
        )
    assert waits.by_file() == {"views/augment.py": 1}, "without the keys on the host"


def test_a_vocoder_reads_nothing_of_the_device() -> None:
    """Tensors on the device "meta" have no values: whoever asks for one, or for a shape that depends on one, fails."""
    augment = build_augment(
        AugmentConfig.model_validate({"pitch_shift": {"p": 0.7}, "time_stretch": {"p": 0.7}}), 16000, 5
    )
    wave, keys = torch.empty(5, 3200, device="meta"), torch.arange(5)
    for part in (augment._shift_pitch, augment._stretch):
        with pytest.raises(NotImplementedError, match="meta"):
            part(wave, keys.to("meta"))
        assert part(wave, keys).shape == (5, 3200)
