"""Rules for the service: it stops with a checkpoint, fits its nodes and quota, and admits only allowed clients."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any

from kueue_rules import QUEUE
from manifests import NAMESPACE, Document, Pod, all_pods, label, of_kind, one, pods, quantity

DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
MARGIN_SECONDS = 10
"""Between the end of a drain and the end of the pod."""
GPU_NODE = "nvidia.com/gpu.present"
"""Label of nodes with GPUs, whether they are tainted or not."""
LEADERS = {"pool", "probes"}
"""Ports of jobs without resources, which the queue may place on any node, including the head."""
START_SECONDS = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": 900, "RAY_worker_register_timeout_seconds": 300}
"""Shortest timeout for the start of 64 workers on 8 cold nodes."""


def problems(documents: Iterable[Document]) -> Iterator[str]:
    known = list(documents)
    for pod in (found for found in all_pods(known) if found.role in ("head", "worker")):
        for rules in (_stops, _memory, _starts):
            yield from (f"{pod.where}: {problem}" for problem in rules(pod, known))
    for document in of_kind(known, "RayJob"):
        found = set(re.findall(r"^(pip|uv|conda)\b", document["spec"].get("runtimeEnvYAML", ""), re.MULTILINE))
        yield from (f"{label(document)}: runtimeEnvYAML: {word}: the image holds every library" for word in found)
    for rules_of_all in (_heads_last, _budgets, _benchmarks, _whole_nodes, _elsewhere, _quota, _ports, _network):
        yield from rules_of_all(known)


def environment(pod: Pod, known: Iterable[Document]) -> dict[str, str]:
    """Environment of Ray's container: the variables of its ConfigMaps, then its own."""
    maps = {document["metadata"]["name"]: document.get("data", {}) for document in of_kind(known, "ConfigMap")}
    found: dict[str, str] = {}
    for source in pod.main.get("envFrom", []):
        found |= maps.get(source.get("configMapRef", {}).get("name"), {})
    return found | {variable["name"]: variable.get("value", "") for variable in pod.main.get("env", [])}


def _stops(pod: Pod, known: list[Document]) -> Iterator[str]:
    drain = float(environment(pod, known).get(DRAIN, 30))
    grace = pod.spec.get("terminationGracePeriodSeconds", 30)
    if grace < _sleep(pod) + drain + MARGIN_SECONDS:
        yield f"terminationGracePeriodSeconds {grace} is over before sleep and drain ({_sleep(pod)} + {drain:g} s) are"
    if pod.role == "worker" and "livenessProbe" in pod.main:
        yield "no liveness probe of ours on workers: KubeRay's asks the raylet, ours would end a trainer that is busy"


def _sleep(pod: Pod) -> int:
    return int(pod.main.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0))


def _heads_last(known: list[Document]) -> Iterator[str]:
    for document in of_kind(known, "RayCluster", "RayJob"):
        found = list(pods(document))
        (head,) = [pod for pod in found if pod.role == "head"]
        last = max((pod.spec["terminationGracePeriodSeconds"] for pod in found if pod.role == "worker"), default=0)
        if _sleep(head) < last:
            yield f"{head.where}: preStop sleeps {_sleep(head)} s, workers may take {last} s to end"


def _memory(pod: Pod, _known: list[Document]) -> Iterator[str]:
    """Shared memory counts as memory of the pod: Ray's object store, and as much again for other uses."""
    sizes = {volume["name"]: volume.get("emptyDir", {}) for volume in pod.spec.get("volumes", [])}
    names = [mount["name"] for mount in pod.main.get("volumeMounts", []) if mount["mountPath"] == "/dev/shm"]
    shared = sizes.get(names[0], {}) if names else {}
    if shared.get("medium") != "Memory" or "sizeLimit" not in shared:
        yield "/dev/shm must be an emptyDir in memory with a sizeLimit"
        return
    size, objects = quantity(shared["sizeLimit"]), quantity((pod.start or {}).get("object-store-memory", 0))
    if not 0 < objects * 2 <= size:
        yield f"/dev/shm has {shared['sizeLimit']}, twice object-store-memory is {objects * 2:f}"
    if size * 2 > quantity(pod.main["resources"]["limits"]["memory"]):
        yield f"/dev/shm may take {shared['sizeLimit']}, more than half of the pod's memory"


def _starts(pod: Pod, known: list[Document]) -> Iterator[str]:
    found = environment(pod, known)
    for name, least in START_SECONDS.items():
        if float(found.get(name, 0)) < least:
            yield f"{name} is below {least} s"


def _budgets(known: list[Document]) -> Iterator[str]:
    """Kubernetes cannot ask a RayCluster how many pods it should have: only a whole minAvailable works."""
    ray = [pod for pod in all_pods(known) if pod.role in ("head", "worker")]
    covered: set[str] = set()
    for document in of_kind(known, "PodDisruptionBudget"):
        spec = document["spec"]
        matched = [pod for pod in ray if _selects(spec["selector"], labels_of(pod))]
        covered |= {pod.where for pod in matched}
        if not isinstance(spec.get("minAvailable"), int):
            yield f"{label(document)}: minAvailable must be a whole number"
            continue
        for pod in matched:
            wanted = 1 if pod.role == "head" else max(pod.replicas - 1, 0)
            if spec["minAvailable"] != wanted:
                yield f"{label(document)}: minAvailable must be {wanted} for {pod.where}"
    for pod in ray:
        if (pod.role == "head" or pod.group == "train") and pod.replicas and pod.where not in covered:
            yield f"{pod.where}: no PodDisruptionBudget"


def labels_of(pod: Pod) -> dict[str, str]:
    """Labels that KubeRay gives to a pod."""
    given = dict(pod.template.get("metadata", {}).get("labels", {}))
    if pod.role not in ("head", "worker"):
        return given
    group = "headgroup" if pod.role == "head" else pod.group
    return given | {"ray.io/is-ray-node": "yes", "ray.io/node-type": pod.role, "ray.io/group": group}


def _selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels"}
    return selector.get("matchLabels", {}).items() <= labels.items()


def _benchmarks(known: list[Document]) -> Iterator[str]:
    """A measurement pod has its node alone: class Guaranteed, whole CPUs, selected by name.

    KubeRay's init container requests its full limits, so the pod stays Guaranteed.
    """
    for pod in all_pods(known):
        if pod.group != "benchmark":
            continue
        if any(container["resources"]["requests"] != container["resources"]["limits"] for container in pod.containers):
            yield f"{pod.where}: requests and limits must be the same for the class Guaranteed"
        if quantity(pod.main["resources"]["limits"]["cpu"]) % 1:
            yield f"{pod.where}: only whole CPUs are pinned"
        if not pod.spec.get("tolerations") or not pod.spec.get("nodeSelector") or not _is_spread(pod):
            yield f"{pod.where}: needs a toleration, a nodeSelector and no other pod of Ray's on its node"
        if "benchmark" not in _ray_resources(pod):
            yield f"{pod.where}: rayStartParams.resources must hold benchmark"


def _ray_resources(pod: Pod) -> dict[str, float]:
    """Named resources of ``ray start``: JSON, quoted for the shell, as Ray's autoscaler reads it."""
    quoted = (pod.start or {}).get("resources", '"{}"')
    return dict(json.loads(quoted[1:-1].replace("\\", "")))


def _is_spread(pod: Pod) -> bool:
    """Whether no node may have two pods of this kind."""
    terms = (
        pod.spec.get("affinity", {})
        .get("podAntiAffinity", {})
        .get("requiredDuringSchedulingIgnoredDuringExecution", [])
    )
    return any(
        term["topologyKey"] == "kubernetes.io/hostname" and _selects(term["labelSelector"], labels_of(pod))
        for term in terms
    )


def _whole_nodes(known: list[Document]) -> Iterator[str]:
    for pod in all_pods(known):
        if pod.group == "train" and not _is_spread(pod):
            yield f"{pod.where}: one pod a node needs a podAntiAffinity by kubernetes.io/hostname"


def _elsewhere(known: list[Document]) -> Iterator[str]:
    """On nodes with GPUs, no other pod takes the CPUs of a training pod, which would then never start."""
    found = all_pods(known)
    if not any("nvidia.com/gpu" in pod.requests() for pod in found):
        return
    for pod in found:
        if "nvidia.com/gpu" not in pod.requests() and "nodeSelector" not in pod.spec and not _avoids(pod, GPU_NODE):
            yield f"{pod.where}: must stay off nodes with GPUs: a nodeAffinity, {GPU_NODE} DoesNotExist"


def _avoids(pod: Pod, name: str) -> bool:
    affinity = pod.spec.get("affinity", {}).get("nodeAffinity", {})
    terms = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms", [])
    wanted = {"key": name, "operator": "DoesNotExist"}
    return bool(terms) and all(wanted in term.get("matchExpressions", []) for term in terms)


def _quota(known: list[Document]) -> Iterator[str]:
    """The service at its largest and one run fit into the namespace's quota.

    If Kueue has no GPU quota, its runs wait and take nothing.
    """
    hard = one(known, "ResourceQuota")["spec"]["hard"]
    total: dict[str, Decimal] = {}
    waiting = _given_gpus(known) == 0
    for document in known:
        managed = QUEUE in document["metadata"].get("labels", {})
        for pod in [] if managed and waiting else pods(document):
            count = pod.most if pod.role == "worker" else pod.replicas
            for word, amount in {**pod.requests(), "pods": Decimal(1)}.items():
                name = "pods" if word == "pods" else f"requests.{word}"
                total[name] = total.get(name, Decimal(0)) + amount * count
    for name, amount in total.items():
        if name in hard and amount > quantity(hard[name]):
            yield f"ResourceQuota: {name} {hard[name]} is less than the {amount:f} of everything at once"


def _given_gpus(known: list[Document]) -> Decimal:
    amounts = [
        quantity(amount["nominalQuota"])
        for queue in of_kind(known, "ClusterQueue")
        for group in queue["spec"]["resourceGroups"]
        for flavor in group["flavors"]
        for amount in flavor["resources"]
        if amount["name"] == "nvidia.com/gpu"
    ]
    return sum(amounts, Decimal(0))


def _ports(known: list[Document]) -> Iterator[str]:
    """Every port in a monitor or network policy is a port of a pod it selects, and vice versa."""
    ray = [pod for pod in all_pods(known) if pod.role in ("head", "worker")]
    scraped: set[str] = set()
    for monitor in of_kind(known, "PodMonitor"):
        ports = [endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]]
        scraped |= set(ports)
        yield from _unserved(label(monitor), monitor["spec"]["selector"], ports, ray)
    for pod in ray:
        served = {port["name"] for port in pod.main.get("ports", [])}
        yield from (f"{pod.where}: no port {name}" for name in sorted(LEADERS & scraped - served))
    for policy in of_kind(known, "NetworkPolicy"):
        rules = policy["spec"].get("ingress", [])
        named = [p["port"] for rule in rules for p in rule.get("ports", []) if isinstance(p["port"], str)]
        yield from _unserved(label(policy), policy["spec"]["podSelector"], named, ray)
        if policy["metadata"]["name"] == "prometheus" and scraped - set(named):
            yield f"{label(policy)}: Prometheus may not reach {', '.join(sorted(scraped - set(named)))}"


def _unserved(where: str, selector: Document, ports: list[str], ray: list[Pod]) -> Iterator[str]:
    """Ports that no selected pod of a Ray cluster has."""
    clusters: dict[str, set[str]] = {}
    for pod in (found for found in ray if _selects(selector, labels_of(found))):
        served = clusters.setdefault(pod.where.partition(":")[0], set())
        served |= {port["name"] for port in pod.main.get("ports", [])}
    for cluster, served in clusters.items():
        yield from (f"{where}: no pod of {cluster} has a port {port}" for port in ports if port not in served)
    if ports and not clusters:
        yield f"{where}: selects no pod"


def _network(known: list[Document]) -> Iterator[str]:
    policies = {document["metadata"]["name"]: document["spec"] for document in of_kind(known, "NetworkPolicy")}
    denied = policies.get("default-deny", {})
    if denied != {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}:
        yield "NetworkPolicy/default-deny must select every pod and allow nothing"
    for name, spec in policies.items():
        for rule in [*spec.get("ingress", []), *spec.get("egress", [])]:
            if not rule.get("from") and not rule.get("to"):
                yield f"NetworkPolicy/{name}: a rule without from or to allows everybody"
            for peer in [*rule.get("from", []), *rule.get("to", [])]:
                if peer.get("namespaceSelector") == {} or peer == {"podSelector": {}}:
                    yield f"NetworkPolicy/{name}: a selector that selects everything"
    (space,) = of_kind(known, "Namespace")
    if space["metadata"]["labels"].get("pod-security.kubernetes.io/enforce") != "restricted":
        yield f"Namespace/{NAMESPACE}: Pod Security must be enforced as restricted"
