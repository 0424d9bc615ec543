"""Fine-tuning trains a copy, repeats exactly, and sees every utterance once an epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rayssl.evaluation import finetune as module
from rayssl.evaluation.finetune import finetune, predict


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


def tones(count: int, classes: int = 3, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Utterances of 300 to 500 samples whose pitch tells the class."""
    draw = np.random.default_rng([seed])
    labels = np.arange(count) % classes
    lengths = draw.integers(300, 501, count)
    phases = draw.uniform(0, 6, count)
    waves = [
        (9000 * np.sin(0.15 * (1 + label) * np.arange(length) + phase)).astype(np.int16)
        for label, length, phase in zip(labels, lengths, phases, strict=True)
    ]
    return waves, labels


def settings(**changes: Any) -> dict[str, Any]:
    usual = {"classes": 3, "epochs": 2, "batch": 8, "lr": 1e-3, "head_lr": 1e-2, "segment": 200}
    return usual | {"seed": 1, "device": "cpu"} | changes


def weights(*modules: nn.Module) -> dict[str, Tensor]:
    return {f"{i}.{name}": value.clone() for i, m in enumerate(modules) for name, value in m.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_classes_that_can_be_heard_are_learned_and_whole_utterances_predicted() -> None:
    waves, labels = tones(48)
    tuned, head = finetune(Small(), waves, labels, **settings(epochs=12, lr=1e-2))
    fresh, truth = tones(30, seed=5)
    found = predict(tuned, head, fresh, "cpu")
    assert found.dtype == np.int64 and (found == truth).mean() > 0.9
    assert predict(tuned, head, [], "cpu").shape == (0,)
    assert (predict(tuned, head, fresh[::-1], "cpu", batch=1)[::-1] == found).all()
    assert set(tuned.shapes[-30:]) == {(1, len(wave)) for wave in fresh}


def test_the_callers_encoder_is_never_changed() -> None:
    encoder = Small().train().requires_grad_(False)
    encoder.norm.eval()
    before = weights(encoder)
    tuned, _ = finetune(encoder, *tones(12), **settings())
    assert equal(weights(encoder), before)
    assert encoder.training and not encoder.norm.training and encoder.shapes == []
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not tuned.training and not equal(weights(tuned), before)
    moved = {name for name, value in tuned.named_parameters() if not torch.equal(value, before[f"0.{name}"])}
    assert moved == {name for name, _ in tuned.named_parameters()}, "parts frozen by the caller are trained too"


def test_it_repeats_exactly_whatever_was_drawn_before_and_draws_nothing_from_the_caller() -> None:
    waves, labels = tones(20)
    once = weights(*finetune(Small(), waves, labels, **settings()))
    torch.rand(7)
    state = torch.get_rng_state()
    with torch.no_grad():
        assert equal(once, weights(*finetune(Small(), waves, labels, **settings())))
    assert torch.equal(state, torch.get_rng_state())
    assert not equal(once, weights(*finetune(Small(), waves, labels, **settings(seed=2))))


def test_every_utterance_is_seen_once_an_epoch_in_a_new_order_and_crop() -> None:
    waves = [np.full(900, row, np.int16) + 1000 * np.arange(900, dtype=np.int16) % 7 for row in range(10)]
    epochs = []
    for epoch in range(2):
        batches = list(module._batches(waves, 4, 300, seed=3, epoch=epoch))
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


def test_batches_are_no_larger_than_the_set_and_short_utterances_fill_a_segment() -> None:
    encoder = Small()
    seen: list[tuple[int, ...]] = []
    encoder.register_forward_pre_hook(lambda _, arguments: seen.append(tuple(arguments[0].shape)))
    finetune(encoder, *tones(3), **settings(epochs=1, batch=64, segment=1000))
    assert seen == [(3, 1000)]


def test_first_step_from_a_zero_head_is_adamws_closed_form() -> None:
    """One step of AdamW moves every weight of the head by its rate, against the sign of the gradient; the encoder
    gets no gradient through a zero head, and its weights only decay."""
    waves, labels = tones(9)
    encoder = Small(rate=0.0)
    tuned, head = finetune(encoder, waves, labels, **settings(epochs=1, batch=9, lr=0.5, head_lr=0.25))
    torch.testing.assert_close(head.weight.abs(), torch.full((3, 6), 0.25), rtol=1e-4, atol=0)
    for (name, after), before in zip(tuned.named_parameters(), encoder.parameters(), strict=True):
        torch.testing.assert_close(after, before * (1 - 0.5 * 0.01), msg=name)


def test_rates_fall_to_zero_by_a_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[list[float]] = []

    class Watched(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            rates.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "AdamW", Watched)
    finetune(Small(), *tones(12), **settings(epochs=3, batch=4))
    expected = 0.5 * (1 + np.cos(np.pi * np.arange(9) / 9))
    np.testing.assert_allclose(rates, np.outer(expected, [1e-3, 1e-2]), rtol=1e-6)


def test_silence_is_trained_on_and_a_diverging_loss_is_told() -> None:
    waves, labels = tones(6)
    waves[0] = np.zeros(300, np.int16)
    waves[1] = np.full(300, -32768, np.int16)
    finetune(Small(), waves, labels, **settings(epochs=1))
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
