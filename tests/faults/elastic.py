"""A node is lost for longer and comes back: the training goes on with one worker, and then with two again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rayssl import storage
from rayssl.training import checkpoint
from tests.faults.losses import node_of_a_rank
from tests.faults.nodes import Nodes
from tests.faults.places import ROOT
from tests.faults.trial import Trial
from tests.faults.work import CLI, Training, write_yaml
from tests.runs import memory_of

_FEWER = "trains with 1 workers"
_MORE = "trains with 2 workers"
# as in infra/kubernetes: a node that is silent is lost after 10 s or so, not after a minute
_NOTICED = {
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "5",
}


class QuickNodes(Nodes):
    """Nodes whose loss is noticed as early as in the manifests."""

    name = "head and two nodes, checked as in infra/kubernetes"

    def __init__(self, folder: Path, variables: Mapping[str, str] | None = None) -> None:
        super().__init__(folder, {**_NOTICED, **(variables or {})})


@dataclass(frozen=True)
class ElasticTraining(Training):
    """With one worker sums have other last bits, and training makes more of such a difference from step to step.

    So the batches must be the same to the end, and the losses nearly so for `near` steps.
    """

    tolerance: float = 0.02
    near: int = 24

    def differences(self, run: str, reference: str) -> list[str]:
        """Of the utterances in the order in which they were trained on last, and of the losses."""
        found = []
        orders = [_order(each) for each in (run, reference)]
        if not np.array_equal(*orders):
            found.append("the utterances of the last epoch came in another order")
        mine, theirs = (_losses(each) for each in (run, reference))
        if mine.keys() != theirs.keys():
            found.append(f"steps {sorted(mine.keys() ^ theirs.keys())[:5]} are missing in one of them")
        both = sorted(mine.keys() & theirs.keys())
        first = next((step for step in both if mine[step] != theirs[step]), 0)
        steps = [step for step in both if step < first + self.near]
        far = [step for step in steps if abs(mine[step] - theirs[step]) > self.tolerance]
        return [*found, *(f"step {step}: loss {mine[step]:.4f}, not {theirs[step]:.4f}" for step in sorted(far)[:5])]


@dataclass(frozen=True)
class ElasticSpeech(ElasticTraining):
    """The training of ``configs/synthetic_ssps.yaml``, whose EER on 2,000 trials is worth a comparison."""

    def write(self, home: str) -> None:
        """See `Work.write`; speech from a seed, as ``configs/synthetic_prepare.yaml`` says."""
        if storage.exists(storage.join(home, "speech", "trials.txt")):
            return
        plan = _config("synthetic_prepare")
        places = [f"{home}/speech/train", f"{home}/speech/test", f"{home}/speech/trials.txt"]
        parts = plan["corpora"]
        parts["train"]["out"], parts["test"]["out"], parts["test"]["trials"]["test"]["out"] = places
        write_yaml(home, "speech", plan)
        _run("prepare", f"{home}/speech.yaml", "--quiet")
        values = _config("synthetic_ssps")
        values["corpus"]["uri"], values["evaluation"]["corpus"], values["evaluation"]["trials"] = places
        values["training"] |= {"log_every": 1}
        values["training"]["checkpoints"] |= {"every_steps": self.every_steps, "keep": 2}
        write_yaml(home, self.name, values)

    def differences(self, run: str, reference: str) -> list[str]:
        """As for `ElasticTraining`, and of the EER: each must lie in the 95 % interval of the other."""
        found = super().differences(run, reference)
        mine, theirs = (eer(each) for each in (run, reference))
        if not (mine[1] <= theirs[0] <= mine[2] and theirs[1] <= mine[0] <= theirs[2]):
            found.append(f"EER {mine[0]:.2%} [{mine[1]:.2%}, {mine[2]:.2%}], not {theirs[0]:.2%}")
        return found


def _run(*command: str) -> None:
    """Runs ``rayssl``; what it prints goes where progress goes, not into the table of trials."""
    subprocess.run([*CLI, *command], check=True, cwd=ROOT, stdout=sys.stderr)


def eer(run: str) -> tuple[float, float, float]:
    """The EER of a run, and its interval over speakers."""
    if not storage.exists(storage.join(run, "evaluation", "result.json")):
        _run("evaluate", run, "--local")
    result = json.loads(storage.read_text(storage.join(run, "evaluation", "result.json")))
    only = result[0] if isinstance(result, list) else result
    return only["eer"], only["eer_low"], only["eer_high"]


def _config(name: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    return values


def shrink_and_grow(trial: Trial) -> str:
    """Loses a node with a rank; starts it again when one worker trains; waits until two train."""
    place, node = node_of_a_rank(trial)
    place.lose(node)
    fewer = _seconds_to(trial, _FEWER)
    trial.pause(5.0)
    place.start_node(node)
    back = time.monotonic()
    place.wait_for_nodes()
    started = time.monotonic() - back
    more = _seconds_to(trial, _MORE)
    told = f"one worker trained {fewer:.0f} s after its loss, two {more:.0f} s after it had started"
    return f"node {node}: {told} (in {started:.0f} s)"


def _seconds_to(trial: Trial, line: str) -> float:
    """Waits until a step is done after ``line`` came; the seconds that took."""
    began, at, lives = time.monotonic(), trial.output.stat().st_size, len(trial.watch.steps.resumes)

    def trains() -> bool:
        if len(trial.watch.steps.resumes) <= lives:
            return False
        return line in _since(trial.output, at) and trial.watch.steps.last > trial.watch.steps.resumes[-1].at

    trial.wait_for(trains, 0.1)
    return time.monotonic() - began


def _since(path: Path, at: int) -> str:
    with path.open("rb") as file:
        file.seek(at)
        return file.read().decode(errors="replace")


def _order(run: str) -> np.ndarray:
    """The utterances whose positives the memory holds, from the oldest to the newest."""
    arrays = memory_of(checkpoint.load(checkpoint.locate(run, "last")))
    return np.asarray(arrays["positives.ids"])


def _losses(run: str) -> dict[int, float]:
    records = map(json.loads, storage.read_text(storage.join(run, "metrics.jsonl")).splitlines())
    return {record["step"]: record["loss"] for record in records if record.get("kind") == "step"}
