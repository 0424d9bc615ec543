"""What runs compiled, and the settings of kernels. No GPU is needed: the compiler's graphs run as they are, eagerly."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rayssl.models.encoder import Encoder
from rayssl.training.kernels import chosen, compile_each, compile_encoders
from rayssl.training.state import TrainingConfig
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
    records,
    write_corpus,
)
from tests.training.waits import of_graph

METHODS: dict[str, dict[str, Any]] = {
    "dino": DINO_METHOD,
    "ssps": SSPS_METHOD,
    "daso": DASO_METHOD,
    "simclr": {"name": "simclr"},
    "moco": MOCO_METHOD,
    "swav": SWAV_METHOD,
    "vicreg": VICREG_METHOD,
    "sdpn": SDPN_METHOD,
    "usadtm": USADTM_METHOD,
    "supervised": {"name": "supervised"},
    "pseudo_speakers": PSEUDO_METHOD,
    "ssps-dino": {**SSPS_METHOD, "over": DINO_METHOD},
}
LONG, CUDA, CPU = 3, torch.device("cuda"), torch.device("cpu")
CASES = [
    pytest.param(name, marks=pytest.mark.long if number < LONG else pytest.mark.slow)
    for number, name in enumerate(METHODS)
]


@pytest.mark.parametrize("name", CASES)
def test_a_method_trains_as_without_a_compiler(name: str, tmp_path: Path) -> None:
    """Each encoder is one graph for each length and mode, and the losses of four steps are the same.

    In the graphs nothing waits for the device. `tests.training.test_waits` counts what is not compiled.
    """
    few = name in ("daso", "usadtm")
    write_corpus(tmp_path / "corpus", (9, 8), splits=SPLITS if few else None)
    changes = ("training.epochs=2", *(FEW if few else ()))
    found = []
    for run in ("plain", "compiled"):
        settings = experiment(tmp_path / run, tmp_path / "corpus", *changes, method=METHODS[name])
        loop = build(settings)
        graphs, waits = list[int](), list[str]()
        if run == "compiled":
            torch._dynamo.reset()
            compile_each(loop.state.method, fullgraph=True, backend=_counted(graphs, waits))
        try:
            loop.fit(batches(settings, loop))
        finally:
            torch._dynamo.reset()
        found.append([line["loss"] for line in records(settings.run, "step")])
    assert graphs and not waits and len(found[0]) >= 4
    assert found[1] == pytest.approx(found[0], rel=1e-4)


@pytest.mark.long
@pytest.mark.parametrize(
    ("line", "expected"),
    [(lambda x: x * x.long().sum().item(), "_local_scalar_dense"), (lambda x: x[x > 2].sum(), "index")],
)
def test_a_wait_in_a_graph_would_be_seen(line: Any, expected: str) -> None:
    waits: list[str] = []
    torch._dynamo.reset()
    try:
        torch.compile(line, fullgraph=True, backend=_counted([], waits))(torch.arange(6.0, requires_grad=True))
    finally:
        torch._dynamo.reset()
    assert expected in waits


def _counted(graphs: list[int], waits: list[str]) -> Any:
    """A backend that makes the graphs of the backward passes too and runs them eagerly.

    It counts the graphs that it is given, and notes what in them would wait.
    """
    from torch._dynamo.backends.common import aot_autograd

    def made(graph: Any, _: object) -> Any:
        waits.extend(of_graph(graph))
        return graph.forward

    making = aot_autograd(fw_compiler=made)

    def backend(graph: Any, examples: Any) -> Any:
        graphs.append(len(graph.graph.nodes))
        return making(graph, examples)

    return backend


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("last", [False, True])
def test_compiled_kernels_compute_the_same(last: bool) -> None:
    """With torch's own compiler, in both layouts: in fp32 the same, in bf16 as near to fp32 as without it.

    bf16 has 8 bits, and the gradients of so small a batch are a quarter of their norm away from those of fp32, by
    whichever kernels.
    """
    from tests.models.test_encoder import FITTING
    from tests.models.test_encoder import build as build_encoder

    frontend, backbone = FITTING["ecapa"]
    wave = 0.1 * torch.randn(4, 8000, generator=torch.Generator().manual_seed(1))

    def computed(*, bf16: bool, compiled: bool) -> Tensor:
        encoder = build_encoder(backbone, frontend)
        encoder.backbone.channels_last = last
        if compiled:
            compile_each(encoder, fullgraph=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = encoder(wave)
        out.square().sum().backward()
        torch._dynamo.reset()
        gradients = (p.grad for p in encoder.parameters() if p.grad is not None)
        return torch.cat([value.detach().flatten() for value in (out, *gradients)])

    expected = computed(bf16=False, compiled=False)

    def away(*, bf16: bool, compiled: bool) -> float:
        return float((computed(bf16=bf16, compiled=compiled) - expected).norm() / expected.norm())

    assert away(bf16=False, compiled=True) < 1e-4
    assert away(bf16=True, compiled=True) < 1.25 * away(bf16=True, compiled=False) < 0.5


def model(name: str = "ecapa") -> nn.Module:
    from tests.models.test_encoder import FITTING
    from tests.models.test_encoder import build as build_encoder

    frontend, backbone = FITTING[name]
    return nn.ModuleDict({"student": build_encoder(backbone, frontend), "teacher": build_encoder(backbone, frontend)})


def context(device: torch.device, rank: int = 0, say: Any = None) -> Any:
    return SimpleNamespace(device=device, rank=rank, say=say)


def compiled(module: nn.Module) -> list[bool]:
    return [part._compiled_call_impl is not None for part in module.modules() if isinstance(part, Encoder)]


@pytest.mark.parametrize(
    ("given", "device", "steps", "expected"),
    [
        ("auto", CPU, 10**6, False),
        ("auto", CUDA, 10_000, True),
        ("auto", CUDA, 9_998, False),
        (True, CPU, 1, True),
        (False, CUDA, 10**6, False),
    ],
)
def test_the_key_the_device_and_the_length_decide(
    given: Any, device: torch.device, steps: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor

    monkeypatch.setattr("rayssl.training.kernels.triton_lacks", lambda: None)
    network = model()
    with dynamo.patch(recompile_limit=8, suppress_errors=False), inductor.patch(deterministic=False):
        settings = TrainingConfig(compile=given, epochs=2)
        assert compile_encoders(network, settings, context(device), steps // 2) is expected
        assert dynamo.recompile_limit == (64 if expected else 8)
        assert dynamo.suppress_errors is (expected and given == "auto")
    assert compiled(network) == [expected] * 2
    assert TrainingConfig().compile == "auto"


@pytest.mark.parametrize(
    ("repeats", "verify_every", "expected"), [(True, 0, True), (False, 0, False), (False, 9, True)]
)
def test_what_must_repeat_is_not_chosen_by_its_time(repeats: bool, verify_every: int, expected: bool) -> None:
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor

    settings = TrainingConfig(compile=True, verify_every=verify_every)
    with dynamo.patch(recompile_limit=8, suppress_errors=False), inductor.patch(deterministic=False):
        compile_encoders(model(), settings, context(CPU), 1, repeats=repeats)
        assert inductor.deterministic is expected


def test_auto_compiles_what_gains_from_it() -> None:
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor

    network = model("fast_resnet34")
    assert not compile_encoders(network, TrainingConfig(compile="auto"), context(CUDA), 10**6)
    with dynamo.patch(recompile_limit=8, suppress_errors=False), inductor.patch(deterministic=False):
        assert compile_encoders(network, TrainingConfig(compile=True), context(CUDA), 1)


@pytest.mark.parametrize(
    ("path", "headers", "line"), [("", True, "a C compiler"), (None, False, "Python.h (Debian's package python3-dev)")]
)
def test_what_is_missing_is_said(
    path: str | None, headers: bool, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    for file in (tmp_path / "bin" / "gcc", tmp_path / "Python.h"):
        file.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin") if path is None else path)
    monkeypatch.delenv("CC", raising=False)
    place = tmp_path if headers else tmp_path / "bin"
    monkeypatch.setattr("rayssl.training.kernels.sysconfig.get_path", lambda name, scheme: str(place))
    network, lines = model(), list[str]()
    for rank in (0, 1):
        assert not compile_encoders(network, TrainingConfig(compile="auto"), context(CUDA, rank, lines.append), 10**6)
    assert compiled(network) == [False] * 2
    assert len(lines) == 1 and line in lines[0]


def flags() -> tuple[bool, bool, bool]:
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark


@pytest.mark.parametrize(
    ("settings", "repeats", "expected"),
    [
        ({}, True, (False, False, False)),
        ({"tf32": True}, True, (True, True, False)),
        ({}, False, (False, False, True)),
        ({"verify_every": 5}, False, (False, False, False)),
    ],
)
def test_settings_of_a_gpu_hold_for_the_training(
    settings: dict[str, Any], repeats: bool, expected: tuple[bool, bool, bool]
) -> None:
    before = flags()
    state: Any = SimpleNamespace(
        config=TrainingConfig.model_validate(settings), repeats=repeats, context=SimpleNamespace(device=CUDA)
    )

    def train() -> None:
        with chosen(state):
            assert flags() == expected
            raise KeyError

    with pytest.raises(KeyError):
        train()
    assert flags() == before
    state.context.device = CPU
    with chosen(state):
        assert flags() == before


def test_a_run_may_go_on_compiled() -> None:
    from rayssl.runs.changes import FREE

    assert "training.compile" in FREE and "training.tf32" not in FREE
