"""Computes the figures of a validation: the ranks embed the held-out utterances together, rank 0 computes.

A copy of the encoder is used, in eval mode and full float32. So neither the training's weights, modes and buffers nor
its random states are touched, and a copy is never compiled: utterances have many lengths.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayssl import collectives
from rayssl.data import shards, trials
from rayssl.data.shards import Manifest
from rayssl.errors import CorpusError
from rayssl.evaluation import pseudo_trials
from rayssl.evaluation.embeddings import embed_utterances
from rayssl.evaluation.rank import effective_rank
from rayssl.evaluation.scoring import score_trials
from rayssl.evaluation.verification import verification_result
from rayssl.experiment import clips
from rayssl.experiment.config import Experiment
from rayssl.experiment.job import Job
from rayssl.methods.base import Method
from rayssl.models.encoder import Encoder
from rayssl.training.validate import KINDS, ValidateConfig
from rayssl.views.distort import Distort

T = TypeVar("T")
Ints = NDArray[np.int64]
Rows = NDArray[np.float32]
Head = tuple[Tensor, Tensor]  # weight [C, D] and bias [C] of a classifier

_KEPT_BYTES = 256 << 20  # samples of a corpus that a rank keeps from one validation to the next


class RunJudge:
    """Judges the models of one run; see `rayssl.training.state.Judge`.

    Args:
        settings: what is computed. Its paths are absolute.
        experiment: the run's settings.
        device: where the models are.
    """

    def __init__(self, settings: ValidateConfig, experiment: Experiment, device: torch.device) -> None:
        self._settings, self._experiment, self._device = settings, experiment, device
        self._kinds = {KINDS[name].of for name in settings.figures}
        self._kept: dict[str, list[NDArray[np.int16]]] = {}
        self._manifests: dict[str, Manifest] = {}
        self._distort: Distort | None = None
        self._listed: tuple[list[str], list[trials.Trial]] | None = None
        self._chosen: tuple[list[str], Ints, Ints, Ints, Ints] | None = None

    def figures(self, method: Method, known: Mapping[str, float]) -> dict[str, float]:
        """See `rayssl.training.state.Judge.figures`."""
        encoder = cast(Encoder, copy.deepcopy(method.get_submodule(method.encoder_prefix.rstrip("."))))
        collectives.share_buffers(encoder)  # the checkpoint has those of rank 0
        return self.of_encoder(encoder, _head(method), known)

    def of_encoder(self, encoder: Encoder, head: Head | None, known: Mapping[str, float]) -> dict[str, float]:
        """The figures of ``encoder`` with the classifier ``head``, if there is one. Every rank must call this."""
        found: dict[str, float] = {}
        with torch.random.fork_rng([self._device] if self._device.type == "cuda" else []), _known_kernels():
            if "trials" in self._kinds:
                found |= self._of_trials(encoder)
            if "labels" in self._kinds:
                found |= self._of_labels(encoder, head)
            if "audio" in self._kinds:
                found |= self._without_labels(encoder)
        of_clusters = [name for name, kind in KINDS.items() if kind.of == "clusters"]
        found |= collectives.on_rank_0(lambda: {name: known[name] for name in of_clusters if name in known})
        return {name: found[name] for name in self._settings.figures if name in found}

    def _of_trials(self, encoder: Encoder) -> dict[str, float]:
        uri, where = self._corpus(), self._settings.trials
        assert where is not None
        if self._listed is None:
            self._listed = collectives.on_rank_0(lambda: _trials(where, uri, self._manifest(uri)))
        names, listed = self._listed
        place = {name: k for k, name in enumerate(names)}
        used = sorted({place[name] for trial in listed for name in (trial.enrol, trial.test)})
        rows = self._embed(encoder, "trials", uri, np.array(used, np.int64))

        def computed() -> dict[str, float]:
            scores = score_trials(listed, [names[k] for k in used], rows)
            result = verification_result(scores, [trial.label for trial in listed])
            return {name: getattr(result, name) for name, kind in KINDS.items() if kind.of == "trials"}

        return collectives.on_rank_0(computed)

    def _of_labels(self, encoder: Encoder, head: Head | None) -> dict[str, float]:
        from rayssl.evaluation import probes  # imports scikit-learn, which trials do not need
        from rayssl.evaluation.imbalance import classification_result

        settings, experiment, uri = self._settings, self._experiment, self._corpus()
        train = experiment.corpus.uri
        chosen = settings.probe if settings.probe != "auto" else "knn" if head is None else "model"
        if self._chosen is None:
            self._chosen = collectives.on_rank_0(lambda: self._classes(uri))
        names, tested, truth, ids, classes = self._chosen
        rows = self._embed(encoder, "tested", uri, tested)
        seen = rows[:0] if chosen == "model" else self._embed(encoder, "labelled", train, ids)

        def computed() -> dict[str, float]:
            if chosen == "model":
                predicted = _classified(rows, head)
            elif chosen == "knn":
                predicted = probes.knn(seen, classes, rows)
            else:
                predicted = probes.linear_probe(seen, classes, rows, seed=experiment.seed)
            result = classification_result(truth, predicted, names, resamples=0)
            return {name: getattr(result, name) for name, kind in KINDS.items() if kind.of == "labels"}

        return collectives.on_rank_0(computed)

    def _classes(self, uri: str) -> tuple[list[str], Ints, Ints, Ints, Ints]:
        """Names of the classes; ids and classes of the held-out clips, and of the labelled ones to learn from."""
        from rayssl.evaluation.probes import label_shares

        settings, experiment = self._settings, self._experiment
        names, ids, classes = clips.labelled_clips(experiment, self._manifest(experiment.corpus.uri))
        truth = clips.class_of(names, uri, self._manifest(uri))
        tested = np.flatnonzero(truth >= 0)
        if not len(tested):
            raise CorpusError(f"training.validate.corpus: {uri} has none of the labels {', '.join(names[:5])}")
        tested = _spread(tested, settings.utterances)
        if len(ids) > settings.utterances:
            share = settings.utterances / len(ids)
            some = label_shares(classes, (share,), seed=experiment.seed)[share]
            ids, classes = ids[some], classes[some]
        return names, tested, truth[tested], ids, classes

    def _without_labels(self, encoder: Encoder) -> dict[str, float]:
        uri = self._corpus()
        manifest = self._manifest(uri)
        ids = _spread(np.arange(manifest.rows), self._settings.utterances)
        wanted = self._settings.figures
        found: dict[str, float] = {}
        if "effective_rank" in wanted:
            rows = self._embed(encoder, "audio", uri, ids)
            found |= collectives.on_rank_0(lambda: {"effective_rank": effective_rank(rows)})
        if "pseudo_eer" in wanted:
            both = self._together(lambda: self._pairs(encoder, uri, self._share(ids)))
            first, second = (np.concatenate([part[side] for part in both]) for side in (0, 1))
            found |= collectives.on_rank_0(lambda: {"pseudo_eer": _pseudo_eer(first, second, uri)})
        return found

    def _pairs(self, encoder: Encoder, uri: str, ids: Ints) -> tuple[Rows, Rows]:
        """The embeddings ``[n, D]`` of two distorted segments of this rank's utterances ``ids``."""
        rate = self._manifest(uri).rate
        if self._distort is None:
            self._distort = pseudo_trials.distortion(rate).to(self._device)
        longest = round(self._settings.segment_s * rate)
        used, *sides = pseudo_trials.segments(self._waves("audio", uri, ids), longest, encoder.minimum_samples)
        made = [
            pseudo_trials.distorted(waves, ids[used], side, self._distort, self._settings.batch)
            for side, waves in enumerate(sides)
        ]
        first, second = (self._embedded(encoder, waves) for waves in made)
        return first, second

    def _embed(self, encoder: Encoder, what: str, uri: str, ids: Ints) -> Rows:
        """The embeddings ``[n, D]`` of the utterances ``ids``, on every rank: each rank embeds a part of them."""
        return np.concatenate(self._together(lambda: self._embedded(encoder, self._waves(what, uri, self._share(ids)))))

    def _embedded(self, encoder: Encoder, waves: list[NDArray[np.int16]]) -> Rows:
        least = encoder.minimum_samples
        short = sum(len(wave) < least for wave in waves)
        if short:
            raise CorpusError(
                f"training.validate: {short} utterances are shorter than {least} samples, which the encoder needs; "
                "prepare the corpus again with a larger min_s"
            )
        return embed_utterances(encoder, waves, self._device, self._settings.batch, normalise=False)

    def _waves(self, what: str, uri: str, ids: Ints) -> list[NDArray[np.int16]]:
        """The samples of this rank's utterances ``ids``, which are the same for ``what`` each time."""
        found = self._kept.get(what)
        if found is None:
            found = clips.waves(uri, self._manifest(uri), ids)
            if sum(wave.nbytes for wave in found) <= _KEPT_BYTES:
                self._kept[what] = found
        return found

    def _corpus(self) -> str:
        return self._settings.corpus or self._experiment.corpus.uri

    def _manifest(self, uri: str) -> Manifest:
        if uri not in self._manifests:
            self._manifests[uri] = shards.read_manifest(uri)
        return self._manifests[uri]

    @staticmethod
    def _share(ids: Ints) -> Ints:
        """This rank's part of ``ids``: neighbours in the corpus, so that few row groups are read."""
        return np.array_split(ids, collectives.world())[collectives.rank()]

    @staticmethod
    def _together(work: Callable[[], T]) -> list[T]:
        """What ``work`` returns on each rank, on every rank. An error of one of them is raised on all."""
        if collectives.world() == 1:
            return [work()]
        mine: tuple[T | None, ValueError | OSError | None]
        try:
            mine = work(), None
        except (ValueError, OSError) as error:
            mine = None, error
        answers = collectives.gather_objects(mine)
        for _, failed in answers:
            if failed is not None:
                raise failed
        return [answer for answer, _ in answers]


@contextmanager
def _known_kernels() -> Iterator[None]:
    """A context without cuDNN's trials of kernels: utterances have too many lengths to try all of them for each."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def judge_of(job: Job, device: torch.device) -> RunJudge | None:
    """The judge of the job's ``training.validate``; None without that key."""
    settings = job.experiment.training.validate
    return None if settings is None else RunJudge(settings, job.experiment, device)


def _trials(where: str, uri: str, manifest: Manifest) -> tuple[list[str], list[trials.Trial]]:
    """The names of all utterances of the corpus, and the trials."""
    listed = trials.read_for(where, uri)
    return [str(name) for name in clips.column(uri, manifest, "name")], listed


def _head(method: Method) -> Head | None:
    if method.head_prefix is None:
        return None
    state = method.state_dict()
    weight, bias = (state.get(f"{method.head_prefix}linear.{name}") for name in ("weight", "bias"))
    return None if weight is None or bias is None else (weight.cpu(), bias.cpu())


def _classified(rows: Rows, head: Head | None) -> Ints:
    if head is None:
        raise CorpusError("training.validate.probe=model: the method has no classifier of its own; take knn or linear")
    logits = torch.from_numpy(rows).double() @ head[0].double().T + head[1].double()
    return cast(Ints, logits.argmax(1).numpy())


def _pseudo_eer(first: Rows, second: Rows, uri: str) -> float:
    if len(first) < 2:
        raise CorpusError(
            f"training.validate: pseudo_eer needs two utterances of {uri} with two segments that the encoder takes, "
            f"there is {len(first)}; take effective_rank, or name a corpus of longer utterances"
        )
    return pseudo_trials.pseudo_eer(first, second)


def _spread(ids: Ints, most: int) -> Ints:
    """At most ``most`` of ``ids``, evenly spread."""
    if len(ids) <= most:
        return np.asarray(ids, np.int64)
    return np.asarray(ids[(np.arange(most) * len(ids)) // most], np.int64)
