"""CLAR: NT-Xent of all rows and the cross-entropy of the labelled ones in both views; its cross form; SupCon."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from rayssl.errors import ConfigError
from rayssl.losses.ntxent import ntxent
from rayssl.losses.supcon import supcon
from rayssl.methods.base import Batch, Classes
from rayssl.methods.clar import CLAR, CLARConfig
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
    ],
)
def test_what_cannot_be(encoder: Any, classes: Any, changes: Any, message: str) -> None:
    config = CLARConfig.model_validate({"projector": {"sizes": [12, 8]}, **changes})
    with pytest.raises(ConfigError, match=message):
        config.check(facts(classes=classes, joined="beside" in encoder))
