"""A run is judged while it trains: the training is not changed by it, and nothing is lost if a process dies in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rayssl.errors import ConfigError
from rayssl.experiment import local
from rayssl.experiment.config import Experiment
from rayssl.experiment.job import resolve
from rayssl.experiment.judging import RunJudge
from rayssl.methods.base import Method
from rayssl.progress import Line, Screen
from rayssl.runtime.evaluation import evaluate as evaluation
from rayssl.training import checkpoint, validating
from rayssl.training.checkpoint import Best
from rayssl.training.validate import KINDS, ValidateConfig
from tests import runs

ALL = "[effective_rank, objective, stability, empty_clusters, cluster_largest]"
WITHOUT_LABELS = ("training.validate.metric=pseudo_eer", f"training.validate.also={ALL}")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "train"
    runs.write_corpus(folder, splits=runs.SPLITS)
    lines = [f"{int(a % 4 == b % 4)} utt{a:03d} utt{b:03d}\n" for a in range(0, 30, 3) for b in range(a + 1, a + 5)]
    (folder.parent / "trials.txt").write_text("".join(lines))
    return folder


def same(one: Any, other: Any) -> bool:
    """Whether all tensors of two trees have the same bits."""
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


def meta(run: Experiment, which: str = "last") -> checkpoint.Meta:
    return checkpoint.read_meta(checkpoint.locate(run.run, which, run.best))


def test_the_training_is_not_changed_to_the_bit(tmp_path: Path, corpus: Path) -> None:
    plain, judged = (
        runs.experiment(tmp_path / name, corpus, *more) for name, more in (("a", ()), ("b", WITHOUT_LABELS))
    )
    one, other = runs.fit(plain), runs.fit(judged)
    assert same(runs.content(one), runs.content(other))
    assert runs.records(plain.run, "step") == runs.records(judged.run, "step")
    states = [checkpoint.load(checkpoint.locate(run.run, "last")).state["rng"] for run in (plain, judged)]
    assert same(*states)
    lines = runs.records(judged.run, "validate")
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert lines[0].keys() == {"kind", "step", "epoch", "pseudo_eer", "effective_rank"}  # SSPS begins in epoch 2
    assert lines[2].keys() == lines[0].keys() | {"objective", "stability", "empty_clusters", "cluster_largest"}
    assert meta(judged).metrics["validate/pseudo_eer"] == lines[-1]["pseudo_eer"]
    assert meta(judged).metrics["loss"] == meta(plain).metrics["loss"]


@pytest.mark.parametrize("where", ["figures", "record"])
@pytest.mark.parametrize("at", [2, 3])
def test_a_death_in_a_validation_loses_nothing(
    tmp_path: Path, corpus: Path, where: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, run = (runs.experiment(tmp_path / name, corpus, *WITHOUT_LABELS) for name in "ab")
    whole = runs.fit(undisturbed)
    owner, name = (RunJudge, "figures") if where == "figures" else (checkpoint, "amend")
    real, calls = getattr(owner, name), []

    def dying(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            raise runs.Interrupted
        return real(*given)

    monkeypatch.setattr(owner, name, dying)
    with pytest.raises(runs.Interrupted):
        runs.fit(run)
    monkeypatch.undo()
    assert meta(run).epoch == at and "validate/pseudo_eer" not in meta(run).metrics
    if at < 3:
        assert same(runs.content(runs.fit(run)), runs.content(whole))
    else:
        metrics = local.train(resolve(run), device="cpu", screen=Said())
        assert metrics == meta(run).metrics
    left, right = ({line["epoch"]: line for line in runs.records(each.run, "validate")} for each in (undisturbed, run))
    assert left == right
    assert meta(undisturbed).validated == meta(run).validated
    assert checkpoint.steps(undisturbed.run) == checkpoint.steps(run.run)


class Said(Screen):
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines = list[str]()

    def show(self, event: Any) -> None:
        if isinstance(event, Line):
            self.lines.append(event.text)


class Planned:
    """Gives the values of a plan, one for each validation."""

    def __init__(self, values: list[float]) -> None:
        self._values = values

    def figures(self, method: Method, known: Mapping[str, float]) -> dict[str, float]:
        return {"eer": self._values.pop(0)}


def planned(run: Experiment, values: list[float]) -> Any:
    loop = runs.build(run)
    loop.state.judge = Planned(values)
    loop.fit(runs.batches(run, loop))
    assert loop.state.log is not None
    loop.state.log.close()
    return loop


def watched(tmp_path: Path, corpus: Path, *more: str, **method: Any) -> Experiment:
    held_out = (f"training.validate.corpus={corpus}", f"training.validate.trials={corpus.parent / 'trials.txt'}")
    given = ("training.validate.metric=eer", *held_out, "training.checkpoints.keep=1", *more)
    return runs.experiment(tmp_path / "run", corpus, *given, method={"name": "simclr"} | method)


def test_the_best_checkpoint_follows_it_and_patience_ends_the_training(tmp_path: Path, corpus: Path) -> None:
    run = watched(tmp_path, corpus, "training.epochs=6", "training.validate.patience=2")
    loop = planned(run, [0.3, 0.2, 0.25, 0.2, 0.1, 0.1])
    assert loop.cursor.epoch == 4 and not loop.stopped
    assert meta(run).validated == {"epoch": 4, "best": 0.2, "best_epoch": 2, "waited": 2}
    assert meta(run, "best").epoch == 2 and len(checkpoint.steps(run.run)) == 2
    again, said = local.train(resolve(run), device="cpu", screen=(screen := Said())), screen.lines
    assert again["validate/eer"] == 0.2 and "training.validate.patience" in said[-1]
    assert runs.build(run).fit(iter([])) == again  # a worker that starts again leaves at once
    more = run.model_copy(
        update={
            "training": run.training.model_copy(
                update={"validate": run.training.validate.model_copy(update={"patience": 3})}
            )
        }
    )  # type: ignore[union-attr]
    assert planned(more, [0.1, 0.1]).cursor.epoch == 6


def test_every_few_epochs_and_at_the_end(tmp_path: Path, corpus: Path) -> None:
    run = watched(tmp_path, corpus, "training.epochs=5", "training.validate.every_epochs=2")
    planned(run, [0.3, 0.4, 0.2])
    assert [line["epoch"] for line in runs.records(run.run, "validate")] == [2, 4, 5]
    assert meta(run, "best").epoch == 5


def test_the_error_rate_is_that_of_the_evaluation(tmp_path: Path, corpus: Path) -> None:
    trials = corpus.parent / "trials.txt"
    more = ("training.epochs=1", f"evaluation.corpus={corpus}", f"evaluation.trials={trials}")
    run = watched(tmp_path, corpus, "training.validate.also=[min_dcf_001, min_dcf_005]", *more)
    runs.fit(run)
    Path(run.run, "config.yaml").write_text(yaml.safe_dump(run.model_dump(mode="json")))
    result = evaluation.evaluate(run.run, local=True)
    figures = meta(run).metrics
    for name in ("eer", "min_dcf_001", "min_dcf_005"):
        assert figures[f"validate/{name}"] == pytest.approx(getattr(result, name), abs=1e-6)


@pytest.mark.parametrize("method", ["clar", "daso"])
def test_the_accuracy_is_that_of_the_evaluation(tmp_path: Path, corpus: Path, method: str) -> None:
    settings: dict[str, Any] = runs.DASO_METHOD if method == "daso" else {"name": "clar", "labels": "cross_entropy"}
    labels = "labels={split: few, ratio: 2}"
    more = (labels, "training.epochs=1", "evaluation.task=classification", f"evaluation.corpus={corpus}")
    names = ("balanced_accuracy", "macro_f1", "geometric_mean")
    given = ("training.validate.metric=accuracy", f"training.validate.also=[{', '.join(names)}]")
    few = ("training.epoch_steps=3",) if method == "daso" else ()
    run = runs.experiment(
        tmp_path / "run", corpus, *given, f"training.validate.corpus={corpus}", *more, *few, method=settings
    )
    runs.fit(run)
    Path(run.run, "config.yaml").write_text(yaml.safe_dump(run.model_dump(mode="json")))
    results = evaluation.evaluate(run.run, overrides=["evaluation.probes=[linear, knn]"], local=True)
    assert isinstance(results, list)
    by_head = {result.head: result for result in results}
    for probe in ("model", "knn", "linear"):
        settings_of = run.training.validate.model_copy(update={"probe": probe})  # type: ignore[union-attr]
        loop = runs.build(run)
        found = RunJudge(settings_of, run, torch.device("cpu")).figures(loop.state.method, {})
        for name in ("accuracy", *names):
            assert found[name] == pytest.approx(getattr(by_head[probe], name), abs=1e-9), (probe, name)
    assert meta(run).metrics["validate/accuracy"] == by_head["model"].accuracy


def test_losses_are_not_compared_across_the_start_of_ssps(tmp_path: Path, corpus: Path) -> None:
    losses_of = [9, 1, 8, 7, 7.5]
    ends = [checkpoint.Meta(10 * k, k, 0, "x", {"loss": loss}) for k, loss in enumerate(losses_of, start=1)]
    assert Best(since=2).of(ends[:2]) == 20  # none after it yet
    assert Best(since=2).of(ends[:3]) == 30 and Best(since=2).of(ends) == 40
    assert Best().of(ends) == 20 and Best(None).of(ends) is None and Best("eer").of(ends) is None
    assert Best(mode="max").of(ends) == 10
    run = runs.experiment(tmp_path / "run", corpus, "training.checkpoints.keep=1", "training.epochs=4")
    assert run.best == Best("loss", since=1)
    runs.fit(run)
    losses = {line["epoch"]: line["loss"] for line in runs.records(run.run, "epoch")}
    assert meta(run, "best").epoch == min((2, 3, 4), key=lambda epoch: losses[epoch])


def test_patience_counts_anew_from_the_start_of_ssps() -> None:
    config = ValidateConfig(metric="pseudo_eer", patience=2)
    standing: validating.Standing = {}
    for epoch, value, waited in ((1, 0.1, 0), (2, 0.3, 0), (3, 0.3, 0), (4, 0.4, 0), (5, 0.5, 1), (6, 0.39, 0)):
        standing = validating.stood(config, 3, standing, epoch, {"pseudo_eer": value})
        assert standing["waited"] == waited, epoch
    assert standing["best"] == 0.39
    assert validating.stood(config, 3, standing, 7, {}) == {**standing, "epoch": 7}


WRONG = [
    ({"metric": "err"}, r"validate.*no figure 'err'; did you mean 'eer'\? Choose one of eer, min_dcf_001"),
    ({"metric": "pseudo_eer", "also": ["rank"]}, "also: there is no figure 'rank'"),
    ({"metric": "eer"}, "eer needs corpus and trials"),
    ({"metric": "macro_f1"}, "macro_f1 needs corpus"),
    ({"metric": "pseudo_eer", "mode": "max"}, "a lower pseudo_eer is better; leave mode out"),
    ({"metric": "stability"}, "stability is of the clusters of ssps, which method.name=simclr has not got"),
]


@pytest.mark.parametrize(("given", "said"), WRONG)
def test_mistakes_are_one_line(tmp_path: Path, corpus: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        runs.experiment(
            tmp_path,
            corpus,
            f"training.validate={yaml.safe_dump(given, default_flow_style=True)}",
            method={"name": "simclr"},
        )
    assert "\n" not in str(caught.value)
    for name in KINDS if given["metric"] == "err" else ():
        assert name in str(caught.value)


def test_two_answers_to_which_is_best(tmp_path: Path, corpus: Path) -> None:
    both = ("training.validate.metric=pseudo_eer", "training.checkpoints.best=data_wait")
    with pytest.raises(ConfigError, match=r"validate\.metric=pseudo_eer decides"):
        runs.experiment(tmp_path, corpus, *both)
    unknown = runs.experiment(tmp_path, corpus, "training.checkpoints.best=nonsense")
    with pytest.raises(ConfigError, match=r"no figure 'nonsense'; choose one of .*coverage.*loss"):
        runs.fit(unknown)
