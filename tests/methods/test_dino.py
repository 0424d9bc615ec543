"""DINO: its crops, who sees which, what the centre and the teacher do after a step, and SSPS over it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from rayssl.losses.dino import dino, entropy, mean_logits
from rayssl.methods.base import Recall, View, Views
from rayssl.methods.dino import DINO, DINOConfig
from rayssl.methods.ssps import SSPS, SSPSConfig
from rayssl.models.encoder import Encoder, EncoderConfig, build_encoder
from rayssl.models.norm import BatchNorm1d
from tests.runs import ENCODER, batch_of, random_views, views_config

HEAD: dict[str, Any] = {"hidden": [12], "bottleneck": 6, "prototypes": 10}
GLOBALS, LOCALS = ("global1", "global2"), ("local1", "local2", "local3")
FOUND = [True, False, True, True, False, False]


def method(**changes: object) -> DINO:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig.model_validate(ENCODER))
    config = {"locals": 3, "local_s": 0.1, "head": HEAD, "teacher_momentum": 0.9, **changes}
    return DINO(DINOConfig.model_validate(config), encoder, views_config())


def crops(size: int = 6, seed: int = 0) -> Views:
    views = random_views((*GLOBALS, *LOCALS), size, seed)
    return {n: View(v.wave[:, :1600], v.keys) if n in LOCALS else v for n, v in views.items()}


def trained(model: DINO, steps: int = 2, lr: float = 0.1) -> DINO:
    """After some steps of SGD, so that teacher, student and prototypes differ."""
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    for step in range(steps):
        optimiser.zero_grad()
        model.step(model(crops(seed=step)), batch_of(), None).loss.backward()
        optimiser.step()
        model.after_step(0.1)
    return model


def test_segments() -> None:
    segments = method().config.segments(views_config(), 0)
    assert [(s.name, s.seconds) for s in segments] == [
        *((name, 0.2) for name in GLOBALS),
        *((name, 0.1) for name in LOCALS),
    ]
    assert all(s.recipe == "distort" and not s.disjoint for s in segments)
    assert [s.name for s in method(locals=0).config.segments(views_config(), 3)] == list(GLOBALS)


def test_outputs() -> None:
    out = method()(crops())
    assert {name: tuple(value.shape) for name, value in out.items()} == {
        **dict.fromkeys((*GLOBALS, *LOCALS), (6, 10)),
        **dict.fromkeys(("teacher1", "teacher2"), (6, 6)),
    }
    assert {name for name, value in out.items() if value.requires_grad} == {*GLOBALS, *LOCALS}


@contextmanager
def _passes(encoder: Encoder) -> Iterator[list[tuple[int, ...]]]:
    seen: list[tuple[int, ...]] = []
    hook = encoder.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    yield seen
    hook.remove()


def test_one_pass_for_each_length_and_only_global_crops_for_the_teacher() -> None:
    model = method()
    with _passes(model.student.encoder) as student, _passes(model.teacher.encoder) as teacher:
        model(crops())
    assert student == [(12, 3200), (18, 1600)] and teacher == [(12, 3200)]
    long = method(local_s=0.2)
    with _passes(long.student.encoder) as student:
        long(random_views((*GLOBALS, *LOCALS)))
    assert student == [(30, 3200)]


def test_each_crop_keeps_its_name() -> None:
    """In eval mode, where rows do not depend on each other, each output is that of its own crop alone."""
    model, views = method().eval(), crops()
    out = model(views)
    for name in (*GLOBALS, *LOCALS):
        embedded = model.student.encoder(views[name].wave, views[name].keys)
        torch.testing.assert_close(out[name], model.student.head(embedded), rtol=1e-4, atol=1e-5)
    for name, crop in zip(("teacher1", "teacher2"), GLOBALS, strict=True):
        embedded = model.teacher.encoder(views[crop].wave, views[crop].keys)
        torch.testing.assert_close(out[name], model.teacher.head.bottleneck(embedded), rtol=1e-4, atol=1e-5)


def test_loss_is_eq_2_under_the_centre_before_and_then_moves_it() -> None:
    model = method(student_temperature=0.2, teacher_temperature=0.07, centre_momentum=0.8)
    model.centre.copy_(torch.linspace(-0.1, 0.1, 10))
    before = model.centre.clone()
    out = model(crops())
    step = model.step(out, batch_of(), None)
    teachers = [model.teacher.head.prototypes(out[name]) for name in ("teacher1", "teacher2")]
    students = [out[name] for name in (*GLOBALS, *LOCALS)]
    expected = dino(students, teachers, centre=before, student_temperature=0.2, teacher_temperature=0.07)
    torch.testing.assert_close(step.loss, expected, rtol=0, atol=0)
    torch.testing.assert_close(model.centre, 0.8 * before + 0.2 * mean_logits(teachers))
    doubt = entropy(teachers, centre=before, temperature=0.07)
    assert torch.equal(step.terms["teacher_entropy"], doubt) and torch.equal(step.terms["dino"], expected.detach())
    assert step.remember is None and not any(term.requires_grad for term in step.terms.values())


def test_losses_see_no_bfloat16() -> None:
    """Outputs divided by temperatures of a few hundredths are float32 even where the encoder's layers are not."""
    with torch.autocast("cpu", torch.bfloat16):
        out = method()(crops())
    assert {value.dtype for value in out.values()} == {torch.float32}


def test_every_weight_of_the_student_has_a_gradient_and_none_of_the_teacher() -> None:
    model = method()
    model.step(model(crops()), batch_of(), None).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.student.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in model.teacher.parameters())


def test_the_teacher_starts_as_the_student_and_follows_it() -> None:
    model = method()
    torch.testing.assert_close(model.teacher.state_dict(), model.student.state_dict(), rtol=0, atol=0)
    before = {name: p.clone() for name, p in model.teacher.named_parameters()}
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(1)
    model.after_step(0.5)  # halfway from 0.9 to 1
    for name, parameter in model.teacher.named_parameters():
        torch.testing.assert_close(parameter, before[name] + 0.05)
    before = {name: p.clone() for name, p in model.teacher.named_parameters()}
    model.after_step(1.0)
    assert all(torch.equal(p, before[name]) for name, p in model.teacher.named_parameters())


def test_the_teacher_normalises_by_the_batch_and_keeps_statistics_of_its_own() -> None:
    """Of global crops alone; the student's take in the local ones."""
    model = method()
    model(crops())
    pairs = [
        (teacher, student)
        for teacher, student in zip(model.teacher.modules(), model.student.modules(), strict=True)
        if isinstance(teacher, BatchNorm1d)
    ]
    assert pairs and {(int(t.num_batches_tracked), int(s.num_batches_tracked)) for t, s in pairs} == {(1, 2)}
    assert not any(torch.equal(t.running_mean, s.running_mean) for t, s in pairs)
    assert model.teacher.training


def test_last_layer_is_frozen_in_the_first_epochs() -> None:
    """Not even weight decay or momentum moves it."""
    model = method(freeze_epochs=2)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, momentum=0.9, weight_decay=0.1)
    prototypes = model.student.head.prototypes.weight
    moved = []
    for epoch in range(3):
        before, other = prototypes.clone(), model.student.head.layers[0].weight.clone()
        optimiser.zero_grad()
        model.step(model(crops()), batch_of(epoch=epoch), None).loss.backward()
        model.before_update(epoch)
        optimiser.step()
        moved.append(not torch.equal(prototypes, before))
        assert not torch.equal(model.student.head.layers[0].weight, other)
    assert moved == [False, False, True]


@pytest.mark.parametrize("evaluate", ["teacher", "student"])
def test_which_encoder_is_evaluated(evaluate: str) -> None:
    model = trained(method(evaluate=evaluate))
    assert model.encoder is getattr(model, evaluate).encoder and model.reference_encoder is model.teacher.encoder
    prefix = model.encoder_prefix
    weights = {n[len(prefix) :]: v for n, v in model.state_dict().items() if n.startswith(prefix)}
    fresh = build_encoder(EncoderConfig.model_validate(ENCODER))
    fresh.load_state_dict(weights, strict=True)
    wave = crops()["global1"].wave
    assert torch.equal(fresh.eval()(wave), model.encoder.eval()(wave))
    other = "student" if evaluate == "teacher" else "teacher"
    assert not torch.equal(fresh(wave), getattr(model, other).encoder.eval()(wave))


def test_centre_is_saved_with_the_weights() -> None:
    model = trained(method())
    assert {"centre", "teacher.head.prototypes.weight"} <= model.state_dict().keys() and model.centre.any()
    again = method()
    again.load_state_dict(model.state_dict(), strict=True)
    out, other = model(crops()), again(crops())
    assert torch.equal(model.step(out, batch_of(), None).loss, again.step(other, batch_of(), None).loss)


# SSPS


def ssps(**changes: object) -> SSPS:
    base = method(**changes)
    config = SSPSConfig(name="ssps", over=base.config, start_epoch=1, clusters=4)
    return SSPS(config, base)


def base_of(model: SSPS) -> DINO:
    assert isinstance(model.base, DINO)
    return model.base


def recall(rows: Tensor, found: list[bool] | None = None) -> Recall:
    return Recall(rows, torch.tensor(found or [True] * len(rows)))


@pytest.mark.parametrize("store", ["bottleneck", "output"])
def test_width_of_what_is_stored(store: str) -> None:
    model = method(store=store)
    stored = model.positives(model(crops()))
    assert stored.shape == (6, model.config.positive_dim(model.encoder.embedding_dim)) and not stored.requires_grad
    if store == "bottleneck":
        torch.testing.assert_close(stored.norm(dim=1), torch.ones(6))


@pytest.mark.parametrize("store", ["bottleneck", "output"])
def test_both_teacher_crops_take_the_recalled_row(store: str) -> None:
    """And only where one was found; the student's crops stay its own."""
    model = ssps(store=store)
    out = model(crops())
    rows = base_of(model).positives(base_of(model)(crops(seed=5)))
    replaced = base_of(model).with_positives(out, recall(rows, FOUND))
    for i, found in enumerate(FOUND):
        for name in ("teacher1", "teacher2"):
            assert torch.equal(replaced[name][i], rows[i] if found else out[name][i])
    assert not torch.equal(out["teacher1"], out["teacher2"])
    assert all(replaced[name] is out[name] for name in (*GLOBALS, *LOCALS))


@pytest.mark.parametrize("store", ["bottleneck", "output"])
def test_ssps_loss_and_centre_are_of_the_replaced_rows(store: str) -> None:
    model = ssps(store=store)
    base = base_of(model)
    out = model(crops() | random_views(("reference",)))
    rows = base.positives(base(crops(seed=5)))
    logits = rows if store == "output" else base.teacher.head.prototypes(rows)
    own = [out[n] if store == "output" else base.teacher.head.prototypes(out[n]) for n in ("teacher1", "teacher2")]
    teachers = [torch.where(torch.tensor(FOUND)[:, None], logits, crop) for crop in own]
    centre = base.centre.clone()
    step = model.step(out, batch_of(), recall(rows, FOUND))
    students = [out[name] for name in (*GLOBALS, *LOCALS)]
    expected = dino(students, teachers, centre=centre, student_temperature=0.1, teacher_temperature=0.04)
    torch.testing.assert_close(step.loss, expected)
    torch.testing.assert_close(base.centre, 0.1 * mean_logits(teachers))
    assert not torch.allclose(base.centre, 0.1 * mean_logits(own))
    assert step.remember is not None and torch.equal(step.remember.positives, out["teacher1"])  # its own, not the rows


def test_stores_agree_until_the_last_layer_moves() -> None:
    """A recalled bottleneck is read by today's prototypes, recalled logits are those of the day they were stored.

    Two models that differ in ``store`` alone remember one batch, and give it back at another: at once, after steps in
    which the teacher's prototypes stood still, and after steps in which they moved.
    """
    models = [method(store="bottleneck"), method(store="output")]
    stored = [model.positives(model(crops(seed=7))) for model in models]

    def losses() -> list[Tensor]:
        given = zip(models, [model(crops(seed=8)) for model in models], stored, strict=True)
        return [m.step(m.with_positives(out, recall(rows)), batch_of(), None).loss for m, out, rows in given]

    torch.testing.assert_close(*losses())
    for model in models:  # everything else of the teacher may change: its rows are all replaced
        with torch.no_grad():
            for name, parameter in model.teacher.named_parameters():
                parameter.add_(0.1 if "prototypes" not in name else 0.0)
    torch.testing.assert_close(*losses())
    for model in models:
        generator = torch.Generator().manual_seed(4)
        weight = model.teacher.head.prototypes.weight
        with torch.no_grad():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    today, then = losses()
    assert (today - then).abs() > 0.01


def test_reference_is_the_teachers() -> None:
    model = ssps()
    trained(base_of(model))
    views = random_views(("reference",))
    reference = model(crops() | views)["reference"]
    encoder = base_of(model).teacher.encoder.eval()
    expected = torch.nn.functional.normalize(encoder(views["reference"].wave, None), dim=1)
    torch.testing.assert_close(reference, expected, rtol=0, atol=1e-6)
    assert (
        model.encoder_prefix == "base.teacher.encoder."
        and model.config.segments(views_config(), 0)[-1].name == "reference"
    )


@pytest.mark.parametrize("store", ["bottleneck", "output"])
def test_what_fills_the_memory_needs_one_crop(store: str) -> None:
    """In eval mode the teacher's rows of the first global crop are the same with and without the others."""
    model = trained(method(store=store)).eval()
    views = crops()
    needed = {segment.name for segment in model.config.positive_segments(views_config(), 0)}
    assert (
        needed == {"global1"}
        and model.config.positive_segments(views_config(), 0) == model.config.segments(views_config(), 0)[:1]
    )
    with torch.no_grad():
        alone = model.positives_of({"global1": views["global1"]})
        torch.testing.assert_close(alone, model.positives(model(views)), rtol=1e-5, atol=1e-6)
