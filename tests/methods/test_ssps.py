"""SSPS: which rows are replaced, what gradient they let through, what is remembered, and the loss by the book."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rayssl.methods.base import Recall
from rayssl.methods.simclr import SimCLR, SimCLRConfig
from rayssl.methods.ssps import SSPS, SSPSConfig
from rayssl.models.encoder import EncoderConfig, build_encoder
from rayssl.models.heads import ProjectorConfig
from rayssl.models.norm import BatchNorm1d
from tests.runs import ENCODER, batch_of, random_views, views_config

TEMPERATURE = 0.2
FOUND = [True, False, True, True, False, False]


def base(sizes: list[int] | None = None) -> SimCLR:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig.model_validate(ENCODER))
    config = SimCLRConfig(temperature=TEMPERATURE, projector=ProjectorConfig(sizes=sizes or []))
    return SimCLR(config, encoder, views_config())


def ssps(start_epoch: int = 2, sizes: list[int] | None = None) -> SSPS:
    config = SSPSConfig(name="ssps", start_epoch=start_epoch, clusters=4)
    return SSPS(config, base(sizes))


def recall(found: list[bool], dim: int = 16) -> Recall:
    rows = torch.randn(len(found), dim, generator=torch.Generator().manual_seed(9)) * 3
    return Recall(rows.requires_grad_(), torch.tensor(found))


def outputs(dim: int = 16) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    names = ("anchor", "positive", "reference")
    out = {name: torch.randn(6, dim, generator=generator) for name in names}
    return {name: value.requires_grad_(name != "reference") for name, value in out.items()}


def by_the_book(a: Tensor, b: Tensor) -> Tensor:
    """SSPS paper, Eq. 1, both ways round: every row is an anchor once and a negative of all but itself and its pair."""
    rows = [row / row.norm() for row in (*a.double(), *b.double())]
    count, total = len(a), torch.zeros((), dtype=torch.float64)
    for i in range(2 * count):
        pair = (i + count) % (2 * count)
        others = [torch.exp(rows[i] @ rows[k] / TEMPERATURE) for k in range(2 * count) if k != i]
        total = total - torch.log(torch.exp(rows[i] @ rows[pair] / TEMPERATURE) / torch.stack(others).sum())
    return total / (2 * count)


@pytest.mark.parametrize("found", [FOUND, [True] * 6, [False] * 6])
def test_loss_and_gradient_by_the_book(found: list[bool]) -> None:
    """The replacing row is the anchor's positive, an anchor itself, and a negative of everybody else."""
    out, given = outputs(), recall(found)
    loss = ssps().step(out, batch_of(), given).loss
    loss.backward()
    anchor, positive = (outputs()[name].detach().requires_grad_() for name in ("anchor", "positive"))
    rows = [given.rows[i].detach() if found[i] else positive[i] for i in range(6)]
    expected = by_the_book(anchor, torch.stack(rows))
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out["anchor"].grad, anchor.grad, rtol=1e-4, atol=1e-6)
    wanted = torch.zeros_like(positive) if positive.grad is None else positive.grad
    torch.testing.assert_close(out["positive"].grad, wanted, rtol=1e-4, atol=1e-6)


def test_exactly_the_found_rows_are_replaced_and_detached() -> None:
    seen: dict[str, Tensor] = {}
    method, out, given = ssps(), outputs(), recall(FOUND)
    original = method.base.step

    def spy(out: dict[str, Tensor], *rest: Any) -> Any:
        seen.update(out)
        return original(out, *rest)

    method.base.step = spy  # type: ignore[method-assign, assignment]
    given = replace(given, rows=given.rows.detach())  # as the memory gives it
    step = method.step(out, batch_of(), given)
    for i, found in enumerate(FOUND):
        assert torch.equal(seen["positive"][i], given.rows[i] if found else out["positive"][i])
    assert seen["anchor"] is out["anchor"]
    step.loss.backward()
    assert out["anchor"].grad is not None and (out["anchor"].grad.norm(dim=1) > 0).all()
    assert out["positive"].grad is not None
    assert (out["positive"].grad.norm(dim=1) > 0).tolist() == [not found for found in FOUND]


def test_remembers_its_own_positives_never_the_replacing_rows() -> None:
    out = outputs()
    step = ssps().step(out, batch_of(), recall([True] * 6))
    assert step.remember is not None and step.remember.positives is not None
    assert torch.equal(step.remember.positives, out["positive"]) and not step.remember.positives.requires_grad
    assert step.remember.references is out["reference"]


@pytest.mark.parametrize("nothing", ["none asked", "none found"])
def test_without_anything_found_it_is_the_base_method(nothing: str) -> None:
    views = random_views(("anchor", "positive"))
    plain, method = base(), ssps()
    expected = plain.step(plain(views), batch_of(), None).loss
    expected.backward()
    given = None if nothing == "none asked" else recall([False] * 6)
    loss = method.step(method(views | random_views(("reference",))), batch_of(), given).loss
    loss.backward()
    assert torch.equal(loss, expected)
    for (name, wanted), mine in zip(plain.named_parameters(), method.base.parameters(), strict=True):
        assert mine.grad is not None and wanted.grad is not None
        assert torch.equal(mine.grad, wanted.grad), name


def test_reference() -> None:
    """Unit length, without gradient, of the encoder in eval mode, before the projector."""
    method = ssps(sizes=[8])
    method.train()
    views = random_views(("anchor", "positive", "reference"))
    reference = method(views)["reference"]
    assert reference.shape == (6, 16) and not reference.requires_grad
    torch.testing.assert_close(reference.norm(dim=1), torch.ones(6))
    method.eval()
    with torch.no_grad():
        expected = torch.nn.functional.normalize(method.encoder(views["reference"].wave, None), dim=1)
    torch.testing.assert_close(reference, expected, rtol=0, atol=0)
    assert not math.isclose(expected.std().item(), 0)


def test_reference_leaves_statistics_and_modes_alone() -> None:
    plain, method = base(), ssps()
    frozen = next(m for m in method.encoder.modules() if isinstance(m, BatchNorm1d))
    frozen.eval()
    next(m for m in plain.encoder.modules() if isinstance(m, BatchNorm1d)).eval()
    modes = [module.training for module in method.modules()]
    views = random_views(("anchor", "positive"))
    plain(views)
    method(views | random_views(("reference",), seed=5))
    assert [module.training for module in method.modules()] == modes and not frozen.training
    for (name, wanted), mine in zip(plain.named_buffers(), method.base.buffers(), strict=True):
        assert torch.equal(mine, wanted), name


def test_epochs() -> None:
    method = ssps(start_epoch=2)
    assert [method.config.recalls(epoch) for epoch in range(4)] == [False, False, True, True]
    assert [method.config.remembers(epoch) for epoch in range(4)] == [False, True, True, True]
    names = [[segment.name for segment in method.config.segments(views_config(), epoch)] for epoch in range(3)]
    assert names[0] == ["anchor", "positive"] and names[1] == names[2] == ["anchor", "positive", "reference"]
    reference = method.config.segments(views_config(), 1)[2]
    assert reference.seconds == 0.3 and reference.recipe == "none"
    assert method.config.segments(views_config(), 1)[:2] == method.config.segments(views_config(), 0)


def test_references_of_a_pass_before_each_epoch() -> None:
    """Only the reference is read and computed then, with the encoder in eval mode; no step has one."""
    config = SSPSConfig(name="ssps", start_epoch=2, clusters=4, references="fill")
    method = SSPS(config, base())
    names = [[segment.name for segment in method.config.fill_segments(views_config(), epoch)] for epoch in range(4)]
    assert names == [[], [], ["reference"], ["reference"]]
    assert [len(method.config.segments(views_config(), epoch)) for epoch in range(4)] == [2] * 4
    remember = method.fill(random_views(("reference",)))
    assert remember.references is not None and remember.positives is None
    plain = base().eval()
    with torch.no_grad():
        expected = torch.nn.functional.normalize(
            plain.encoder(random_views(("reference",))["reference"].wave, None), dim=1
        )
    torch.testing.assert_close(remember.references, expected)
    step = method.step(method(random_views(("anchor", "positive"))), batch_of(epoch=1), None)
    assert step.remember is not None and step.remember.references is None and step.remember.positives is not None


def test_from_another_run_the_first_pass_has_everything() -> None:
    config = SSPSConfig(name="ssps", start_from="runs/a", clusters=4)
    method = SSPS(config, base())
    names = [[segment.name for segment in method.config.fill_segments(views_config(), epoch)] for epoch in range(2)]
    assert names == [["anchor", "positive", "reference"], []]
    assert method.config.recalls(0) and method.config.remembers(0)
    method.eval()
    views = random_views(("anchor", "positive", "reference"))
    remember = method.fill(views)
    out = method(views)
    assert remember.positives is not None and not remember.positives.requires_grad
    torch.testing.assert_close(remember.positives, out["positive"])
    torch.testing.assert_close(remember.references, out["reference"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "give one of them"),
        ({"start_epoch": 1, "start_from": "runs/a"}, "give one of them"),
        ({"start_epoch": 1, "clusters": 0}, "set method.clusters"),
        ({"start_epoch": 1, "sampling": "nn", "neighbours": 0}, "set method.neighbours"),
        ({"start_epoch": 1, "sampling": "speaker", "warm_start": True}, "leave out method.warm_start"),
        ({"start_epoch": 1, "whiten": True, "warm_start": True}, "leave out method.warm_start"),
        ({"start_epoch": 1, "merged_from": 9, "warm_start": True}, "leave out method.warm_start"),
        ({"start_epoch": 1, "merged_from": 3}, "merged_from=3 clusters cannot be merged into clusters=4"),
    ],
)
def test_impossible_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SSPSConfig.model_validate({"name": "ssps", "clusters": 4, **changes})


def test_nothing_to_remember_before_its_time() -> None:
    method = ssps()
    out = method(random_views(("anchor", "positive")))
    assert "reference" not in out and method.step(out, batch_of(epoch=0), None).remember is None


def test_recalled_rows_need_not_have_the_precision_of_the_outputs() -> None:
    out = {name: value.detach().bfloat16() for name, value in outputs().items()}
    assert ssps().step(out, batch_of(), recall(FOUND)).loss.isfinite()


def test_encoder_prefix() -> None:
    method = ssps()
    prefix = method.encoder_prefix
    weights = {n[len(prefix) :]: v for n, v in method.state_dict().items() if n.startswith(prefix)}
    method.encoder.load_state_dict(weights, strict=True)
    assert method.encoder is method.base.encoder


def test_what_happens_around_an_update_reaches_the_base() -> None:
    method, calls = ssps(), []
    method.base.after_step = calls.append  # type: ignore[method-assign]
    method.base.before_update = calls.append  # type: ignore[method-assign, assignment]
    method.before_update(3)
    method.after_step(0.25)
    assert calls == [3, 0.25]
