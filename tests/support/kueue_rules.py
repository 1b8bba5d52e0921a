"""What Kueue 0.19 refuses or never admits, beyond its schema: queues, quotas, and the runs submitted to them."""

from collections.abc import Iterable, Iterator
from decimal import Decimal

from manifests import NAMESPACE, Document, cluster_spec, label, of_kind, one, pods, quantity

QUEUE, PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
ELASTIC = "kueue.x-k8s.io/elastic-job"
MOST_POD_SETS = 18
MOST_TTL_SECONDS = 300
"""How long the pods of an ended run may stay; Kueue has already given its quota to the next run."""
LEAST_SUBMITTER_RETRIES = 10
"""How many connections may break while KubeRay follows a run's log for days."""


def problems(documents: Iterable[Document]) -> Iterator[str]:
    known = list(documents)
    for document in of_kind(known, "ClusterQueue"):
        yield from (f"{label(document)}: {problem}" for problem in _queue(document, known))
    for document in of_kind(known, "LocalQueue"):
        if document["spec"]["clusterQueue"] not in _names(known, "ClusterQueue"):
            yield f"{label(document)}: there is no ClusterQueue {document['spec']['clusterQueue']}"
    for document in of_kind(known, "RayJob") if of_kind(known, "LocalQueue") else ():
        if QUEUE not in document["metadata"].get("labels", {}):
            yield f"{label(document)}: without {QUEUE} it starts outside the queue"
    for document in of_kind(known, "RayJob", "RayCluster"):
        if QUEUE in document["metadata"].get("labels", {}):
            yield from (f"{label(document)}: {problem}" for problem in _managed(document, known))


def _names(documents: Iterable[Document], kind: str) -> set[str]:
    return {document["metadata"]["name"] for document in of_kind(documents, kind)}


def _queue(document: Document, known: list[Document]) -> Iterator[str]:
    spec, flavors, covered = document["spec"], [], []
    if spec.get("stopPolicy", "None") != "None":
        yield f"stopPolicy {spec['stopPolicy']}: it admits nothing"
    if spec.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name") != NAMESPACE:
        yield f"namespaceSelector must choose {NAMESPACE}"
    for group in spec.get("resourceGroups", []):
        covered += group["coveredResources"]
        for flavor in group["flavors"]:
            flavors.append(flavor["name"])
            if [amount["name"] for amount in flavor["resources"]] != group["coveredResources"]:
                yield f"flavor {flavor['name']}: resources must be those of coveredResources, in their order"
            for amount in flavor["resources"]:
                if quantity(amount["nominalQuota"]) < quantity(amount.get("lendingLimit", 0)):
                    yield f"flavor {flavor['name']}: lendingLimit is more than nominalQuota"
    for what, names in (("flavor", flavors), ("resource", covered)):
        yield from (f"{what} {name} is named twice" for name in sorted({n for n in names if names.count(n) > 1}))
    yield from (f"there is no ResourceFlavor {name}" for name in flavors if name not in _names(known, "ResourceFlavor"))


def _managed(document: Document, known: list[Document]) -> Iterator[str]:
    labels, spec = document["metadata"]["labels"], cluster_spec(document)
    if labels[QUEUE] not in _names(known, "LocalQueue"):
        yield f"there is no LocalQueue {labels[QUEUE]}"
        return
    if PRIORITY in labels and labels[PRIORITY] not in _names(known, "WorkloadPriorityClass"):
        yield f"there is no WorkloadPriorityClass {labels[PRIORITY]}"
    if spec is None or document["spec"].get("clusterSelector"):
        yield "a run of Kueue's brings its own cluster: rayClusterSpec, no clusterSelector"
        return
    if document["kind"] == "RayJob" and not document["spec"].get("shutdownAfterJobFinishes"):
        yield "shutdownAfterJobFinishes must be true, or the quota is never given back"
    if (stays := document["spec"].get("ttlSecondsAfterFinished", 0)) > MOST_TTL_SECONDS:
        yield f"ttlSecondsAfterFinished: pods hold the nodes {stays} s longer than the quota"
    if document["spec"].get("submitterConfig", {}).get("backoffLimit", 2) < LEAST_SUBMITTER_RETRIES:
        yield f"submitterConfig.backoffLimit is below {LEAST_SUBMITTER_RETRIES}: connections that break end the run"
    if spec.get("enableInTreeAutoscaling") and document["metadata"].get("annotations", {}).get(ELASTIC) != "true":
        yield "autoscaling: what Kueue has admitted must not grow"
    groups = [group["groupName"] for group in spec["workerGroupSpecs"]]
    if "head" in groups or len(groups) + 2 > MOST_POD_SETS:
        yield f"at most {MOST_POD_SETS - 2} worker groups, none of them called head"
    yield from _admission(document, known)


def _admission(document: Document, known: list[Document]) -> Iterator[str]:
    """Whether all pods fit at the same time into the quota of an empty queue.

    As in Kueue, every set of pods takes the first flavor whose nodes it may run on and that has enough left.
    """
    name = document["metadata"]["labels"][QUEUE]
    local = one(known, "LocalQueue", name)
    if local["spec"]["clusterQueue"] not in _names(known, "ClusterQueue"):
        return
    queue = one(known, "ClusterQueue", local["spec"]["clusterQueue"])
    flavors = [flavor for group in queue["spec"]["resourceGroups"] for flavor in group["flavors"]]
    if {flavor["name"] for flavor in flavors} - _names(known, "ResourceFlavor"):
        return
    nodes = [one(known, "ResourceFlavor", flavor["name"]).get("spec", {}) for flavor in flavors]
    keys = {key for node in nodes for key in node.get("nodeLabels", {})}
    left = [{found["name"]: quantity(found["nominalQuota"]) for found in flavor["resources"]} for flavor in flavors]
    for pod in pods(document):
        asked = {word: amount * pod.replicas for word, amount in pod.requests().items()}
        if uncovered := sorted(asked.keys() - left[0].keys()):
            yield f"{pod.group or pod.role}: the queue does not cover {', '.join(uncovered)}"
            continue
        allowed = [free for node, free in zip(nodes, left, strict=True) if _may_run(pod.spec, node, keys)]
        if not allowed:
            yield f"{pod.group or pod.role}: may not run on the nodes of any flavor of the queue"
            continue
        fitting = [free for free in allowed if all(free[word] >= amount for word, amount in asked.items())]
        if not fitting:
            yield f"{pod.group or pod.role}: {_words(asked)} are more than any flavor of the queue has left"
            continue
        for word, amount in asked.items():
            fitting[0][word] -= amount


def _may_run(pod: Document, node: Document, keys: set[str]) -> bool:
    """Whether a pod may run on a flavor's nodes. Only the labels in ``keys`` count: those of any flavor."""
    labels = node.get("nodeLabels", {})
    if any(labels.get(key) != value for key, value in pod.get("nodeSelector", {}).items() if key in keys):
        return False
    required = pod.get("affinity", {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", {})
    terms = [
        [asked for asked in term.get("matchExpressions", []) if asked["key"] in keys]
        for term in required.get("nodeSelectorTerms", [])
    ]
    if terms and not any(all(_holds(asked, labels) for asked in term) for term in terms):
        return False
    tolerations = [*pod.get("tolerations", []), *node.get("tolerations", [])]
    hindering = [taint for taint in node.get("nodeTaints", []) if taint["effect"] in ("NoSchedule", "NoExecute")]
    return all(any(_tolerates(toleration, taint) for toleration in tolerations) for taint in hindering)


def _holds(asked: Document, labels: dict[str, str]) -> bool:
    there = asked["key"] in labels
    match asked["operator"]:
        case "Exists":
            return there
        case "DoesNotExist":
            return not there
        case "In":
            return there and labels[asked["key"]] in asked["values"]
        case "NotIn":
            return not there or labels[asked["key"]] not in asked["values"]
    raise AssertionError(f"{asked['operator']}: an operator these rules do not know")


def _tolerates(toleration: Document, taint: Document) -> bool:
    if (
        toleration.get("key", taint["key"]) != taint["key"]
        or toleration.get("effect", taint["effect"]) != taint["effect"]
    ):
        return False
    return toleration.get("operator", "Equal") == "Exists" or toleration.get("value", "") == taint.get("value", "")


def _words(asked: dict[str, Decimal]) -> str:
    return ", ".join(f"{amount:f} {word}" for word, amount in asked.items())
