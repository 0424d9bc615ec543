"""SwAV: scores and codes, prototypes that are frozen and stay of unit length, the queue, and SSPS over it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from rayssl.losses.swav import swav
from rayssl.methods.base import Outputs, Recall
from rayssl.methods.ssps import SSPS, SSPSConfig
from rayssl.methods.swav import SwAV, SwAVConfig
from rayssl.models.encoder import EncoderConfig, build_encoder
from tests.runs import ENCODER, batch_of, random_views, views_config

FOUND = torch.tensor([True, False, True, True, False, False])
KNOBS: dict[str, Any] = {"temperature": 0.3, "epsilon": 0.2, "iterations": 2}


def model(**changes: object) -> SwAV:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig.model_validate(ENCODER))
    settings = {"projector": {"sizes": [12, 8]}, "prototypes": 10, **KNOBS} | changes
    return SwAV(SwAVConfig.model_validate(settings), encoder, views_config())


def forward(method: SwAV | SSPS, seed: int = 0) -> Outputs:
    out: Outputs = method(random_views(("anchor", "positive"), seed=seed))
    return out


def recall() -> Recall:
    rows = normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(9)), dim=1)
    return Recall(rows.requires_grad_(), FOUND)


def expected(method: SwAV, a: Tensor, b: Tensor, past: Tensor | None = None) -> Tensor:
    """The loss of embeddings, with codes over them and ``past [Q, 2 * D]``."""
    prototypes = normalize(method.prototypes.weight, dim=1)
    keys = torch.cat([a, b], dim=1) if past is None else torch.cat([torch.cat([a, b], dim=1), past])
    keys_a, keys_b = ((half @ prototypes.T).detach() for half in keys.chunk(2, dim=1))
    return swav(a @ prototypes.T, b @ prototypes.T, keys_a=keys_a, keys_b=keys_b, offset=0, **KNOBS)


def update(method: SwAV, epoch: int, seed: int = 0) -> Outputs:
    """One whole step, as the loop makes it."""
    optimiser = torch.optim.SGD(method.parameters(), lr=0.5, weight_decay=0.01)
    out = forward(method, seed)
    method.step(out, batch_of(epoch=epoch), None).loss.backward()
    method.before_update(epoch)
    optimiser.step()
    method.after_step(0.1)
    return out


def test_segments() -> None:
    segments = model().config.segments(views_config(), 0)
    assert [(s.name, s.seconds, s.recipe) for s in segments] == [
        ("anchor", 0.2, "distort"),
        ("positive", 0.2, "distort"),
    ]


def test_loss_is_swav_of_the_views_scores() -> None:
    method = model()
    out = forward(method)
    assert out["anchor"].shape == out["positive"].shape == (6, 8)
    torch.testing.assert_close(out["anchor"].norm(dim=1), torch.ones(6))
    step = method.step(out, batch_of(), None)
    torch.testing.assert_close(step.loss, expected(method, out["anchor"], out["positive"]))
    assert step.remember is None and not step.terms["swav"].requires_grad
    step.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in method.parameters())


def test_prototypes_are_frozen_at_first() -> None:
    method = model(freeze_epochs=2)
    before = normalize(method.prototypes.weight.detach().clone(), dim=1)
    for epoch in (0, 1):
        update(method, epoch)
        torch.testing.assert_close(method.prototypes.weight.detach(), before)
    encoder = next(method.encoder.parameters()).detach().clone()
    update(method, 2)
    assert (method.prototypes.weight - before).abs().max() > 1e-3
    assert not torch.equal(next(method.encoder.parameters()), encoder)


def test_prototypes_stay_of_unit_length() -> None:
    method = model(freeze_epochs=0)
    for seed in range(3):
        update(method, 1, seed)
        torch.testing.assert_close(method.prototypes.weight.norm(dim=1), torch.ones(10))


def test_the_queue_takes_part_from_its_epoch_on() -> None:
    method = model(queue=9, queue_start_epoch=2)
    assert method.queue is not None
    update(method, 1)
    assert int(method.queue.pushed) == 0
    first = update(method, 2, seed=1)
    rows = torch.cat([first["anchor"], first["positive"]], dim=1).detach()
    assert int(method.queue.pushed) == 6 and torch.equal(method.queue.rows[:6], rows)
    out = forward(method, seed=2)
    loss = method.step(out, batch_of(epoch=2), None).loss
    torch.testing.assert_close(loss, expected(method, out["anchor"], out["positive"], past=rows))
    early = method.step(out, batch_of(epoch=1), None).loss
    torch.testing.assert_close(early, expected(method, out["anchor"], out["positive"]))
    assert abs(early - loss) > 1e-4


def test_without_a_queue_there_is_no_state() -> None:
    assert model().queue is None and not any(name.startswith("queue") for name in model().state_dict())


def test_state_is_saved() -> None:
    method, other = (model(queue=9, queue_start_epoch=0) for _ in range(2))
    for seed in range(2):
        update(method, 1, seed)
    other.load_state_dict(method.state_dict(), strict=True)
    losses = [m.step(forward(m, 5), batch_of(), None).loss for m in (method, other)]
    assert torch.equal(losses[0], losses[1])


def test_encoder_is_under_its_prefix() -> None:
    method = model()
    weights = {n.removeprefix("encoder."): v for n, v in method.state_dict().items() if n.startswith("encoder.")}
    method.encoder.load_state_dict(weights, strict=True)
    assert method.encoder_prefix == "encoder." and method.reference_encoder is method.encoder


def test_ssps_replaces_positives_in_scores_and_codes_and_not_in_the_queue() -> None:
    method = model(queue=9, queue_start_epoch=0)
    over = SSPS(SSPSConfig(name="ssps", start_epoch=1, clusters=4), method)
    out, given = forward(over), recall()
    for value in out.values():
        value.retain_grad()
    step = over.step(out, batch_of(), given)
    rows = torch.stack([given.rows[i].detach() if FOUND[i] else out["positive"][i] for i in range(6)])
    wanted = expected(method, out["anchor"], rows)
    torch.testing.assert_close(step.loss, wanted)
    inputs = [out["anchor"], out["positive"], method.prototypes.weight]
    ours, theirs = (torch.autograd.grad(x, inputs, retain_graph=True) for x in (step.loss, wanted))
    torch.testing.assert_close(ours, theirs)
    assert (ours[0].norm(dim=1) > 0).all() and (ours[1].norm(dim=1) > 0).tolist() == (~FOUND).tolist()
    step.loss.backward()
    assert given.rows.grad is None
    assert step.remember is not None and step.remember.positives is not None
    assert torch.equal(step.remember.positives, out["positive"])
    over.after_step(0.1)
    assert method.queue is not None
    assert torch.equal(method.queue.rows[:6], torch.cat([out["anchor"], out["positive"]], dim=1))


@pytest.mark.parametrize("found", [None, torch.zeros(6, dtype=torch.bool)])
def test_ssps_without_anything_found_is_swav(found: Tensor | None) -> None:
    plain = model()
    over = SSPS(SSPSConfig(name="ssps", start_epoch=1, clusters=4), model())
    given = None if found is None else Recall(recall().rows, found)
    loss = over.step(forward(over), batch_of(), given).loss
    assert torch.equal(loss, plain.step(forward(plain), batch_of(), None).loss)


def test_positive_dim() -> None:
    method = model()
    assert method.config.positive_dim(16) == method.embedding_dim == 8
    assert SwAVConfig(projector={"sizes": []}).positive_dim(16) == 16  # type: ignore[arg-type]


def test_outputs_are_float32_under_autocast() -> None:
    """What is stored, exchanged and divided by temperatures is no bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        out = forward(model())
    assert {value.dtype for value in out.values()} == {torch.float32}
