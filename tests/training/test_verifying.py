"""A step that is computed again: it changes nothing, and a machine that computes wrong is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rayssl.methods.base import Method
from rayssl.training import verifying
from tests.runs import (
    DASO_METHOD,
    DINO_METHOD,
    FEW,
    MOCO_METHOD,
    SDPN_METHOD,
    SPLITS,
    SSPS_METHOD,
    SWAV_METHOD,
    batches,
    build,
    content,
    experiment,
    fit,
    write_corpus,
)

METHODS: dict[str, dict[str, Any]] = {
    "ssps": SSPS_METHOD,
    "dino": {**SSPS_METHOD, "over": DINO_METHOD},
    "moco": {**SSPS_METHOD, "over": MOCO_METHOD},
    "swav": {**SSPS_METHOD, "over": SWAV_METHOD},
    "sdpn": {**SSPS_METHOD, "over": SDPN_METHOD},
    "daso": DASO_METHOD,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, (9, 10, 6), splits=SPLITS)
    return folder


@pytest.mark.parametrize("method", list(METHODS))
def test_it_changes_nothing(corpus: Path, tmp_path: Path, method: str) -> None:
    few = (*FEW, "training.epoch_steps=3") if method == "daso" else ()
    found = []
    for every in (0, 2):
        settings = experiment(
            tmp_path / str(every), corpus, *few, f"training.verify_every={every}", method=METHODS[method]
        )
        found.append(content(fit(settings)))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_a_flipped_bit_in_a_gradient_is_noticed(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = experiment(tmp_path, corpus, "training.verify_every=4")
    loop, calls = build(settings), []
    results = verifying._results

    def wrong(method: Method, *inputs: Any, **options: Any) -> dict[str, torch.Tensor]:
        found = results(method, *inputs, **options)
        calls.append(1)
        if len(calls) == 4:  # in the second step that is verified
            name = next(name for name in found if "weight" in name)
            bits = found[name].flatten()[:1].view(torch.int32)
            found[name] = found[name].clone()
            found[name].flatten()[:1].view(torch.int32).copy_(bits ^ 1)
        return found

    monkeypatch.setattr(verifying, "_results", wrong)
    with pytest.raises(
        RuntimeError, match=r"^step 4 has other bits .*\(rank 0 on \S+: 1 of its tensors, \S+weight first"
    ):
        loop.fit(batches(settings, loop))
    assert loop.step == 4
