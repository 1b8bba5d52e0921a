"""Rules for every pod: Pod Security "restricted", pinned images, no plain-text secrets, no dangling references."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from manifests import K8S, NAMESPACE, Document, Pod, all_pods, label, of_kind, quantity

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
"""Volume types that Pod Security "restricted" allows."""
SECRET_NAME = re.compile(r"token(?!iz|s)|passw|secret|credential|api_?key", re.IGNORECASE)
GPU = "nvidia.com/gpu"
PULLS = ("Always", "IfNotPresent", "Never")
MODES = ("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod")
MOST_PRIORITY = 1_000_000_000
MADE_BY_PEOPLE = {*re.findall(r"create secret generic (\S+)", (K8S / "README.md").read_text(encoding="utf-8"))}
CLUSTER_WIDE = {
    "ClusterRole",
    "ClusterRoleBinding",
    "Namespace",
    "PriorityClass",
    "ClusterQueue",
    "ResourceFlavor",
    "WorkloadPriorityClass",
    "Topology",
    "Cohort",
}


def problems(documents: Iterable[Document]) -> Iterator[str]:
    known = list(documents)
    for pod in all_pods(known):
        for rules in (_security, _placing, _images, _secrets, _resources):
            yield from (f"{pod.where}: {problem}" for problem in rules(pod))
        yield from (f"{pod.where}: {problem}" for problem in _references(pod, known))
    for document in known:
        if document["kind"] not in CLUSTER_WIDE and document["metadata"].get("namespace") != NAMESPACE:
            yield f"{label(document)}: metadata.namespace must be {NAMESPACE}"
        if document["kind"] == "PersistentVolumeClaim":
            yield from (f"{label(document)}: {problem}" for problem in _claim(document, known))
        if document["kind"] == "PriorityClass" and document["value"] > MOST_PRIORITY:
            yield f"{label(document)}: value is more than {MOST_PRIORITY:,}, which are the system's own"
        if document["kind"] == "Secret":
            yield f"{label(document)}: secrets are made by people, not kept here"
        for name, value in document.get("data", {}).items() if document["kind"] == "ConfigMap" else ():
            yield from (f"{label(document)}: {name}: {found}" for found in _assigned_secrets(value))


def _security(pod: Pod) -> Iterator[str]:
    spec, own = pod.spec, pod.spec.get("securityContext", {})
    for word in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
        if spec.get(word):
            yield f"{word} is not allowed"
    if own.get("runAsUser", 0) == 0 or own.get("runAsNonRoot") is not True:
        yield "securityContext must have runAsNonRoot and a runAsUser above 0"
    if own.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "securityContext.seccompProfile must be RuntimeDefault"
    if spec.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken must be false"
    for volume in spec.get("volumes", []):
        yield from (f"volume {volume['name']}: {kind}" for kind in volume.keys() - VOLUMES - {"name"})
    tokens = {volume["name"] for volume in spec.get("volumes", []) if "serviceAccountToken" in str(volume)}
    for container in pod.containers:
        yield from (f"container {container['name']}: {found}" for found in _container(container))
        if container["name"] != "autoscaler" and tokens & {m["name"] for m in container.get("volumeMounts", [])}:
            yield f"container {container['name']}: holds the autoscaler's token for Kubernetes"


def _container(container: Document) -> Iterator[str]:
    context = container.get("securityContext", {})
    wanted: dict[str, Any] = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    for name, value in wanted.items():
        if context.get(name) != value:
            yield f"securityContext.{name} must be {value}: KubeRay's init container takes it over"
    if context.get("privileged") or context.get("runAsUser") == 0:
        yield "no privilege, no root"
    ports = container.get("ports", [])
    yield from (f"port {port['name']}: at most 15 letters" for port in ports if len(port["name"]) > 15)
    if len({port["containerPort"] for port in ports}) < len(ports):
        yield "a port is named twice"
    yield from (f"port {port['name']}: no port" for port in ports if not 0 < port["containerPort"] < 65536)
    if container.get("imagePullPolicy", "IfNotPresent") not in PULLS:
        yield f"imagePullPolicy must be one of {', '.join(PULLS)}"
    if any("hostPort" in port for port in ports):
        yield "hostPort is not allowed"


def _placing(pod: Pod) -> Iterator[str]:
    if pod.role == "submitter" and pod.spec.get("restartPolicy") not in ("Never", "OnFailure"):
        yield "restartPolicy must be Never or OnFailure, as in every Job"
    taints = [each.get("key") for each in pod.spec.get("tolerations", []) if each.get("effect") in (None, "NoSchedule")]
    if pod.requests().get(GPU) and not {GPU, None} & {*taints}:
        yield f"asks for {GPU} and does not tolerate the taint of nodes that have some"


def _images(pod: Pod) -> Iterator[str]:
    for container in pod.containers:
        tag = container.get("image", "").rpartition("/")[2].partition(":")[2]
        if not tag or tag.startswith("latest"):
            yield f"container {container['name']}: image {container.get('image')!r} has no fixed tag"


def _secrets(pod: Pod) -> Iterator[str]:
    for container in pod.containers:
        for variable in container.get("env", []):
            if SECRET_NAME.search(variable["name"]) and variable.get("value"):
                yield f"container {container['name']}: {variable['name']} has its value in the open"


def _assigned_secrets(text: str) -> Iterator[str]:
    """Names of variables and keys that hold a secret in plain text."""
    for name in re.findall(r"^\s*([\w.-]+)\s*[=:]\s*\S", text, re.MULTILINE):
        if SECRET_NAME.search(name):
            yield f"{name} has its value in the open"


def _resources(pod: Pod) -> Iterator[str]:
    for container in pod.containers:
        asked = container.get("resources", {})
        for word in ("cpu", "memory"):
            if word not in asked.get("requests", {}) or word not in asked.get("limits", {}):
                yield f"container {container['name']}: {word} needs a request and a limit"
        for word, amount in asked.get("requests", {}).items():
            if "/" in word and asked.get("limits", {}).get(word) != amount:
                yield f"container {container['name']}: {word} is a device: request and limit must be the same"
            if word in asked.get("limits", {}) and quantity(amount) > quantity(asked["limits"][word]):
                yield f"container {container['name']}: requests more {word} than its limit"


def _references(pod: Pod, known: list[Document]) -> Iterator[str]:
    """Every object that a pod names is in these documents, or is a Secret that k8s/README.md tells users to create."""
    volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
    claimed = {found["metadata"]["name"] for found in pod_claims(known)}
    for container in pod.containers:
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes | dict.fromkeys(claimed):
                yield f"container {container['name']}: there is no volume {mount['name']}"
    for name in sorted(_named_secrets(pod.spec) - MADE_BY_PEOPLE):
        yield f"k8s/README.md does not say how the Secret {name} is made"
    for kind, name in _named(pod, volumes):
        if name not in {document["metadata"]["name"] for document in of_kind(known, kind)}:
            yield f"there is no {kind} {name}"


def pod_claims(documents: Iterable[Document]) -> Iterator[Document]:
    """Volume claims that a StatefulSet creates for its pods."""
    for document in of_kind(documents, "StatefulSet"):
        yield from document["spec"].get("volumeClaimTemplates", [])


def _named_secrets(value: Any) -> set[str]:
    """Names of all Secrets anywhere in a pod's spec."""
    if isinstance(value, list):
        return {name for each in value for name in _named_secrets(each)}
    if not isinstance(value, dict):
        return set()
    found = {value[word]["name"] for word in ("secretKeyRef", "secretRef") if word in value}
    found |= {value["secret"]["secretName"]} if "secret" in value else set()
    return found | {name for each in value.values() for name in _named_secrets(each)}


def _claim(document: Document, known: list[Document]) -> Iterator[str]:
    name, modes = document["metadata"]["name"], document["spec"]["accessModes"]
    yield from (f"accessModes: there is no {mode}" for mode in modes if mode not in MODES)
    used = [pod for pod in all_pods(known) if name in str(pod.spec.get("volumes", []))]
    # A laptop's cluster is one node; a cluster with GPUs also has nodes without them.
    if any(pod.requests().get(GPU) for pod in used) and "ReadWriteMany" not in modes:
        yield f"{len(used)} kinds of pods on several nodes mount it: accessModes must be ReadWriteMany"


def _named(pod: Pod, volumes: dict[str, Document]) -> Iterator[tuple[str, str]]:
    yield "ServiceAccount", pod.spec.get("serviceAccountName", "default")
    if "priorityClassName" in pod.spec:
        yield "PriorityClass", pod.spec["priorityClassName"]
    for volume in volumes.values():
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
    for container in pod.containers:
        for source in container.get("envFrom", []):
            if "configMapRef" in source:
                yield "ConfigMap", source["configMapRef"]["name"]
