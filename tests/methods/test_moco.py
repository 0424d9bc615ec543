"""MoCo: queries and keys, the key encoder that follows, what the queue is fed with, and SSPS over it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rayssl.losses.infonce import infonce
from rayssl.methods.base import Outputs, Recall, View
from rayssl.methods.moco import MoCo, MoCoConfig
from rayssl.methods.ssps import SSPS, SSPSConfig
from rayssl.models.encoder import EncoderConfig, build_encoder
from tests.runs import ENCODER, batch_of, random_views, views_config

FOUND = torch.tensor([True, False, True, True, False, False])


def moco(**changes: object) -> MoCo:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig.model_validate(ENCODER))
    settings = {"temperature": 0.2, "queue": 20, "momentum": 0.9} | changes
    return MoCo(MoCoConfig.model_validate(settings), encoder, views_config())


def with_queue(method: MoCo, rows: int = 9) -> MoCo:
    method.queue.push(torch.randn(rows, method.embedding_dim, generator=torch.Generator().manual_seed(4)))
    return method


def forward(method: MoCo | SSPS, seed: int = 0) -> Outputs:
    out: Outputs = method(random_views(("anchor", "positive"), seed=seed))
    return out


def recall(dim: int = 16) -> Recall:
    rows = torch.randn(6, dim, generator=torch.Generator().manual_seed(9)) * 3
    return Recall(rows.requires_grad_(), FOUND)


def test_segments() -> None:
    segments = moco().config.segments(views_config(), 0)
    assert [(s.name, s.seconds, s.recipe) for s in segments] == [
        ("anchor", 0.2, "distort"),
        ("positive", 0.2, "distort"),
    ]


def test_loss_is_infonce_over_the_queue_as_it_was() -> None:
    method = with_queue(moco())
    before = method.queue.rows.clone()
    out = forward(method)
    step = method.step(out, batch_of(), None)
    filled = torch.arange(20) < 9
    expected = infonce(out["query"], out["key"], before, filled=filled, temperature=0.2)
    torch.testing.assert_close(step.loss, expected, rtol=0, atol=0)
    assert step.remember is None and not step.terms["infonce"].requires_grad and step.loss > 0.1
    assert torch.equal(method.queue.rows, before)
    assert method.positives(out) is out["key"]


def test_only_the_query_encoder_learns() -> None:
    method = with_queue(moco(projector={"sizes": [12, 7]}))
    out = forward(method)
    assert out["query"].shape == out["key"].shape == (6, 7) and not out["key"].requires_grad
    method.step(out, batch_of(), None).loss.backward()
    for name, parameter in method.named_parameters():
        assert (parameter.grad is None) is name.startswith("key_"), name
        assert parameter.requires_grad is not name.startswith("key_"), name


def test_keys_are_of_the_positive_and_start_with_the_query_encoders_weights() -> None:
    method = moco().eval()
    views = random_views(("anchor", "positive"))
    out = method(views)
    torch.testing.assert_close(out["query"], method.encoder(views["anchor"].wave, None), rtol=0, atol=0)
    torch.testing.assert_close(out["key"], method.encoder(views["positive"].wave, None), rtol=0, atol=0)


def test_the_key_encoder_follows() -> None:
    method = moco(projector={"sizes": [5]})
    with torch.no_grad():
        for parameter in (*method.encoder.parameters(), *method.projector.parameters()):
            parameter.add_(1.0)
    before = [p.clone() for p in (*method.key_encoder.parameters(), *method.key_projector.parameters())]
    method.after_step(0.5)
    after = (*method.key_encoder.parameters(), *method.key_projector.parameters())
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old + 0.1)


def test_the_queue_takes_each_batch_once_after_its_step() -> None:
    method = moco()
    keys = []
    for seed in range(4):
        out = forward(method, seed)
        method.step(out, batch_of(), None)
        assert int(method.queue.pushed) == 6 * seed
        method.after_step(0.1)
        keys.append(out["key"])
    assert torch.equal(method.queue.rows[4:], torch.cat(keys)[4:20])
    assert torch.equal(method.queue.rows[:4], torch.cat(keys)[20:])
    method.after_step(0.2)
    assert int(method.queue.pushed) == 24


def test_an_empty_queue_gives_a_loss_of_zero() -> None:
    method = moco()
    loss = method.step(forward(method), batch_of(), None).loss
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


def test_encoders() -> None:
    """Queries' is evaluated; keys' makes the references of SSPS, in its own statistics."""
    method = moco()
    weights = {n.removeprefix("encoder."): v for n, v in method.state_dict().items() if n.startswith("encoder.")}
    method.encoder.load_state_dict(weights, strict=True)
    assert method.encoder_prefix == "encoder." and method.reference_encoder is method.key_encoder
    statistics = [b.clone() for n, b in method.key_encoder.named_buffers() if "running" in n]
    forward(method)
    moved = [b for n, b in method.key_encoder.named_buffers() if "running" in n]
    assert statistics and not any(torch.equal(a, b) for a, b in zip(statistics, moved, strict=True))


def test_state_is_saved() -> None:
    method, other = moco(), moco()
    for seed in range(2):
        method.step(forward(method, seed), batch_of(), None)
        with torch.no_grad():
            next(method.encoder.parameters()).add_(0.1)
        method.after_step(0.1)
    other.load_state_dict(method.state_dict(), strict=True)
    losses = [m.step(forward(m, 5), batch_of(), None).loss for m in (method, other)]
    assert torch.equal(losses[0], losses[1]) and losses[0] > 0


def test_ssps_replaces_keys_in_the_loss_and_not_in_the_queue() -> None:
    method = with_queue(moco())
    over = SSPS(SSPSConfig(name="ssps", start_epoch=1, clusters=4), method)
    out, given = forward(over), recall()
    step = over.step(out, batch_of(), given)
    rows = torch.stack([given.rows[i].detach() if FOUND[i] else out["key"][i] for i in range(6)])
    queue, filled = method.queue.rows.clone(), method.queue.filled
    expected = infonce(out["query"], rows, queue, filled=filled, temperature=0.2)
    torch.testing.assert_close(step.loss, expected)
    (ours,), (theirs,) = (torch.autograd.grad(x, out["query"], retain_graph=True) for x in (step.loss, expected))
    torch.testing.assert_close(ours, theirs)
    step.loss.backward()
    assert given.rows.grad is None
    assert step.remember is not None and step.remember.positives is not None
    assert torch.equal(step.remember.positives, out["key"])
    over.after_step(0.1)
    assert torch.equal(method.queue.rows[9:15], out["key"])


@pytest.mark.parametrize("found", [None, torch.zeros(6, dtype=torch.bool)])
def test_ssps_without_anything_found_is_moco(found: Tensor | None) -> None:
    plain = with_queue(moco())
    over = SSPS(SSPSConfig(name="ssps", start_epoch=1, clusters=4), with_queue(moco()))
    given = None if found is None else Recall(recall().rows, found)
    loss = over.step(forward(over), batch_of(), given).loss
    assert torch.equal(loss, plain.step(forward(plain), batch_of(), None).loss) and loss > 0


def test_ssps_clusters_the_key_encoders_references() -> None:
    method = moco()
    over = SSPS(SSPSConfig(name="ssps", start_epoch=1, clusters=4), method)
    with torch.no_grad():
        for parameter in method.encoder.parameters():
            parameter.mul_(1.5)
    views = random_views(("anchor", "positive", "reference"))
    reference = over(views)["reference"]
    with torch.no_grad():
        expected = torch.nn.functional.normalize(method.key_encoder.eval()(views["reference"].wave, None), dim=1)
    torch.testing.assert_close(reference, expected, rtol=0, atol=0)


@pytest.mark.parametrize(("sizes", "dim"), [([], 16), ([12, 7], 7)])
def test_positive_dim(sizes: list[int], dim: int) -> None:
    method = moco(projector={"sizes": sizes})
    assert method.config.positive_dim(16) == method.embedding_dim == forward(method)["key"].shape[1] == dim


def test_outputs_are_float32_under_autocast() -> None:
    """What is stored, exchanged and divided by temperatures is no bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        out = forward(moco(projector={"sizes": [12, 7]}, symmetric=True))
    assert {value.dtype for value in out.values()} == {torch.float32}


def both_ways(**changes: object) -> MoCo:
    method = with_queue(moco(symmetric=True, **changes))
    assert method.other_queue is not None
    method.other_queue.push(torch.randn(7, method.embedding_dim, generator=torch.Generator().manual_seed(5)))
    return method


def test_symmetric_loss_is_the_mean_of_both_directions_each_with_its_queue() -> None:
    """As the public code has it: queries of the first segments meet keys of the second ones, and the other way."""
    method = both_ways()
    assert method.other_queue is not None
    views, queues = random_views(("anchor", "positive")), (method.queue, method.other_queue)
    rows, filled = [queue.rows.clone() for queue in queues], [torch.arange(20) < count for count in (9, 7)]
    out = method(views)
    step = method.step(out, batch_of(), None)
    torch.manual_seed(0)
    twin = build_encoder(EncoderConfig.model_validate(ENCODER))
    each = {name: twin(view.wave, view.keys) for name, view in views.items()}
    pairs = (("anchor", "positive"), ("positive", "anchor"))
    losses = [
        infonce(each[query], each[key].detach(), queue, filled=full, temperature=0.2)
        for (query, key), queue, full in zip(pairs, rows, filled, strict=True)
    ]
    torch.testing.assert_close(step.loss, sum(losses) / 2)
    step.loss.backward()
    (sum(losses) / 2).backward()
    for ours, theirs in zip(method.encoder.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    method.after_step(0.1)
    torch.testing.assert_close(method.queue.rows[9:15], each["positive"].detach())
    torch.testing.assert_close(method.other_queue.rows[7:13], each["anchor"].detach())
    assert {"queue.rows", "other_queue.rows"} < method.state_dict().keys()
    assert "other_queue.rows" not in moco().state_dict()


@pytest.mark.parametrize("enqueue", ["own", "recalled"])
def test_ssps_replaces_the_keys_of_both_directions(enqueue: str) -> None:
    """An utterance stores both keys, and an anchor takes both from the same utterance."""
    method = both_ways(enqueue=enqueue)
    assert method.other_queue is not None and method.config.positive_dim(16) == 32
    over = SSPS(SSPSConfig(name="ssps", start_epoch=1, clusters=4), method)
    out, given = forward(over), recall(32)
    step = over.step(out, batch_of(), given)
    keys = [
        torch.stack([given.rows[i, cut].detach() if FOUND[i] else own[i] for i in range(6)])
        for own, cut in ((out["key"], slice(0, 16)), (out["other_key"], slice(16, 32)))
    ]
    losses = [
        infonce(query, key, queue.rows, filled=queue.filled, temperature=0.2)
        for query, key, queue in zip(
            (out["query"], out["other_query"]), keys, (method.queue, method.other_queue), strict=True
        )
    ]
    torch.testing.assert_close(step.loss, sum(losses) / 2)
    assert step.remember is not None and step.remember.positives is not None
    assert torch.equal(step.remember.positives, torch.cat([out["key"], out["other_key"]], dim=1))
    over.after_step(0.1)
    kept = keys if enqueue == "recalled" else [out["key"], out["other_key"]]
    assert torch.equal(method.queue.rows[9:15], kept[0])
    assert torch.equal(method.other_queue.rows[7:13], kept[1])


@pytest.mark.parametrize("enqueue", ["own", "recalled"])
def test_keys_of_the_own_and_of_the_sampled_utterance_are_no_negatives(enqueue: str) -> None:
    """The queue holds keys of utterances 0, 1, 2 and 7; 7 was sampled for the utterance 2, 1 for the utterance 3."""
    method = moco(negatives="others", enqueue=enqueue)
    assert method.ids is not None
    with_queue(method, 4)
    method.ids.push(torch.tensor([[0], [1], [2], [7]]))
    over = SSPS(SSPSConfig(name="ssps", start_epoch=1, clusters=4), method)
    given = Recall(recall().rows, FOUND, torch.tensor([5, -1, 7, 1, -1, -1]))
    out = forward(over)
    step = over.step(out, batch_of(), given)
    apart = torch.ones(6, 20, dtype=torch.bool)
    apart[:, 4:] = False
    apart[[0, 1, 2, 2, 3], [0, 1, 2, 3, 1]] = False
    rows = torch.stack([given.rows[i].detach() if FOUND[i] else out["key"][i] for i in range(6)])
    expected = infonce(out["query"], rows, method.queue.rows.clone(), filled=apart, temperature=0.2)
    torch.testing.assert_close(step.loss, expected)
    over.after_step(0.1)
    new = [5, 1, 7, 1, 4, 5] if enqueue == "recalled" else list(range(6))
    assert method.ids.rows[:, 0].tolist() == [0, 1, 2, 7, *new, *[0] * 10]
    assert int(method.ids.pushed) == int(method.queue.pushed) == 10
    assert "ids.rows" in method.state_dict() and "ids.rows" not in moco().state_dict()


def test_averaged_statistics_of_keys() -> None:
    """EMAN: keys do not depend on their batch, and the statistics follow those of the query encoder."""
    method = with_queue(moco(key_statistics="average", projector={"sizes": [12, 7]})).train()
    assert method.encoder.training and method.projector.training
    assert not method.key_encoder.training and not method.key_projector.training
    views = random_views(("anchor", "positive"))
    keys = method(views)["key"]
    fewer = {name: View(view.wave[:3], view.keys[:3]) for name, view in views.items()}
    torch.testing.assert_close(method(fewer)["key"], keys[:3])
    before = {n: b.clone() for n, b in method.key_encoder.named_buffers() if "running" in n}
    method.after_step(0.5)
    leading = dict(method.encoder.named_buffers())
    moved = dict(method.key_encoder.named_buffers())
    assert before
    for name, old in before.items():
        torch.testing.assert_close(moved[name], 0.9 * old + 0.1 * leading[name])


def test_without_a_memory_the_own_utterance_is_no_negative() -> None:
    method = both_ways(negatives="others")
    assert method.ids is not None and method.other_queue is not None
    method.ids.push(torch.arange(9)[:, None])
    out = forward(method)
    step = method.step(out, batch_of(), None)
    apart = ~torch.eye(6, 20, dtype=torch.bool)
    losses = [
        infonce(out[query], out[key], queue.rows.clone(), filled=apart & queue.filled, temperature=0.2)
        for query, key, queue in (("query", "key", method.queue), ("other_query", "other_key", method.other_queue))
    ]
    torch.testing.assert_close(step.loss, sum(losses) / 2)


def test_on_one_rank_shuffling_changes_nothing() -> None:
    out, plain = forward(moco(shuffle=True)), forward(moco())
    assert all(torch.equal(out[name], plain[name]) for name in plain)
