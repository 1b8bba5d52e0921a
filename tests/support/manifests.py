"""Manifests built by kustomize, and the pods in them, including those in custom resources."""

import copy
import functools
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import paths
import programs
import yaml

K8S = paths.ROOT / "k8s"
OVERLAYS = ("v100-8", "modern", "cpu-dev")
NAMESPACE = "stillhouse"

Document = dict[str, Any]

_UNITS = {"": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "m": -3}
_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5}


@functools.cache
def _built(folder: Path) -> str:
    command = [programs.installed_program("kubectl"), "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{folder}: {done.stderr}"
    return done.stdout


def parsed(text: str) -> list[Document]:
    """The documents of a YAML file, read by the fast C parser."""
    return [found for found in yaml.load_all(text, Loader=yaml.CSafeLoader) if found]


def build(folder: Path) -> list[Document]:
    """The documents that ``kubectl apply -k`` would send."""
    return parsed(_built(folder))


def overlay(name: str, root: Path = K8S) -> list[Document]:
    """An overlay's service and its run."""
    return build(root / "overlays" / name) + build(root / "overlays" / name / "run")


@dataclass(frozen=True)
class Pod:
    """A pod template and where it was found."""

    where: str
    template: Document
    role: str
    """``head``, ``worker``, ``submitter`` or ``other``."""
    group: str = ""
    start: Document | None = None
    """Parameters of ``ray start``."""
    replicas: int = 1
    most: int = 1

    @property
    def spec(self) -> Document:
        return dict(self.template["spec"])

    @property
    def main(self) -> Document:
        """The container in which KubeRay runs Ray."""
        return dict(self.spec["containers"][0])

    @property
    def containers(self) -> list[Document]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    def requests(self) -> dict[str, Decimal]:
        total: dict[str, Decimal] = {}
        for container in self.spec["containers"]:
            for name, amount in container.get("resources", {}).get("requests", {}).items():
                total[name] = total.get(name, Decimal(0)) + quantity(amount)
        return total


def label(document: Document) -> str:
    """Name for messages."""
    return f"{document['kind']}/{document['metadata']['name']}"


def of_kind(documents: Iterable[Document], *kinds: str) -> list[Document]:
    return [document for document in documents if document["kind"] in kinds]


def one(documents: Iterable[Document], kind: str, name: str = "") -> Document:
    (found,) = [found for found in of_kind(documents, kind) if name in ("", found["metadata"]["name"])]
    return found


def cluster_spec(document: Document) -> Document | None:
    """The Ray cluster that a document describes."""
    if document["kind"] == "RayCluster":
        return dict(document["spec"])
    return document["spec"].get("rayClusterSpec") if document["kind"] == "RayJob" else None


def pods(document: Document) -> Iterator[Pod]:
    """Every pod template in a document. The autoscaler is a container of the head that KubeRay adds."""
    where = label(document)
    if document["kind"] in ("StatefulSet", "Deployment", "Job", "DaemonSet"):
        yield Pod(where, document["spec"]["template"], "other", replicas=document["spec"].get("replicas", 1))
    if (spec := cluster_spec(document)) is None:
        return
    head = spec["headGroupSpec"]
    yield Pod(
        f"{where}: head", _with_autoscaler(head["template"], spec), "head", "head", head.get("rayStartParams", {})
    )
    for group in spec.get("workerGroupSpecs", []):
        count, most = group.get("replicas", 0), group.get("maxReplicas", 2**31 - 1)
        name, start = group["groupName"], group.get("rayStartParams", {})
        yield Pod(f"{where}: {name}", group["template"], "worker", name, start, count, most)
    if (submitter := document["spec"].get("submitterPodTemplate")) is not None:
        yield Pod(f"{where}: submitter", submitter, "submitter")


def all_pods(documents: Iterable[Document]) -> list[Pod]:
    return [pod for document in documents for pod in pods(document)]


def _with_autoscaler(template: Document, spec: Document) -> Document:
    if not spec.get("enableInTreeAutoscaling"):
        return template
    options = spec.get("autoscalerOptions", {})
    added = {name: options[name] for name in ("resources", "securityContext", "volumeMounts") if name in options}
    found = copy.deepcopy(template)
    image = options.get("image", found["spec"]["containers"][0]["image"])
    found["spec"]["containers"].append({"name": "autoscaler", "image": image, **added})
    return found


def quantity(text: object) -> Decimal:
    """A Kubernetes quantity as a number: ``500m``, ``4Ti``, ``64``."""
    found = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(text))
    assert found is not None, f"{text} is no quantity"
    number, unit = Decimal(found[1]), found[2]
    return number * Decimal(1024) ** _BINARY[unit] if unit in _BINARY else number * Decimal(10) ** _UNITS[unit]


def changed(documents: Sequence[Document], kind: str, change: Callable[[Document], None]) -> list[Document]:
    """A copy with a change to every document of a kind."""
    copies = copy.deepcopy(list(documents))
    touched = of_kind(copies, kind)
    assert touched, f"no {kind} to change"
    for document in touched:
        change(document)
    return copies
