"""``training.compile`` reaches the network of a night encoder, which is called by `sequence` and not by ``forward``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rayssl.models.encoder import NightEncoder, build_encoder
from tests.night_runs import SEQUENCE, encoder_config, night_experiment, write_night_corpus
from tests.runs import build


@pytest.mark.long
@pytest.mark.parametrize("name", ["soundsleepnet", "sleepformer"])
def test_a_compiled_network_computes_the_same(name: str) -> None:
    """Values and gradients in training mode, with dropout. The backend runs each graph as it is and counts them."""
    torch.manual_seed(0)
    encoder = build_encoder(encoder_config(name))
    assert isinstance(encoder, NightEncoder)
    pictures = torch.randn(2, SEQUENCE, 8, 31) - 4
    keys, names = torch.tensor([3, 4]), list(encoder.state_dict())

    def trained() -> tuple[torch.Tensor, ...]:
        z, own = encoder.sequence(pictures, keys)
        found = torch.autograd.grad((z.square() + own.sum()).mean(), list(encoder.parameters()), allow_unused=True)
        return z, own, *(gradient for gradient in found if gradient is not None)

    before = trained()
    graphs = []

    def backend(graph: Any, examples: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    encoder.compile(backend=backend)
    try:
        torch.testing.assert_close(trained(), before, rtol=1e-4, atol=1e-5)
    finally:
        torch._dynamo.reset()
    nodes = [node.target for graph in graphs for node in graph.graph.nodes]
    assert any("conv" in str(target) for target in nodes)
    assert list(encoder.state_dict()) == names


@pytest.mark.parametrize("compiled", [True, False])
def test_the_key_compiles_the_model_and_its_average(tmp_path: Path, compiled: bool) -> None:
    write_night_corpus(tmp_path / "corpus", hospital=(5, 5), home=(9, 9))
    changes = f"training.compile={str(compiled).lower()}"
    settings = night_experiment(tmp_path / "run", tmp_path / "corpus", changes, backbone="soundsleepnet")
    parts = [part for part in build(settings).state.method.modules() if isinstance(part, NightEncoder)]
    assert ["sequence" in vars(part.backbone) for part in parts] == [compiled] * 2
