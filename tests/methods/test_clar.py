"""CLAR: NT-Xent of all rows and the cross-entropy of the labelled ones in both views; its cross form; SupCon."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rayssl.errors import ConfigError
from rayssl.losses.ntxent import ntxent
from rayssl.losses.supcon import supcon
from rayssl.methods.base import Batch, Classes, Views
from rayssl.methods.clar import CLAR, LABELLED, CLARConfig
from rayssl.models.encoder import EncoderConfig, Joined, build_encoder
from tests.runs import facts, random_views, views_config

CLASSES = Classes(("a", "b", "c"), (5, 3, 2))
RESNET: dict[str, Any] = {
    "frontend": {"name": "raw"},
    "backbone": {"name": "resnet1d", "width": 4, "embedding_dim": 10},
}
CROSS: dict[str, Any] = {
    **RESNET,
    "beside": {
        "frontend": {"name": "spectrum", "n_fft": 256, "hop_ms": 8, "bins": 16},
        "backbone": {"name": "resnet2d", "width": 4, "embedding_dim": 6},
    },
}


def clar(encoder: dict[str, Any], classes: Classes | None = CLASSES, **changes: object) -> CLAR:
    torch.manual_seed(0)
    built = build_encoder(EncoderConfig.model_validate(encoder))
    config = CLARConfig.model_validate({"projector": {"sizes": [12, 8]}, **changes})
    return CLAR(config, built, views_config(), classes)


def batch(labels: list[int]) -> Batch:
    size = len(labels)
    unknown = torch.full((size,), -1)
    return Batch(torch.arange(size), unknown, unknown, torch.tensor(labels), 0, unknown)


def test_without_labels_it_is_ntxent() -> None:
    method = clar(RESNET, None)
    assert [(s.name, s.recipe) for s in method.config.segments(views_config(), 0)] == [
        ("anchor", "strong"),
        ("positive", "strong"),
    ]
    out = method(random_views(("anchor", "positive")))
    step = method.step(out, batch([-1] * 6), None)
    a, b = out["anchor"], out["positive"]
    torch.testing.assert_close(step.loss, ntxent(a, b, keys_a=a, keys_b=b, offset=0, temperature=0.5))
    assert method.head_prefix is None and set(step.terms) == {"ntxent"}


@pytest.mark.parametrize("labels", [[0, 1, -1, 2, -1, 0], [-1, -1, -1, -1, -1, 1]])
def test_labelled_rows_count_in_both_views(labels: list[int]) -> None:
    method = clar(RESNET, labels="cross_entropy")
    out = method(random_views(("anchor", "positive")))
    step = method.step(out, batch(labels), None)
    rows = [
        functional.cross_entropy(out[f"{view}_logits"][i][None], torch.tensor([label]))
        for view in ("anchor", "positive")
        for i, label in enumerate(labels)
        if label >= 0
    ]
    a, b = out["anchor"], out["positive"]
    expected = ntxent(a, b, keys_a=a, keys_b=b, offset=0, temperature=0.5) + torch.stack(rows).mean()
    torch.testing.assert_close(step.loss, expected)
    step.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


@pytest.mark.parametrize("encoder", [RESNET, CROSS], ids=["one", "cross"])
def test_the_public_codes_sum_and_head(encoder: dict[str, Any]) -> None:
    """The cross-entropies of both views are added, and the classifier sees the projections."""
    published = {"cross_entropy_over": "sum", "classifier_on": "projection"}
    method = clar(encoder, labels="cross_entropy", cross="beside" in encoder, **published)
    out = method(random_views(("anchor", "positive")))
    labels = torch.tensor([0, 1, -1, 2, -1, 0])
    step = method.step(out, batch(labels.tolist()), None)
    a, b, known = out["anchor"], out["positive"], labels >= 0
    assert method.classifier is not None and method.classifier.linear.in_features == 8
    each = [functional.cross_entropy(method.classifier(view)[known], labels[known]) for view in (a, b)]
    expected = ntxent(a, b, keys_a=a, keys_b=b, offset=0, temperature=0.5) + sum(each)
    torch.testing.assert_close(step.loss, expected)
    assert method.head_prefix is None
    step.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


def test_a_batch_without_any_label_is_contrasted_only() -> None:
    method = clar(RESNET, labels="cross_entropy")
    step = method.step(method(random_views(("anchor", "positive"))), batch([-1] * 6), None)
    assert float(step.terms["supervised"]) == 0 and float(step.terms["train_accuracy"]) == 0
    torch.testing.assert_close(step.loss.detach(), step.terms["ntxent"])


def test_supcon_in_place_of_both() -> None:
    method = clar(RESNET, labels="supcon", temperature=0.2)
    out = method(random_views(("anchor", "positive")))
    labels = torch.tensor([0, 1, -1, 2, -1, 0])
    step = method.step(out, batch(labels.tolist()), None)
    a, b = out["anchor"], out["positive"]
    expected = supcon(a, b, labels, keys_a=a, keys_b=b, key_labels=labels, offset=0, temperature=0.2)
    torch.testing.assert_close(step.loss, expected)
    assert "anchor_logits" not in out


@pytest.mark.parametrize("labels", ["none", "cross_entropy"])
def test_cross_form_contrasts_two_encoders(labels: str) -> None:
    method = clar(CROSS, cross=True, labels=labels)
    views = random_views(("anchor", "positive"))
    method.eval()
    out = method(views)
    assert isinstance(method.encoder, Joined) and method.other_projector is not None
    anchor, positive = (views[name] for name in ("anchor", "positive"))
    first = method.projector(method.encoder.first(anchor.wave, anchor.keys))
    second = method.other_projector(method.encoder.second(positive.wave, positive.keys))
    torch.testing.assert_close(out["anchor"], first)
    torch.testing.assert_close(out["positive"], second)
    assert ("anchor_logits" in out) == (labels == "cross_entropy")
    if labels == "cross_entropy":
        assert out["anchor_logits"].shape == out["positive_logits"].shape == (6, 3)
    method.train()
    method.step(method(views), batch([0, -1, 2, -1, 1, 0]), None).loss.backward()
    assert all(p.grad is not None for p in method.parameters())


def with_stream() -> Views:
    """Six clips of the own stream, and four of the labelled one."""
    return random_views(("anchor", "positive")) | random_views(LABELLED, size=4, seed=1)


def streamed(labels: list[int], unlike: list[int]) -> Batch:
    """A batch whose labelled stream has ``labels``; those of its own rows, ``unlike``, must not matter."""
    return dataclasses.replace(batch(unlike), labelled=batch(labels))


@pytest.mark.parametrize("on", ["encoder", "projection"])
@pytest.mark.parametrize("over", ["mean", "sum"])
@pytest.mark.parametrize("encoder", [RESNET, CROSS], ids=["one", "cross"])
def test_a_labelled_stream_is_classified_and_the_own_one_contrasted(encoder: Any, over: str, on: str) -> None:
    """The value and the gradient of every parameter, against the definition in plain torch, without batch statistics
    (in eval mode), so that each view may go through the encoder alone."""
    how = {"labels": "cross_entropy", "labels_from": "stream", "cross_entropy_over": over, "classifier_on": on}
    method = clar(encoder, cross="beside" in encoder, **how)
    method.eval()
    views, labels = with_stream(), torch.tensor([2, 0, 1, 1])
    step = method.step(method(views), streamed(labels.tolist(), [0, 1, -1, 2, -1, 0]), None)
    step.loss.backward()
    gradients = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    assert set(gradients) == {name for name, _ in method.named_parameters()}
    method.zero_grad()

    def projected(name: str) -> Tensor:
        if not isinstance(method.encoder, Joined):
            return method.projector(method.encoder(views[name].wave, views[name].keys))
        second = name.endswith("positive")
        part = method.encoder.second if second else method.encoder.first
        head = method.other_projector if second else method.projector
        assert head is not None
        return head(part(views[name].wave, views[name].keys))

    def seen(name: str) -> Tensor:
        return projected(name) if on == "projection" else method.encoder(views[name].wave, views[name].keys)

    assert method.classifier is not None
    each = [functional.cross_entropy(method.classifier(seen(name)), labels) for name in LABELLED]
    rows = torch.cat([functional.normalize(projected(name), dim=1) for name in ("anchor", "positive")])
    scores = (rows @ rows.T / 0.5).masked_fill(torch.eye(12, dtype=torch.bool), float("-inf"))
    contrast = functional.cross_entropy(scores, torch.arange(12).roll(6))
    expected = contrast + (sum(each) if over == "sum" else sum(each) / 2)
    torch.testing.assert_close(step.loss, expected)
    expected.backward()
    for name, parameter in method.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("on", ["encoder", "projection"])
@pytest.mark.parametrize("encoder", [RESNET, CROSS], ids=["one", "cross"])
@pytest.mark.parametrize("stream", [False, True], ids=["batch", "stream"])
def test_clips_that_are_surely_of_one_class_do_not_repel(encoder: Any, stream: bool, on: str) -> None:
    """The contrast against the definition, whatever the classifier is sure of."""
    how = {"labels": "cross_entropy", "labels_from": "stream" if stream else "batch", "classifier_on": on}
    method = clar(encoder, cross="beside" in encoder, negatives="other_classes", certainty=0.4, **how)
    method.eval()
    labels = [0, 1, -1, 0, -1, -1]
    given = streamed([2, 0, 1, 1], labels) if stream else batch(labels)
    out = method(with_stream() if stream else random_views(("anchor", "positive")))
    step = method.step(out, given, None)
    assert not out["predicted"].requires_grad and out["predicted"].shape == (6, 3)
    if not stream:
        both = (out["anchor_logits"].softmax(1) + out["positive_logits"].softmax(1)) / 2
        torch.testing.assert_close(out["predicted"], both.detach())
    sure = [
        label if label >= 0 else int(p.argmax()) if p.max() >= 0.4 else None
        for label, p in zip(labels, out["predicted"], strict=True)
    ]
    unlike = torch.tensor([[float(one is None or one != other) for other in sure] for one in sure])
    assert not unlike[0, 3], "two labels are alike"
    rows = torch.cat([functional.normalize(out[name], dim=1) for name in ("anchor", "positive")])
    similar = (rows @ rows.T / 0.5).exp()
    counted = similar * unlike.fill_diagonal_(1).repeat(2, 2) * (1 - torch.eye(12))
    expected = -(similar.diagonal(6).repeat(2) / counted.sum(1)).log().mean()
    torch.testing.assert_close(step.terms["ntxent"], expected.detach())
    method.train()
    views = with_stream() if stream else random_views(("anchor", "positive"))
    method.step(method(views), given, None).loss.backward()
    assert all(q.grad is not None and q.grad.isfinite().all() for q in method.parameters())


def test_which_negatives_are_left_out() -> None:
    """A label is certain, also against the prediction; what is not certain repels all."""
    method = clar(RESNET, labels="cross_entropy", negatives="other_classes")
    predicted = torch.tensor([[0.9, 0.1, 0], [0.7, 0.3, 0], [0.6, 0.4, 0], [0.1, 0.9, 0], [0.1, 0.9, 0], [0, 0.1, 0.9]])
    labels = torch.tensor([-1, -1, -1, -1, 0, -1])
    alike = {0: {0, 1, 4}, 1: {0, 1, 4}, 2: set(), 3: {3}, 4: {0, 1, 4}, 5: {5}}
    expected = torch.tensor([[k in alike[i] for k in range(6)] for i in range(6)])
    assert torch.equal(method._alike(predicted, labels), expected)


def test_two_clips_of_one_label_do_not_repel() -> None:
    method = clar(RESNET, labels="cross_entropy", negatives="other_classes")
    out = method(random_views(("anchor", "positive")))
    step = method.step(out, batch([1] * 6), None)
    assert float(step.terms["ntxent"]) == 0


def test_batch_normalisation_sees_both_streams_together() -> None:
    method = clar(RESNET, labels="cross_entropy", labels_from="stream")
    sizes: list[int] = []
    method.encoder.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    out = method(with_stream())
    assert sizes == [2 * 6 + 2 * 4]
    assert len(out["anchor"]) == len(out["positive"]) == 6
    assert len(out["anchor_logits"]) == len(out["positive_logits"]) == 4


def test_the_segments_of_a_labelled_stream() -> None:
    views = views_config()
    config = CLARConfig.model_validate({"labels": "cross_entropy", "labels_from": "stream"})
    segments = config.labelled_segments(views, 0)
    assert [(s.name, s.recipe, s.seconds) for s in segments] == [(n, "strong", views.segment_s) for n in LABELLED]
    assert config.role == "all", "the own stream passes over all clips, the labelled ones too"
    assert CLARConfig(labels="cross_entropy").labelled_segments(views, 0) == ()


def test_joined_encoders() -> None:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig.model_validate(CROSS)).eval()
    wave = 0.1 * torch.randn(3, 3200)
    assert isinstance(encoder, Joined) and encoder.embedding_dim == 16
    rows = encoder(wave)
    torch.testing.assert_close(rows, torch.cat([encoder.first(wave), encoder.second(wave)], dim=1))
    assert not any(name.startswith(("frontend", "backbone")) for name in encoder.state_dict())


@pytest.mark.parametrize(
    ("encoder", "classes", "changes", "message"),
    [
        (RESNET, CLASSES, {"cross": True}, r"method\.cross: .*encoder\.beside"),
        (CROSS, CLASSES, {}, r"method\.cross: .*encoder\.beside"),
        (RESNET, None, {"labels": "supcon"}, r"method\.labels=supcon: .*labels\.split"),
        (RESNET, Classes(("a",), (1,)), {"labels": "cross_entropy"}, r"two labelled classes"),
        (RESNET, CLASSES, {"negatives": "other_classes"}, r"method\.negatives=other_classes: .*labels=none has none"),
        (RESNET, CLASSES, {"labels_from": "stream"}, r"method\.labels_from=stream: .*labels=none"),
        (
            RESNET,
            CLASSES,
            {"labels": "supcon", "labels_from": "stream"},
            r"method\.labels_from=stream: .*labels=supcon",
        ),
    ],
)
def test_what_cannot_be(encoder: Any, classes: Any, changes: Any, message: str) -> None:
    config = CLARConfig.model_validate({"projector": {"sizes": [12, 8]}, **changes})
    with pytest.raises(ConfigError, match=message):
        config.check(facts(classes=classes, joined="beside" in encoder))
