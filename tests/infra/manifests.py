"""The Kubernetes manifests as documents, and what is wrong with one, strictly: an unknown field is a mistake.

Ray's kinds are held to KubeRay's own schemas, which `kuberay/schemas.json` has in a compact form, and to the rules in
them (`admission.py`); Kubernetes' own kinds to the schemas that the package kubernetes-validate carries; a PodMonitor
to the one below.
"""

from __future__ import annotations

import copy
import functools
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.infra.admission import broken_rules, repeated
from tests.infra.kuberay import compact

Document = dict[str, Any]

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "infra/kubernetes"
OVERLAYS = ("dev", "gpu", "single", "spot", "rdma")
KUBERNETES_VERSION = "1.34"
RAY_KINDS = set(compact.KINDS)
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _object(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties, "required": list(required)}


_STRINGS = {"type": "array", "items": {"type": "string"}}
_MAP = {"type": "object", "additionalProperties": {"type": "string"}}
_RELABELING = _object(
    sourceLabels=_STRINGS,
    targetLabel={"type": "string"},
    regex={"type": "string"},
    replacement={"type": "string"},
    separator={"type": "string"},
    action={"enum": ["replace", "keep", "drop", "labelmap", "labeldrop", "labelkeep"]},
)
# As much of monitoring.coreos.com/v1 as a monitor here may use.
POD_MONITOR = _object(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "monitoring.coreos.com/v1"},
    kind={"const": "PodMonitor"},
    metadata={"type": "object"},
    spec=_object(
        ("selector", "podMetricsEndpoints"),
        jobLabel={"type": "string"},
        podTargetLabels=_STRINGS,
        namespaceSelector=_object(any={"type": "boolean"}, matchNames=_STRINGS),
        selector=_object(matchLabels=_MAP),
        podMetricsEndpoints={
            "type": "array",
            "minItems": 1,
            "items": _object(
                ("port",),
                port={"type": "string"},
                path={"type": "string"},
                interval={"type": "string", "pattern": "^[0-9]+(s|m)$"},
                scrapeTimeout={"type": "string", "pattern": "^[0-9]+(s|m)$"},
                relabelings={"type": "array", "items": _RELABELING},
                metricRelabelings={"type": "array", "items": _RELABELING},
            ),
        },
    ),
)


def documents(text: str) -> list[Document]:
    return [document for document in yaml.load_all(text, Loader=_LOADER) if document]


@functools.cache
def _rendered(overlay: str) -> list[Document]:
    command = ["kubectl", "kustomize", str(KUBERNETES / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{overlay} does not render: {done.stderr}"
    return documents(done.stdout)


def render(overlay: str) -> list[Document]:
    """What ``kubectl apply -k`` would send, anew at each call, so that a test may break it."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: overlays cannot be rendered (files are checked one by one all the same)")
    return copy.deepcopy(_rendered(overlay))


def closed(schema: Any) -> Any:
    """``schema`` in place, with every object that lists its properties closed to others, as the API server prunes."""
    if isinstance(schema, list):
        for each in schema:
            closed(each)
    elif isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
        for each in schema.values():
            closed(each)
    return schema


def without_required(schema: Any) -> Any:
    """A copy of ``schema`` that parts of a document, such as a patch, can fulfil."""
    if isinstance(schema, list):
        return [without_required(each) for each in schema]
    if isinstance(schema, dict):
        lists = isinstance(schema.get("required"), list)
        return {key: without_required(each) for key, each in schema.items() if not (lists and key == "required")}
    return schema


@functools.cache
def ray_schemas() -> dict[str, Any]:
    """KubeRay's schemas of ``ray.io/v1`` by kind, closed."""
    schemas = compact.expanded(json.loads(compact.COMPACT.read_text()))
    return {kind: closed(schema) for kind, schema in schemas.items()}


@functools.cache
def ray_validator(kind: str, *, parts: bool = False) -> jsonschema.Draft202012Validator:
    """With ``parts`` nothing is required."""
    schema = ray_schemas()[kind]
    return jsonschema.Draft202012Validator(without_required(schema) if parts else schema)


def problems(document: Document, *, parts: bool = False) -> list[str]:
    """What is wrong with ``document``, one line each. CEL rules are for whole documents, not for ``parts``."""
    group, kind = document["apiVersion"].rpartition("/")[0], document["kind"]
    if group == "ray.io":
        assert document["apiVersion"] == "ray.io/v1"
        found = [_line(error) for error in ray_validator(kind, parts=parts).iter_errors(document)]
        found += repeated(ray_schemas()[kind], document)
        found += [] if parts else broken_rules(ray_schemas()[kind], document)
    elif group == "monitoring.coreos.com":
        found = [_line(error) for error in jsonschema.Draft202012Validator(POD_MONITOR).iter_errors(document)]
    else:
        return _core_problems(document)
    # Both leave metadata open; it is the same for every kind.
    named = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": document["metadata"]}
    return found + _core_problems(named)


def _core_problems(document: Document) -> list[str]:
    try:
        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [_line(error)]
    except kubernetes_validate.SchemaNotFoundError as error:
        return [error.message]
    return []


def _line(error: jsonschema.ValidationError) -> str:
    return f"{'.'.join(str(key) for key in error.absolute_path)}: {error.message[:300]}"


def find(items: list[Document], kind: str, name: str | None = None) -> Document:
    (found,) = [d for d in items if d["kind"] == kind and name in (None, d["metadata"]["name"])]
    return found


def job_specs(items: list[Document]) -> dict[str, Document]:
    """The spec of every RayJob, also of those that the nightly one makes, by its name."""
    jobs = {d["metadata"]["name"]: d["spec"] for d in items if d["kind"] == "RayJob"}
    nightly = {d["metadata"]["name"]: d["spec"]["jobTemplate"] for d in items if d["kind"] == "RayCronJob"}
    return {**jobs, **nightly}


def cluster_specs(items: list[Document]) -> dict[str, Document]:
    """The spec of every RayCluster there is or will be, by the name of what makes it."""
    standing = {d["metadata"]["name"]: d["spec"] for d in items if d["kind"] == "RayCluster"}
    return {**standing, **{name: spec["rayClusterSpec"] for name, spec in job_specs(items).items()}}


def ray_groups(items: list[Document]) -> Iterator[tuple[str, Document]]:
    """Every head and worker group with a name to show; each has rayStartParams and a template."""
    for name, spec in cluster_specs(items).items():
        yield f"{name}/head", spec["headGroupSpec"]
        for group in spec["workerGroupSpecs"]:
            yield f"{name}/{group['groupName']}", group


def pod_templates(items: list[Document]) -> Iterator[tuple[str, Document]]:
    """Every template of a pod: Ray's, the submitters' and Redis's."""
    for name, group in ray_groups(items):
        yield name, group["template"]
    for name, spec in job_specs(items).items():
        yield f"{name}/submitter", spec["submitterPodTemplate"]
    for document in items:
        if document["kind"] in ("StatefulSet", "Deployment", "Job"):
            yield document["metadata"]["name"], document["spec"]["template"]


def containers(template: Document) -> list[Document]:
    return [*template["spec"]["containers"], *template["spec"].get("initContainers", [])]


def environment(group: Document) -> dict[str, str]:
    """The variables with a value in Ray's own container of a group."""
    return {each["name"]: each["value"] for each in group["template"]["spec"]["containers"][0].get("env", [])
            if "value" in each}  # fmt: skip


def requested(group: Document, resource: str) -> float:
    """What Ray's own container of a group requests of ``resource``."""
    return quantity(group["template"]["spec"]["containers"][0]["resources"]["requests"].get(resource, 0))


def quantity(text: str | int) -> float:
    """A Kubernetes quantity as a number: bytes or cores."""
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "m": 1e-3}
    for unit, factor in units.items():
        if str(text).endswith(unit):
            return float(str(text).removesuffix(unit)) * factor
    return float(text)


def broken(document: Document, path: str, value: Any) -> Document:
    """A copy with one field set, which need not have been there."""
    result = copy.deepcopy(document)
    *parents, leaf = path.split("/")
    node: Any = result
    for key in parents:
        node = node[int(key)] if isinstance(node, list) else node[key]
    node[leaf] = value
    return result
