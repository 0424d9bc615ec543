"""Sleep staging from sound: sequences of epochs, few labelled nights and many unlabelled ones (SleepFormer, 2023).

The total loss is a sum of terms, each with a weight; a term with weight 0 is not computed::

    L = L_sup + noise L_NC + fixmatch L_FM + sequential L_SC + ccssl L_CCSSL + ssc L_SSC

- ``L_sup``: cross-entropy over the scored epochs of labelled sequences (`rayssl.losses.staging`).
- ``L_NC``: the same prediction with and without the noise of a home (`rayssl.losses.noise_consistency`).
- ``L_FM``: FixMatch; the strong view learns the confident predictions of the weak one.
- ``L_SC``: sequential consistency of the two views of a sequence (`rayssl.losses.sequential`).
- ``L_CCSSL``: contrast by pseudo-labels among unlabelled epochs (`rayssl.losses.ccssl`).
- ``L_SSC``: labelled epochs attract the unlabelled ones of their stage (`rayssl.losses.ssc`). A stage that is rare is
  absent from many batches; with ``ssc.anchors: memory`` the anchors come from queues that hold each stage.

The paper is SleepFormer's: L_sup, L_SC and L_SSC. Its weights were never published; the others are baselines.

Only epochs that count are in a term: those at a position that the network scores (`NightEncoder.scored`), and not those
that repeat the last epoch of a short night. ``L_sup`` and the anchors need a stage, too.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from rayssl import collectives, storage
from rayssl.batches.selection import Role
from rayssl.errors import ConfigError
from rayssl.losses.ccssl import ccssl
from rayssl.losses.noise_consistency import noise_consistency
from rayssl.losses.pseudolabel import consistency
from rayssl.losses.sequential import sequential_consistency
from rayssl.losses.ssc import ssc
from rayssl.losses.staging import sequence_cross_entropy, stage_weights
from rayssl.memory.classes.settings import ClassSettings
from rayssl.methods.base import (
    Batch,
    ClassRecall,
    ClassRemember,
    JobFacts,
    Outputs,
    Recalled,
    Step,
    View,
    Views,
)
from rayssl.methods.semi import Labelled, LabelledMethodConfig, global_mean, pseudo_counts
from rayssl.methods.sleep_terms import (
    CcsslTermConfig,
    FixMatchTermConfig,
    NoiseTermConfig,
    SequentialTermConfig,
    SscTermConfig,
)
from rayssl.models.encoder import Encoder, NightEncoder
from rayssl.views.recipes import Segment, ViewsConfig


class SleepConfig(LabelledMethodConfig):
    """Sleep staging. A term whose weight is 0 costs nothing; without unlabelled terms there is no unlabelled stream.

    - ``stage_power``: a stage of n labelled epochs counts n ** -stage_power in ``L_sup``; 0 counts all alike.
      The inherited ``adjust`` shifts the logits in ``L_sup`` by the frequencies of the stages.
    - ``labelled_recipe``: how labelled sequences are augmented. With ``none`` the network draws no dropout and no masks
      for them either, and batch normalisation sees them apart from the other views.
    - ``features``: which features the contrastive terms and L_SC use: those of the sequence ``head``, or those of the
      ``backbone``, which sees each epoch alone.
    - ``pseudo``: whose predictions of the weak view are the pseudo-labels: those of the ``online`` or of the
      ``average`` model.
    - ``start_from``: a run of this method with the same encoder, or one of its checkpoints, that gives the initial
      weights: HomeSleepNet began with those of supervised training.
    - ``noise``, ``fixmatch``, ``sequential``, ``ccssl``, ``ssc``: the terms.
    """

    name: Literal["sleep"] = "sleep"
    """Sleep staging from sound (SleepFormer, 2023): sequences of epochs, few labelled nights and many unlabelled ones.
    """
    stage_power: float = Field(default=0.0, ge=0)
    """How much rare stages count more: a stage of n labelled epochs counts n ** -stage_power in the supervised loss. 0
    counts all alike, 1 makes all stages equal.
    """
    labelled_recipe: Literal["none", "weak", "strong"] = "weak"
    """How labelled sequences are augmented. With ``none`` the network draws no dropout and no masks for them either,
    and batch normalisation sees them apart from the other views.
    """
    features: Literal["head", "backbone"] = "head"
    """Which features the contrastive and sequential terms use: those of the sequence ``head``, or those of the
    ``backbone``, which sees each epoch of sleep alone.
    """
    pseudo: Literal["online", "average"] = "online"
    """Whose predictions of the weak view are the pseudo-labels: those of the ``online`` or of the ``average`` model."""
    start_from: str | None = None
    """Folder of a run of this method with the same encoder, or one of its checkpoints, that gives the initial weights,
    for example supervised training first; null begins with random weights.
    """
    noise: NoiseTermConfig = NoiseTermConfig()
    """The term L_NC: the same prediction with and without the noise of a home."""
    fixmatch: FixMatchTermConfig = FixMatchTermConfig()
    """The term L_FM: the strong view learns the confident predictions of the weak view."""
    sequential: SequentialTermConfig = SequentialTermConfig()
    """The term L_SC: two views of a sequence agree on which epochs are alike."""
    ccssl: CcsslTermConfig = CcsslTermConfig()
    """The term L_CCSSL: contrast by pseudo-labels among unlabelled epochs."""
    ssc: SscTermConfig = SscTermConfig()
    """The term L_SSC: labelled epochs attract the unlabelled ones of their stage."""

    sequences: ClassVar[bool] = True

    @property
    def starts_from(self) -> str | None:
        """``start_from``."""
        return self.start_from

    def located(self) -> SleepConfig:
        """A copy with the absolute path of ``start_from``."""
        start = None if self.start_from is None else storage.absolute(self.start_from)
        located: SleepConfig = super().located().model_copy(update={"start_from": start})
        return located

    @property
    def uses_unlabelled(self) -> bool:
        """Whether any term learns from unlabelled sequences."""
        terms = (self.fixmatch, self.sequential, self.ccssl, self.ssc)
        return any(term.weight > 0 for term in terms) or (self.noise.weight > 0 and self.noise.nights != "labelled")

    @property
    def noisy_labelled(self) -> bool:
        """Whether labelled sequences have a noisy view too."""
        return self.noise.weight > 0 and self.noise.nights != "unlabelled"

    @property
    def remembers_anchors(self) -> bool:
        """Whether anchors come from the memory."""
        return self.ssc.weight > 0 and self.ssc.anchors == "memory"

    @property
    def role(self) -> Role:  # type: ignore[override]
        """The method's own stream is the unlabelled one, if there is one."""
        return "unlabelled" if self.uses_unlabelled else "labelled"

    def segments(self, views: ViewsConfig, epoch: int) -> tuple[Segment, ...]:
        """The weak and the strong view of unlabelled sequences; without unlabelled terms those of labelled ones."""
        if not self.uses_unlabelled:
            return self._of_labelled()
        return Segment(name="weak", seconds=30, recipe="weak"), Segment(name="strong", seconds=30, recipe="strong")

    def labelled_segments(self, views: ViewsConfig, epoch: int) -> tuple[Segment, ...]:
        """The views of labelled sequences, if they are a second stream."""
        return self._of_labelled() if self.uses_unlabelled else ()

    def memory(self, facts: JobFacts) -> ClassSettings | None:
        """Queues of labelled features, if they are the anchors."""
        if not self.remembers_anchors:
            return None
        assert facts.classes is not None
        queue, dim = self.ssc.queue, facts.embedding_dim
        return ClassSettings(classes=len(facts.classes.names), dim=dim, length=queue, anchors=queue)

    def check(self, facts: JobFacts) -> None:
        """Raises `ConfigError` if the terms contradict each other, or fewer than two stages have labelled epochs."""
        super().check(facts)
        assert facts.classes is not None
        seen = [name for name, count in zip(facts.classes.names, facts.classes.labelled, strict=True) if count]
        if len(seen) < 2:
            raise ConfigError(
                "labels.split: the labelled nights have epochs of "
                f"{seen[0] + ' only' if seen else 'no stage'}, and two stages are needed; choose other nights in "
                "splits.<name>.nights.labelled"
            )
        if self.remembers_anchors and self.features == "backbone":
            raise ConfigError(
                "method.ssc.anchors=memory keeps features of the head; set method.features=head or "
                "method.ssc.anchors=batch"
            )

    @classmethod
    def trial_settings(cls) -> dict[str, Any]:
        """All terms, with temperatures and thresholds for a network that has learnt nothing yet."""
        return {
            "stage_power": 0.5,
            "ema": 0.8,
            "noise": {"weight": 1.0, "nights": "both"},
            "fixmatch": {"weight": 1.0, "threshold": 0.25},
            "sequential": {"weight": 1.0},
            "ccssl": {"weight": 0.5, "temperature": 0.5},
            "ssc": {"weight": 0.5, "temperature": 0.5, "anchors": "memory", "queue": 4},
        }

    def for_trial(self) -> SleepConfig:
        """A copy with queues that are full after a few steps."""
        return self.model_copy(update={"ssc": self.ssc.model_copy(update={"queue": min(4, self.ssc.queue)})})

    def _of_labelled(self) -> tuple[Segment, ...]:
        plain = Segment(name="labelled", seconds=30, recipe=self.labelled_recipe)
        noisy = Segment(name="labelled_noisy", seconds=30, recipe="strong")
        return (plain, noisy) if self.noisy_labelled else (plain,)


class Sleep(Labelled):
    """A stage for every epoch of a sequence. The encoder is a `NightEncoder`; the classifier sees its head's output."""

    Config = SleepConfig
    config: SleepConfig

    weights: Tensor | None

    def __init__(self, config: SleepConfig, encoder: Encoder, classes: object) -> None:
        if not isinstance(encoder, NightEncoder):
            raise ConfigError(
                "encoder.frontend.name: method 'sleep' needs an encoder of nights; choose nightmel with sleepformer or "
                "soundsleepnet"
            )
        super().__init__(config, encoder, classes)  # type: ignore[arg-type]
        self.scored = encoder.scored
        weights = stage_weights(torch.tensor(self.classes.labelled), power=config.stage_power)
        # not saved: it follows from the split
        self.register_buffer("weights", weights if config.stage_power else None, persistent=False)

    def forward(self, views: Views) -> Outputs:
        """Logits ``[B, N, C]`` of each view by its name, and its features ``[B, N, D]`` as ``<name>_rows``."""
        night = self.model.encoder
        assert isinstance(night, NightEncoder)
        out: Outputs = {}
        for names in _alike(views):
            keys = [view.keys for name in names if (view := views[name]).keys is not None]
            z, own = night.sequence(torch.cat([views[name].wave for name in names]), torch.cat(keys) if keys else None)
            logits = self.model.classifier(z)
            rows = z if self.config.features == "head" else own
            sizes = [len(views[name].wave) for name in names]
            for name, part, row in zip(names, logits.split(sizes), rows.split(sizes), strict=True):
                out |= {name: part, f"{name}_rows": row}
        if "weak" in views and self.config.pseudo == "average":
            with torch.no_grad():
                average = self.average.encoder
                assert isinstance(average, NightEncoder)
                out["weak_average"] = self.average.classifier(average.sequence(views["weak"].wave, None)[0])
        return out

    def consult(self, out: Outputs, batch: Batch) -> ClassRemember:
        """The features of labelled epochs; epochs without a stage have the label -1, which the memory leaves out."""
        labelled = batch if batch.labelled is None else batch.labelled
        labels = self._labels(out["labelled"], labelled)
        return ClassRemember(out["labelled_rows"].detach().flatten(0, 1), labels.flatten())

    def step(self, out: Outputs, batch: Batch, recall: Recalled | None) -> Step:
        """The sum of the terms."""
        self._began(batch)
        config = self.config
        labelled = batch if batch.labelled is None else batch.labelled
        logits = out["labelled"]
        labels, used = self._labels(logits, labelled), self._used(logits, labelled)
        adjusted = logits + config.adjust * self.log_prior if config.adjust else logits
        loss = global_mean(*sequence_cross_entropy(adjusted, labels, weights=self.weights))
        right = ((logits.detach().argmax(-1) == labels) & (labels >= 0)).sum()
        accuracy = right / (labels >= 0).sum().clamp_min(1)
        terms = {"supervised": loss.detach(), "train_accuracy": accuracy}
        noisy: list[tuple[Tensor, Tensor]] = []
        if config.noisy_labelled:
            noisy.append(self._noise(logits, out["labelled_noisy"], used))
        counts = None
        if config.uses_unlabelled:
            extra, found, counts = self._unlabelled(out, batch, labelled, recall)
            loss, terms = loss + extra, terms | found
            if config.noise.weight and config.noise.nights != "labelled":
                noisy.append(self._noise(out["weak"], out["strong"], self._used(out["weak"], batch)))
        if noisy:
            total, count = (torch.stack(parts).sum() for parts in zip(*noisy, strict=True))
            term = global_mean(total, count)
            loss, terms = loss + config.noise.weight * term, terms | {"noise": term.detach()}
        return Step(loss, terms, counts=counts)

    def _unlabelled(
        self, out: Outputs, batch: Batch, labelled: Batch, recall: Recalled | None
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """The weighted sum of the terms over unlabelled sequences, the terms, and the counts of the pseudo-labels."""
        config = self.config
        weak, strong, used = out["weak"], out["strong"], self._used(out["weak"], batch)
        flat, count = used.flatten(), used.sum()
        pseudo = (out["weak_average"] if config.pseudo == "average" else weak).detach().softmax(dim=-1).flatten(0, 1)
        confidence, targets = pseudo.max(dim=1)
        confident = (confidence >= config.fixmatch.threshold) & flat
        terms: dict[str, Tensor] = {"confident": confident.sum() / count.clamp_min(1)}
        loss = weak.new_zeros(())
        if config.fixmatch.weight:
            # `consistency` divides by all epochs, and this term only by those that count
            total = consistency(strong.flatten(0, 1), targets, confident) * len(targets)
            terms["fixmatch"] = global_mean(total, count)
            loss = loss + config.fixmatch.weight * terms["fixmatch"]
        rows = out["weak_rows"], out["strong_rows"]
        if config.sequential.weight:
            how = config.sequential
            terms["sequential"] = sequential_consistency(
                *rows, w_min=how.w_min, distance=how.distance, detach_b=how.detach_b, real=used
            )
            loss = loss + how.weight * terms["sequential"]
        a, b = (row.flatten(0, 1) for row in rows)
        if config.ccssl.weight:
            terms["ccssl"] = self._ccssl(a, b, pseudo, flat)
            loss = loss + config.ccssl.weight * terms["ccssl"]
        if config.ssc.weight:
            terms["ssc"] = self._ssc(a, b, pseudo, flat, out, labelled, recall)
            loss = loss + config.ssc.weight * terms["ssc"]
        counts = pseudo_counts(targets, confident, batch.truth, len(self.classes.names), flat)
        return loss, {name: term.detach() for name, term in terms.items()}, counts

    def _noise(self, clean: Tensor, noisy: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
        how = self.config.noise
        return noise_consistency(clean, noisy, distance=how.distance, detach_clean=how.detach_clean, valid=used)

    def _ccssl(self, a: Tensor, b: Tensor, pseudo: Tensor, used: Tensor) -> Tensor:
        how = self.config.ccssl
        return ccssl(
            a,
            b,
            pseudo,
            keys_a=collectives.gather(a),
            keys_b=collectives.gather(b),
            key_pseudo=collectives.gather(pseudo),
            offset=collectives.rank() * len(a),
            temperature=how.temperature,
            push=how.push,
            valid=used,
            key_valid=collectives.gather(used),
        )

    def _ssc(
        self, a: Tensor, b: Tensor, pseudo: Tensor, used: Tensor, out: Outputs, labelled: Batch, recall: Recalled | None
    ) -> Tensor:
        """``L_SSC``. The candidates are those of all ranks; anchors are this rank's, or the memory's on every rank."""
        how = self.config.ssc
        both = collectives.gather(torch.stack([a, b], dim=1)).flatten(0, 1)
        predicted, valid = (collectives.gather(each).repeat_interleave(2, dim=0) for each in (pseudo, used))
        if how.anchors == "memory":
            assert isinstance(recall, ClassRecall)
            anchors, most = recall.rows.flatten(0, 1), recall.rows.shape[1]
            places = torch.arange(most, device=anchors.device)
            classes = torch.arange(len(recall.rows), device=anchors.device).repeat_interleave(most)
            weights = (places < recall.filled[:, None]).flatten().to(anchors.dtype)
        else:
            anchors, weights = out["labelled_rows"].flatten(0, 1), None
            classes = self._labels(out["labelled"], labelled).flatten()
        total, count = ssc(
            anchors,
            classes,
            both,
            predicted,
            temperature=how.temperature,
            threshold=how.threshold,
            normaliser=how.normaliser,
            weights=weights,
            valid=valid,
        )
        return global_mean(total, count)

    def _labels(self, logits: Tensor, batch: Batch) -> Tensor:
        """The stages ``[B, N]``; -1 for epochs without one, and for those that do not count."""
        return batch.labels.view(logits.shape[:2]).masked_fill(~self._used(logits, batch), -1)

    def _used(self, logits: Tensor, batch: Batch) -> Tensor:
        """Bool ``[B, N]``: the epochs that count, see the file's docstring."""
        place = torch.arange(logits.shape[1], device=logits.device)
        used: Tensor = _real(logits, batch) & (place >= self.scored.start) & (place < self.scored.stop)
        return used


def _real(logits: Tensor, batch: Batch) -> Tensor:
    """Bool ``[B, N]``: false where the last epoch of a short night is repeated."""
    ids = batch.ids.view(logits.shape[:2])
    again = ids[:, 1:] == ids[:, :-1]
    return torch.cat([torch.ones_like(again[:, :1]), ~again], dim=1)


def _alike(views: Views) -> list[list[str]]:
    """The names of views that go through the network together: all with keys, and all without.

    Batch normalisation then uses the statistics of labelled and unlabelled sequences together.
    """
    groups: dict[bool, list[str]] = {}
    for name, view in views.items():
        groups.setdefault(_keyed(view), []).append(name)
    return list(groups.values())


def _keyed(view: View) -> bool:
    return view.keys is not None
