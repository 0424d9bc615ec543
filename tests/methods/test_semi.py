"""What methods with few labels share: streams, confidence, the mean over ranks, names of a checkpoint's parts."""

from __future__ import annotations

import pytest
import torch

from rayssl.errors import ConfigError
from rayssl.methods.base import Classes
from rayssl.methods.classifier import ClassifierConfig, ClassifierMethod
from rayssl.methods.fixmatch import FixMatch, FixMatchConfig
from rayssl.methods.semi import global_mean, pseudo_counts
from tests.methods.few_labels import batch, build, outputs, same_gradients
from tests.runs import batch_of, facts, random_views, views_config


@pytest.mark.parametrize("threshold", [0.0, 0.6, 1.0])
def test_fixmatch_is_the_papers(threshold: float) -> None:
    """Eq. 3 and 4, row by row; the mean is over all unlabelled rows, confident or not."""
    method = build(FixMatch, FixMatchConfig, threshold=threshold, weight=0.5)
    out, twin, given = outputs(), outputs(), batch()
    assert given.labelled is not None
    supervised = [-twin["labelled"][i].log_softmax(0)[int(c)] for i, c in enumerate(given.labelled.labels)]
    rows = []
    for weak, strong in zip(twin["weak"].detach(), twin["strong"], strict=True):
        p = weak.softmax(0)
        rows.append(-strong.log_softmax(0)[int(p.argmax())] * (float(p.max()) >= threshold))
    step = method.step(out, given, None)
    same_gradients(step.loss, out, torch.stack(supervised).mean() + 0.5 * torch.stack(rows).mean(), twin)
    assert float(step.terms["confident"]) == pytest.approx(
        float((twin["weak"].softmax(1).amax(1) >= threshold).float().mean())
    )


def test_streams() -> None:
    method = build(FixMatch, FixMatchConfig)
    assert method.config.role == "unlabelled"
    assert [(s.name, s.recipe) for s in method.config.segments(views_config(), 0)] == [
        ("weak", "weak"),
        ("strong", "strong"),
    ]
    assert [(s.name, s.recipe) for s in method.config.labelled_segments(views_config(), 0)] == [("labelled", "weak")]
    alone = build(ClassifierMethod, ClassifierConfig, recipe="strong")
    assert alone.config.role == "labelled" and alone.config.labelled_segments(views_config(), 0) == ()
    assert [(s.name, s.recipe) for s in alone.config.segments(views_config(), 0)] == [("labelled", "strong")]


def test_batches_of_two_sizes_share_statistics() -> None:
    method = build(FixMatch, FixMatchConfig)
    many, few = random_views(("weak", "strong"), size=6), random_views(("labelled",), size=3)
    out = method(many | few)
    assert out["labelled"].shape == (3, 4) and out["weak"].shape == (6, 4)
    rows = method.model.encoder(
        torch.cat([few["labelled"].wave, many["weak"].wave, many["strong"].wave]),
        torch.cat([few["labelled"].keys, many["weak"].keys, many["strong"].keys]),
    )
    torch.testing.assert_close(out["weak_rows"], rows[3:9])


@pytest.mark.parametrize(("evaluate", "part"), [("average", "average"), ("online", "model")])
def test_parts_of_a_checkpoint(evaluate: str, part: str) -> None:
    method = build(FixMatch, FixMatchConfig, evaluate=evaluate)
    state = method.state_dict()
    for prefix, module in ((method.encoder_prefix, method.encoder), (method.head_prefix, None)):
        weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        target = module if module is not None else getattr(method, part).classifier
        target.load_state_dict(weights, strict=True)
    assert "log_prior" not in state


def test_pseudo_counts() -> None:
    targets, confident = torch.tensor([0, 1, 1, 2]), torch.tensor([True, False, True, True])
    counts = pseudo_counts(targets, confident, torch.tensor([0, 1, 2, -1]), 4)
    assert {name: value.tolist() for name, value in counts.items()} == {
        "predicted": [1, 2, 1, 0],
        "confident": [1, 1, 1, 0],
        "right": [1, 1, 0, 0],
        "truth": [1, 1, 1, 0],
    }


def test_a_mean_over_nothing_is_zero_with_a_gradient() -> None:
    total = torch.zeros((), requires_grad=True)
    mean = global_mean(total, torch.tensor(0))
    mean.backward()
    assert mean.item() == 0 and total.grad is not None and total.grad.isfinite()


def test_a_split_of_one_class_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"two labelled classes.* labels\.split"):
        FixMatchConfig().check(facts(classes=Classes(("a",), (3,))))


def test_the_classifier_learns_from_labels_alone() -> None:
    method = build(ClassifierMethod, ClassifierConfig)
    given = batch().labelled
    assert given is not None
    out = method(random_views(("labelled",), size=5))
    step = method.step(out, given, None)
    torch.testing.assert_close(step.loss, torch.nn.functional.cross_entropy(out["labelled"], given.labels))
    assert batch_of().labelled is None
