"""What the jobs of the manifests do: entrypoints parse and hand on to each other, their clusters hold them.

Also the rules of the KubeRay operator and of Kueue's webhooks that a job could break; no server is here to apply them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from typing import Any

import pytest

from rayssl.data.corpus import PrepareConfig
from rayssl.experiment.config import Experiment
from rayssl.schema import load_yaml, override, parse
from rayssl.sweeps import points
from rayssl.sweeps.config import read_plan
from tests.infra.manifests import OVERLAYS, ROOT, Document, broken, find, job_specs, render, requested

BUCKET = "some-bucket"
QUEUE = "kueue.x-k8s.io/queue-name"


@pytest.fixture(params=OVERLAYS)
def items(request: pytest.FixtureRequest) -> list[Document]:
    return render(request.param)


def test_jobs_keep_to_the_operators_and_kueues_rules(items: list[Document]) -> None:
    for item in items:
        if QUEUE in item["metadata"].get("labels", {}):
            assert item["kind"] == "RayJob", "what KubeRay makes of a RayCronJob has no labels of it"
    for item in (item for item in items if item["kind"] == "RayJob"):
        name, spec, cluster = item["metadata"]["name"], item["spec"], item["spec"]["rayClusterSpec"]
        assert item["metadata"]["labels"][QUEUE] == "rayssl", name
        assert cluster["enableInTreeAutoscaling"] is False, f"{name}: Kueue admits jobs of a fixed size"
        assert len(cluster["workerGroupSpecs"]) <= 6, f"{name}: Kueue takes 8 sets of pods with head and submitter"
        assert "clusterSelector" not in spec and "suspend" not in spec, name
        for group in cluster["workerGroupSpecs"]:
            assert group["minReplicas"] == group["replicas"] == group["maxReplicas"], name
            assert group["groupName"] not in ("head", "submitter"), name
    for name, spec in job_specs(items).items():
        assert spec["submissionMode"] == "K8sJobMode" and spec["shutdownAfterJobFinishes"] is True, name
        assert "deletionStrategy" not in spec and spec["ttlSecondsAfterFinished"] > 0, name
        assert spec["backoffLimit"] >= 1 and spec["activeDeadlineSeconds"] > 0, name
        assert spec["submitterPodTemplate"]["spec"]["restartPolicy"] == "Never", name
    nightly = find(items, "RayCronJob")["spec"]
    assert len(nightly["schedule"].split()) == 5 and "TZ" not in nightly["schedule"] and nightly["timeZone"]


def commands(entrypoint: str) -> list[list[str]]:
    """The commands of an entrypoint as words: of `bash -c`, each of those joined by `&&`."""
    words = shlex.split(entrypoint)
    if words[:2] == ["bash", "-c"]:
        (script,) = words[2:]
        # Quoted with " once more on the way to the head, and read by two shells: see base/jobs/nightly.yaml.
        assert '"' not in script and "'" not in script
        return [command for part in script.split("&&") for command in commands(part)]
    text = entrypoint.replace("$RAYSSL_BUCKET", BUCKET).replace("$(date -u +%F)", "2026-01-02")
    assert not re.search(r"[$`;|<>]", text), f"{text}: something is left for a shell"
    return [shlex.split(text)]


def experiments(entrypoint: str) -> list[Experiment]:
    """What `train` in an entrypoint will do, or each trial of `sweep`."""
    found = []
    for _, script, first, *overrides in commands(entrypoint):
        if script == "jobs/train.py":
            found.append(parse(Experiment, override(load_yaml((ROOT / first).read_text(), first), overrides), first))
        if script == "jobs/sweep.py":
            plan = read_plan(str(ROOT / first), overrides)
            found += [plan.experiment(point, plan.run(k)) for k, point in enumerate(points.drawn(plan.config))]
    return found


def test_entrypoints_are_jobs_with_arguments_that_parse(items: list[Document]) -> None:
    """Every value is one the configuration takes, and whatever names a bucket names the one of the ConfigMap."""
    used = set()
    for name, spec in job_specs(items).items():
        for python, script, first, *overrides in commands(spec["entrypoint"]):
            used.add(script)
            assert python == "python", name
            assert (ROOT / script).is_file(), f"{name}: {script} does not exist"
            if script == "jobs/evaluate.py":
                assert first.startswith(f"s3://{BUCKET}/")
                continue
            if script == "jobs/sweep.py":
                texts = [str(each.model_dump()) for each in experiments(spec["entrypoint"])]
            else:
                tree = override(load_yaml((ROOT / first).read_text(), first), overrides)
                made = parse(PrepareConfig if script == "jobs/prepare.py" else Experiment, tree, first)
                texts = [str(made.model_dump(exclude={"evaluation"}))]
            uris = re.findall(r"s3://[^\s'\"]+", " ".join(texts))
            assert uris and all(uri.startswith(f"s3://{BUCKET}/") for uri in uris), (name, uris)
    assert used == {f"jobs/{verb}.py" for verb in ("prepare", "train", "sweep", "evaluate")}


def test_jobs_hand_on_to_each_other(items: list[Document]) -> None:
    """Training reads what preparation wrote, evaluation what training did."""
    jobs = {name: commands(spec["entrypoint"]) for name, spec in job_specs(items).items()}
    for prepared, trained in (
        (jobs["rayssl-prepare"][0], jobs["rayssl-train"][0]),
        (jobs["rayssl-nightly"][0], jobs["rayssl-nightly"][1]),
    ):
        made, reads = (dict(word.split("=", 1) for word in command[3:]) for command in (prepared, trained))
        assert made["corpora.train.out"] == reads["corpus.uri"]
    for sounds in jobs["rayssl-prepare"][1:]:  # of noises and rooms; a small cluster's are generated
        made = dict(word.split("=", 1) for word in sounds[3:])
        places = {f"noise.corpora.{kind}": made[f"corpora.{kind}.out"] for kind in ("noise", "speech", "music")}
        places["reverb.corpus"] = made["corpora.rooms.out"]
        for command in (jobs["rayssl-train"][0], jobs["rayssl-nightly"][1], jobs["rayssl-sweep"][0]):
            assert {f"views.distort.{key}={uri}" for key, uri in places.items()} <= {*command}
    made, scored = (dict(w.split("=", 1) for w in jobs[f"rayssl-{job}"][0][3:]) for job in ("prepare", "evaluate"))
    assert made["corpora.test.out"] == scored["evaluation.corpus"]
    assert f"run={jobs['rayssl-evaluate'][0][2]}" in jobs["rayssl-train"][0]
    read, made, scored = (
        dict(w.split("=", 1) for w in jobs[f"rayssl-{job}"][0][3:]) for job in ("sweep", "prepare", "evaluate")
    )
    assert read["corpus.uri"] == made["corpora.train.out"]
    assert {key: read[key] for key in scored} == scored  # trials are judged by what runs are


def test_training_fits_its_cluster(items: list[Document]) -> None:
    """The ranks, as many on a pod as it has GPUs, and one CPU for data tasks that never ends at zero."""
    for name, spec in job_specs(items).items():
        groups = {g["groupName"]: g for g in spec["rayClusterSpec"]["workerGroupSpecs"] if g["maxReplicas"]}
        cpus = {key: int(g["rayStartParams"]["num-cpus"]) for key, g in groups.items()}
        gpus = {key: int(requested(g, "nvidia.com/gpu")) for key, g in groups.items()}
        total = sum(g["maxReplicas"] * cpus[key] for key, g in groups.items())
        for experiment in experiments(spec["entrypoint"]):
            ray = experiment.ray
            assert ray.gpu in (True, False), f"{name}: with auto, a GPU node that is late would not be waited for"
            ranks = "gpu" if ray.gpu else "cpu"
            assert ranks in cpus, name
            together = gpus[ranks] if ray.gpu else 1
            assert cpus[ranks] >= together * ray.cpus_per_worker, name
            assert total >= ray.workers * ray.cpus_per_worker + 1, name
            if ray.gpu:
                assert groups["gpu"]["maxReplicas"] * gpus["gpu"] >= ray.workers, name
                assert ray.workers % gpus["gpu"] == 0, f"{name}: GPUs of a node that nobody else gets stay idle"
            else:
                assert not any(gpus.values()), name


def test_the_memory_of_ssps_comes_to_lie_in_its_group(items: list[Document]) -> None:
    for name, spec in job_specs(items).items():
        for experiment in experiments(spec["entrypoint"]):
            wanted = experiment.memory.memory_bytes
            groups = {g["groupName"]: g for g in spec["rayClusterSpec"]["workerGroupSpecs"] if g["maxReplicas"]}
            fits = {key for key, g in groups.items() if int(g["rayStartParams"]["memory"]) >= wanted}
            assert fits == {"memory"}, name
            assert groups["memory"]["maxReplicas"] >= experiment.memory.actors, name


_TRAIN = "python jobs/train.py configs/voxceleb2_ssps_dino.yaml run=s3://$RAYSSL_BUCKET/runs/x"
_ENTRY = "spec/entrypoint"
MISTAKES: list[tuple[Callable[[list[Document]], None], str, Any]] = [
    (test_the_memory_of_ssps_comes_to_lie_in_its_group, _ENTRY, f"{_TRAIN} memory.memory_bytes=100"),
    (test_jobs_keep_to_the_operators_and_kueues_rules, "spec/shutdownAfterJobFinishes", False),
    (test_jobs_keep_to_the_operators_and_kueues_rules, "spec/rayClusterSpec/enableInTreeAutoscaling", True),
    (test_entrypoints_are_jobs_with_arguments_that_parse, _ENTRY, f"{_TRAIN} corpus.uri=s3://other/train"),
    (test_jobs_hand_on_to_each_other, _ENTRY, f"{_TRAIN} corpus.uri=s3://$RAYSSL_BUCKET/elsewhere"),
    (test_training_fits_its_cluster, "spec/rayClusterSpec/workerGroupSpecs/2/maxReplicas", 0),
    (test_training_fits_its_cluster, _ENTRY, f"{_TRAIN} ray.workers=16"),
    (test_training_fits_its_cluster, _ENTRY, f"{_TRAIN} ray.workers=4"),
    (test_training_fits_its_cluster, _ENTRY, f"{_TRAIN} ray.workers=8 ray.cpus_per_worker=12"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "path", "value"), MISTAKES)
def test_a_mistake_is_seen(check: Callable[..., None], path: str, value: Any) -> None:
    items = render("gpu")
    job = find(items, "RayJob", "rayssl-train")
    items[items.index(job)] = broken(job, path, value)
    with pytest.raises(AssertionError):
        check(items)
