"""Fine-tuning begins at the linear probe, is taken only if it is better, and trains a copy that repeats exactly."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import Tensor, nn

from rayssl.evaluation import finetune as module
from rayssl.evaluation.embeddings import embed_utterances
from rayssl.evaluation.finetune import finetune, predict
from rayssl.evaluation.probes import fit_linear_probe, linear_probe


class Small(nn.Module):
    """BatchNorm and dropout, so that modes, statistics and torch's own draws matter."""

    embedding_dim = 6

    def __init__(self, rate: float = 0.2) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv = nn.Conv1d(1, 12, 15, stride=5)
            self.norm = nn.BatchNorm1d(12)
            self.drop = nn.Dropout(rate)
            self.out = nn.Linear(12, 6)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, wave: Tensor, keys: Tensor | None) -> Tensor:
        assert keys is None and wave.abs().max() <= 1
        self.shapes.append(tuple(wave.shape))
        x = self.norm(self.conv(wave[:, None])).relu().mean(2)
        return self.out(self.drop(x))


def tones(count: int, classes: int = 3, seed: int = 0, apart: float = 1.0) -> tuple[list[np.ndarray], np.ndarray]:
    """Utterances of 300 to 500 samples whose pitch tells the class; the smaller ``apart``, the harder to hear."""
    draw = np.random.default_rng([seed])
    labels = np.arange(count) % classes
    lengths = draw.integers(300, 501, count)
    phases = draw.uniform(0, 6, count)
    waves = [
        (9000 * np.sin(0.15 * (1 + apart * label) * np.arange(length) + phase)).astype(np.int16)
        for label, length, phase in zip(labels, lengths, phases, strict=True)
    ]
    return waves, labels


def settings(**changes: Any) -> dict[str, Any]:
    usual = {"classes": 3, "epochs": 2, "steps": 1, "batch": 8, "lr": 1e-3, "head_lr": 1e-2, "segment": 200}
    return usual | {"seed": 1, "device": "cpu"} | changes


def tuned_of(*arguments: Any, **changes: Any) -> tuple[nn.Module, nn.Linear]:
    """`finetune`, of whose choice this test says nothing: as if all fine-tuning were better."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_judged", lambda *_: (1.0, 0.0, 0.5))
        found = finetune(*arguments, **settings(**changes))
    assert not found.probe_kept
    return found.encoder, found.head


def weights(*modules: nn.Module) -> dict[str, Tensor]:
    return {f"{i}.{name}": value.clone() for i, m in enumerate(modules) for name, value in m.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_classes_that_can_be_heard_are_learned_and_whole_utterances_predicted() -> None:
    waves, labels = tones(48, apart=0.05)
    found = finetune(Small(), waves, labels, **settings(epochs=30, lr=1e-2))
    assert found.before is not None and found.after is not None and found.after < found.before
    assert not found.probe_kept and "so the encoder is fine-tuned" in found.told
    fresh, truth = tones(30, seed=5, apart=0.05)
    shapes: list[tuple[int, ...]] = found.encoder.shapes  # type: ignore[assignment]
    classes = predict(found.encoder, found.head, fresh, "cpu")
    assert classes.dtype == np.int64 and (classes == truth).mean() > 0.9
    assert predict(found.encoder, found.head, [], "cpu").shape == (0,)
    assert (predict(found.encoder, found.head, fresh[::-1], "cpu", batch=1)[::-1] == classes).all()
    assert set(shapes[-30:]) == {(1, len(wave)) for wave in fresh}


@pytest.mark.parametrize("classes", [2, 3])
def test_before_the_first_step_it_predicts_what_the_probe_predicts(classes: int) -> None:
    """Of whole utterances, also where rates are so small that every step is done but nothing moves."""
    waves, labels = tones(8 * classes, classes)
    fresh, _ = tones(60, 5, seed=5)
    encoder = Small()
    rows, asked = (embed_utterances(encoder, each, "cpu", normalise=False) for each in (waves, fresh))
    expected = linear_probe(rows, labels, asked, seed=1)
    assert len(set(expected.tolist())) == classes
    head = module._folded(fit_linear_probe(rows, labels, seed=1), classes, torch.device("cpu"))
    assert (predict(encoder, head, fresh, "cpu") == expected).all()
    still, same = tuned_of(encoder, waves, labels, classes=classes, lr=1e-30, head_lr=1e-30)
    assert (predict(still, same, fresh, "cpu") == expected).all()
    torch.testing.assert_close(same.weight, head.weight)
    torch.testing.assert_close(same.bias, head.bias)


def test_the_loss_is_the_probes_own_so_that_its_head_is_already_at_the_minimum() -> None:
    """With crops that are whole utterances and no dropout, the probe's weights have a gradient of about 0."""
    waves, labels = tones(30)
    waves = [wave[:300] for wave in waves]
    encoder = Small(rate=0.0)
    rows = embed_utterances(encoder, waves, "cpu", normalise=False)
    probe = fit_linear_probe(rows, labels, seed=1, l2=(0.1,))
    seen: list[float] = []

    class Watched(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            seen.append(max(float(p.grad.abs().max()) for p in self.param_groups[1]["params"]))
            return super().step(closure)

    how = module._Training(1, 1, 30, 1e-3, 1e-3, 300, 1, torch.device("cpu"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", Watched)
        for given in (probe, dataclasses.replace(probe, l2=0.0)):
            module._trained(encoder, given, module._Material(waves, rows, labels), how)
    assert seen[0] < 1e-3 and seen[1] > 10 * seen[0], "with and without the penalty"


def test_worse_or_hardly_better_than_the_probe_is_not_taken() -> None:
    waves, labels = tones(48)
    worse = finetune(Small(), waves, np.random.default_rng(0).permutation(labels), **settings(epochs=30, lr=3e-2))
    assert worse.probe_kept and worse.before is not None and "so the linear probe is kept" in worse.told
    encoder = Small()
    unmoved = finetune(encoder, waves, labels, **settings(lr=1e-30, head_lr=1e-30))
    assert unmoved.probe_kept, "no gain at all"
    assert equal(weights(unmoved.encoder), weights(encoder)), "the encoder is as it was"


def test_one_clip_a_class_cannot_tell_so_the_probe_is_kept() -> None:
    waves, labels = tones(3)
    found = finetune(Small(), waves, labels, **settings())
    assert found.probe_kept and found.before is None and found.after is None and "is kept" in found.told
    expected = linear_probe(*_rows(waves, labels), seed=1)
    assert (predict(found.encoder, found.head, tones(30, seed=5)[0], "cpu") == expected).all()
    # one class alone has a second clip: the error of a single difference is unknown
    assert finetune(Small(), *(each[:4] for each in tones(6)), **settings()).probe_kept


def _rows(waves: list[np.ndarray], labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    fresh = tones(30, seed=5)[0]
    rows, asked = (embed_utterances(Small(), each, "cpu", normalise=False) for each in (waves, fresh))
    return rows, labels, asked


def test_the_difference_that_is_judged_weighs_classes_alike() -> None:
    """Against the definition, clip by clip, of a probe and of one with other weights; each at its best temperature."""
    waves, labels = tones(9)
    kept = np.array([0, 1, 2, 3, 6])  # three clips of class 0, one of each other
    encoder = Small()
    rows = embed_utterances(encoder, waves, "cpu", normalise=False)
    draw = np.random.default_rng(0)
    fitted = fit_linear_probe(rows, labels, seed=1)
    probe, other = (dataclasses.replace(fitted, weight=draw.normal(0, scale, (3, 6))) for scale in (0.3, 3.0))
    held = module._Material([waves[k] for k in kept], rows[kept], labels[kept])
    how = module._Training(1, 1, 8, 1e-3, 1e-3, 200, 1, torch.device("cpu"))
    before, after, error = module._judged((encoder, other), probe, held, how)
    weight = np.array([1 / 9, 1 / 3, 1 / 3, 1 / 9, 1 / 9])
    each = []
    for judge in (probe, other):
        scores = (rows[kept] - judge.mean) / judge.deviation @ judge.weight.T + judge.bias
        tried = [-log_softmax(scores / t, axis=1)[np.arange(5), labels[kept]] for t in 2.0 ** np.arange(-3, 6.5, 0.5)]
        each.append(min(tried, key=lambda entropy: weight @ entropy))
    np.testing.assert_allclose([before, after], [weight @ each[0], weight @ each[1]], rtol=1e-4)
    fall = each[0] - each[1]
    spread = (weight**2 * (fall - weight @ fall) ** 2).sum()
    np.testing.assert_allclose(error, np.sqrt(spread * 5 / 4), rtol=1e-4)
    sure = dataclasses.replace(probe, weight=4 * probe.weight, bias=4 * probe.bias)
    same = module._judged((encoder, sure), probe, held, how)
    np.testing.assert_allclose(same, (before, before, 0), rtol=1e-4, atol=1e-6, err_msg="how sure it is does not count")


def test_classes_without_a_clip_are_never_predicted() -> None:
    waves, labels = tones(24)
    encoder, head = tuned_of(Small(), waves, 1 + 2 * labels, classes=7)
    assert head.out_features == 7
    assert set(predict(encoder, head, tones(60, 5, seed=5)[0], "cpu").tolist()) <= {1, 3, 5}
    torch.testing.assert_close(head.weight[[0, 2, 4, 6]], torch.zeros(4, 6))


def test_the_callers_encoder_is_never_changed() -> None:
    encoder = Small().train().requires_grad_(False)
    encoder.drop.eval()
    before = weights(encoder)
    tuned, _ = tuned_of(encoder, *tones(12))
    assert equal(weights(encoder), before)
    assert encoder.training and not encoder.drop.training and encoder.shapes == []
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not tuned.training and not equal(weights(tuned), before)
    moved = {name for name, value in tuned.named_parameters() if not torch.equal(value, before[f"0.{name}"])}
    assert moved == {name for name, _ in tuned.named_parameters()}, "parts frozen by the caller are trained too"


def test_batch_normalisation_keeps_the_statistics_of_the_pretraining() -> None:
    encoder = Small()
    encoder.norm.running_mean = torch.linspace(-0.1, 0.1, 12)
    tuned, _ = tuned_of(encoder, *tones(12))
    for name, value in encoder.norm.named_buffers():
        assert torch.equal(value, dict(tuned.norm.named_buffers())[name])  # type: ignore[union-attr, operator]
    assert not torch.equal(tuned.norm.weight, encoder.norm.weight)  # type: ignore[union-attr, arg-type]


def test_dropout_is_on_while_batch_normalisation_is_not() -> None:
    encoder = module._training_mode(Small())
    assert encoder.training and encoder.drop.training and not encoder.norm.training  # type: ignore[union-attr]


def test_it_repeats_exactly_whatever_was_drawn_before_and_draws_nothing_from_the_caller() -> None:
    waves, labels = tones(20)
    once = weights(*tuned_of(Small(), waves, labels))
    torch.rand(7)
    state = torch.get_rng_state()
    with torch.no_grad():
        assert equal(once, weights(*tuned_of(Small(), waves, labels)))
    assert torch.equal(state, torch.get_rng_state())
    assert not equal(once, weights(*tuned_of(Small(), waves, labels, seed=2)))


def test_every_utterance_is_seen_once_an_epoch_in_a_new_order_and_crop() -> None:
    waves = [np.full(900, row, np.int16) + 1000 * np.arange(900, dtype=np.int16) % 7 for row in range(10)]
    epochs = []
    for epoch in range(2):
        steps = list(module._batches(waves, 4, 300, seed=3, epoch=epoch))
        batches = [parts[0] for parts in steps]
        assert all(len(parts) == 1 for parts in steps), "one pass, because no utterance is shorter than a crop"
        rows = np.concatenate([rows for rows, _ in batches])
        assert [len(rows) for rows, _ in batches] == [4, 4, 4] and sorted(rows[:10]) == list(range(10))
        assert rows[10:].tolist() == rows[:2].tolist(), "the last batch is filled up from the beginning"
        for chosen, pcm in batches:
            assert pcm.shape == (4, 300) and pcm.dtype == np.int16
            for row, crop in zip(chosen, pcm, strict=True):
                assert any((waves[row][s : s + 300] == crop).all() for s in range(601))
        epochs.append(
            (rows.tolist(), {row: crop.tobytes() for r, p in batches for row, crop in zip(r, p, strict=True)})
        )
    assert epochs[0][0] != epochs[1][0]
    assert any(epochs[0][1][row] != epochs[1][1][row] for row in range(10))


def test_short_utterances_keep_their_length_up_to_an_eighth_of_a_segment() -> None:
    waves = [np.arange(length, dtype=np.int16) for length in (1000, 800, 799, 130, 30, 5000)]
    (parts,) = module._batches(waves, 64, 800, seed=3, epoch=0)
    lengths = {int(row): pcm.shape[1] for rows, pcm in parts for row in rows}
    assert lengths == {0: 800, 1: 800, 2: 700, 3: 100, 4: 100, 5: 800}
    assert [pcm.shape[1] for _, pcm in parts] == [800, 700, 100], "the longest first"
    short = next(pcm[rows.tolist().index(4)] for rows, pcm in parts if 4 in rows)
    assert set(short.tolist()) == set(range(30)), "one shorter than an eighth is repeated"


def test_passes_are_weighed_by_their_clips_whatever_their_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of several lengths has the gradient of the mean over its clips: here of equal clips cut alike or apart."""
    waves, labels = tones(12)
    waves = [wave[:200] for wave in waves]
    together = weights(*tuned_of(Small(rate=0.0), waves, labels, batch=12))
    whole = module._batches

    def apart(*arguments: Any) -> Any:
        for parts in whole(*arguments):
            yield [(rows[k : k + 1], pcm[k : k + 1]) for rows, pcm in parts for k in range(len(rows))]

    monkeypatch.setattr(module, "_batches", apart)
    found = weights(*tuned_of(Small(rate=0.0), waves, labels, batch=12))
    for name, value in together.items():
        torch.testing.assert_close(value, found[name], rtol=1e-3, atol=2e-4, msg=name)


def test_passes_are_added_until_there_are_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """And rates fall to zero by a cosine over all of them."""
    rates: list[list[float]] = []

    class Watched(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            rates.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "AdamW", Watched)
    for given, made in (({"epochs": 3, "steps": 2}, 9), ({"epochs": 1, "steps": 10}, 12)):
        rates.clear()
        tuned_of(Small(), *tones(12), **given, batch=4)
        last = rates[-made:]  # of all clips; the trial with nine of twelve had as many passes
        expected = 0.5 * (1 + np.cos(np.pi * np.arange(made) / made))
        np.testing.assert_allclose(last, np.outer(expected, [1e-3, 1e-2]), rtol=1e-6)


def test_silence_is_trained_on_and_a_diverging_loss_is_told() -> None:
    waves, labels = tones(6)
    waves[0] = np.zeros(300, np.int16)
    waves[1] = np.full(300, -32768, np.int16)
    tuned_of(Small(), waves, labels, epochs=1)
    with pytest.raises(ValueError, match="loss is not finite in epoch 0; try a lower lr or head_lr"):
        finetune(Small(), waves, labels, **settings(epochs=1, batch=2, lr=1e30, head_lr=1e30))


@pytest.mark.parametrize(
    ("labels", "changes", "message"),
    [
        ([0, 1, 2], {}, "got 4 utterances and 3 labels"),
        ([0, 1, 2, 3], {}, r"1 labels lie outside 0..2, first 3 of utterance 3"),
        ([0, -1, 2, 0], {}, r"1 labels lie outside 0..2, first -1 of utterance 1"),
        ([2, 2, 2, 2], {}, "at least two classes, but all utterances are of class 2"),
        ([0, 1, 2, 0], {"epochs": 0}, "epochs must be at least 1, got 0"),
        ([0, 1, 2, 0], {"steps": 0}, "steps must be at least 1, got 0"),
        ([0, 1, 2, 0], {"batch": 0}, "batch must be at least 1"),
        ([0, 1, 2, 0], {"segment": 0}, "segment must be at least 1"),
    ],
)
def test_what_cannot_be_trained_is_refused(labels: list[int], changes: dict[str, Any], message: str) -> None:
    waves, _ = tones(4)
    with pytest.raises(ValueError, match=message):
        finetune(Small(), waves, labels, **settings(**changes))


def test_unusable_audio_is_named() -> None:
    with pytest.raises(ValueError, match="needs labelled utterances, got 0 utterances and 0 labels"):
        finetune(Small(), [], [], **settings())
    with pytest.raises(ValueError, match="utterance 1: expected int16"):
        finetune(Small(), [*tones(1)[0], np.zeros(0, np.int16)], [0, 1], **settings())
