"""Every overlay as a cluster would accept it, and planted errors that the rules must find."""

import copy
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import access_rules
import crds
import kuberay_rules
import kueue_rules
import pod_rules
import pytest
import service_rules
from manifests import K8S, OVERLAYS, Document, all_pods, build, changed, label, of_kind, overlay

needs_definitions = pytest.mark.skipif(
    not crds.SCHEMAS.is_dir(), reason="the definitions of custom resources are not next to the checkout"
)

KUBERNETES = "1.33"
"""The oldest supported version: preStop sleep, sidecars and its Pod Security."""
RULES = (access_rules, kuberay_rules, kueue_rules, pod_rules, service_rules)

WAITING = {"v100-8": "RayJob/distilbert: train: "}
"""Runs that Kueue does not admit in the shipped overlays, where one line gives the GPUs to the service."""


def _problems(documents: list[Document]) -> list[str]:
    return [problem for rules in RULES for problem in rules.problems(documents)]


def _core(document: Document) -> list[str]:
    """Errors by Kubernetes' own schema, including unknown fields."""
    import kubernetes_validate

    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        return [f"{label(document)}: Kubernetes {KUBERNETES} has no {document['kind']} in {document['apiVersion']}"]
    except kubernetes_validate.ValidationError as error:
        return [f"{label(document)}: {'.'.join(map(str, error.path))}: {error.message}"]
    return []


def _as_template(where: str, template: Document) -> Document:
    return {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": where}, "template": template}


def _schema_problems(documents: list[Document]) -> list[str]:
    found = [
        problem
        for document in documents
        for problem in (crds.problems(document) if crds.is_custom(document) else _core(document))
    ]
    return found or [problem for pod in all_pods(documents) for problem in _core(_as_template(pod.where, pod.template))]


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_breaks_no_rule(name: str) -> None:
    assert [problem for problem in _problems(overlay(name)) if not problem.startswith(WAITING.get(name, "-"))] == []


@needs_definitions
@pytest.mark.real_data
@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_is_accepted_by_every_schema(name: str) -> None:
    assert _schema_problems(overlay(name)) == []


@pytest.mark.parametrize("gpus", [1, 8])
@pytest.mark.parametrize("owner", ["service", "runs"])
def test_gpu_counts_and_owners_are_two_lines_of_an_overlay(tmp_path: Path, gpus: int, owner: str) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    chosen = tmp_path / "k8s" / "overlays" / "v100-8" / "hardware" / "kustomization.yaml"
    text = chosen.read_text(encoding="utf-8")
    text = text.replace("components/gpus-per-node-8\n", f"components/gpus-per-node-{gpus}\n")
    chosen.write_text(text.replace("components/gpus-to-service\n", f"components/gpus-to-{owner}\n"), encoding="utf-8")
    found = overlay("v100-8", tmp_path / "k8s")
    refused = _problems(found)
    assert [problem for problem in refused if not problem.startswith(WAITING["v100-8"])] == []
    assert len(refused) == (1 if owner == "service" else 0)
    train = [pod for pod in all_pods(found) if pod.group == "train"]
    counts = {pod.where: (pod.replicas, int(pod.requests()["nvidia.com/gpu"])) for pod in train}
    assert counts == {
        "RayCluster/stillhouse: train": (8 if owner == "service" else 0, gpus),
        "RayJob/distilbert: train": (8, gpus),
    }


@pytest.mark.parametrize("component", ["redis", "rdma", "phones"])
def test_a_component_fits_the_service(tmp_path: Path, component: str) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    chosen = tmp_path / "k8s" / "overlays" / "v100-8" / "kustomization.yaml"
    chosen.write_text(f"{chosen.read_text(encoding='utf-8')}  - ../../components/{component}\n", encoding="utf-8")
    found = build(chosen.parent)
    assert len(found) >= len(build(K8S / "overlays" / "v100-8"))
    assert _problems(found) == []
    if crds.SCHEMAS.is_dir():
        assert _schema_problems(found) == []


def _set(path: str, value: Any) -> Callable[[Document], None]:
    """Set the value at a path like ``spec.groups[0].hard[requests.cpu]``; None deletes it."""
    words = [inner or word for inner, word in re.findall(r"\[([^\]]+)\]|([^.\[\]]+)", path)]
    *steps, last = [int(word) if word.isdigit() else word for word in words]

    def change(document: Document) -> None:
        place: Any = document
        for step in steps:
            place = place[step]
        if value is None:
            del place[last]
        else:
            place[last] = value

    return change


HEAD, TRAIN = "spec.headGroupSpec.template.spec", "spec.workerGroupSpecs[0].template.spec"
CPU, BENCHMARK = "spec.workerGroupSpecs[1].template.spec", "spec.workerGroupSpecs[2].template.spec"
RUN_TRAIN = "spec.rayClusterSpec.workerGroupSpecs[0].template.spec"

BY_RULES = [
    ("RayJob", "metadata.name", "d" * 48, "a name may have 47"),
    ("RayJob", "metadata.name", "1st", "DNS-1035"),
    ("RayJob", "spec.shutdownAfterJobFinishes", False, "ttlSecondsAfterFinished needs shutdown"),
    ("RayJob", "spec.shutdownAfterJobFinishes", False, "the quota is never given back"),
    ("RayJob", "spec.ttlSecondsAfterFinished", 3600, "hold the nodes 3600 s longer than the quota"),
    ("RayJob", "spec.submitterPodTemplate.spec.restartPolicy", "Always", "submitter: restartPolicy must be Never"),
    ("RayJob", f"{RUN_TRAIN}.tolerations", None, "train: asks for nvidia.com/gpu and does not tolerate"),
    ("RayJob", "metadata.labels[kueue.x-k8s.io/queue-name]", None, "starts outside the queue"),
    ("RayJob", "spec.submitterConfig", {"backoffLimit": 2}, "connections that break end the run"),
    ("RayJob", "spec.submitterPodTemplate.spec.affinity", None, "submitter: must stay off nodes with GPUs"),
    ("RayJob", "spec.deletionStrategy", {"deletionRules": [{"policy": "DeleteSelf"}]}, "exclude each other"),
    ("RayJob", "spec.clusterSelector", {"ray.io/cluster": "stillhouse"}, "clusterSelector excludes"),
    ("RayJob", "spec.submissionMode", "SidecarMode", "SidecarMode excludes"),
    ("RayJob", "spec.runtimeEnvYAML", "- pip", "must be a mapping"),
    ("RayJob", "spec.runtimeEnvYAML", "pip: [requests]", "runtimeEnvYAML: pip"),
    ("RayJob", "spec.rayClusterSpec.enableInTreeAutoscaling", True, "must not grow"),
    ("RayJob", "spec.rayClusterSpec.upgradeStrategy", {"type": "Recreate"}, "upgradeStrategy"),
    ("RayJob", "spec.rayClusterSpec.workerGroupSpecs[1].groupName", "head", "none of them called head"),
    ("RayJob", "spec.rayClusterSpec.workerGroupSpecs[0].replicas", 9, "not between"),
    ("RayJob", f"{RUN_TRAIN}.containers[0].resources.requests.cpu", "49", "more cpu than its limit"),
    ("RayJob", f"{RUN_TRAIN}.containers[0].resources.requests[example/nic]", "1", "does not cover example/nic"),
    ("RayJob", f"{RUN_TRAIN}.nodeSelector[nvidia.com/gpu.present]", "no", "train: may not run on the nodes of any"),
    (
        "ResourceFlavor",
        "spec",
        {"nodeTaints": [{"key": "a", "effect": "NoSchedule"}]},
        "may not run on the nodes of any",
    ),
    ("RayCluster", "spec.rayVersion", None, "token authentication needs rayVersion"),
    ("RayCluster", "spec.rayVersion", "2.51.1", "needs Ray 2.52"),
    ("RayCluster", "spec.rayVersion", "2.52.1", "probes Ray 2.52.1 with wget"),
    ("RayCluster", "spec.networkPolicy", {}, "alpha feature gate"),
    ("RayCluster", "spec.tlsOptions", {"enabled": True}, "alpha feature gate"),
    ("RayCluster", "spec.gcsFaultToleranceOptions", {"backend": "rocksdb"}, "alpha feature gate"),
    ("RayCluster", "spec.workerGroupSpecs[0].minReplicas", 9, "more than maxReplicas"),
    ("RayCluster", "spec.workerGroupSpecs[0].rayStartParams.labels", "a=b", "labels is not supported"),
    ("RayCluster", "spec.workerGroupSpecs[2].resources", {"CPU": "1"}, "in rayStartParams and in the group"),
    ("RayCluster", f"{HEAD}.restartPolicy", "Always", "Never under the autoscaler v2"),
    ("RayCluster", "spec.autoscalerOptions.securityContext", None, "container autoscaler: securityContext"),
    ("RayCluster", f"{HEAD}.containers[0].image", "stillhouse:latest", "no fixed tag"),
    ("RayCluster", f"{HEAD}.containers[0].image", "registry.example:5000/stillhouse", "no fixed tag"),
    ("RayCluster", f"{HEAD}.containers[0].env[1]", {"name": "RAY_AUTH_TOKEN", "value": "x"}, "in the open"),
    ("RayCluster", f"{HEAD}.automountServiceAccountToken", True, "automountServiceAccountToken"),
    ("RayCluster", f"{HEAD}.containers[0].lifecycle", None, "preStop sleeps 0 s"),
    ("RayCluster", f"{HEAD}.terminationGracePeriodSeconds", 140, "is over before"),
    ("RayCluster", f"{TRAIN}.terminationGracePeriodSeconds", 90, "is over before"),
    ("RayCluster", f"{TRAIN}.containers[0].ports[0].containerPort", 70000, "no port"),
    ("RayCluster", f"{TRAIN}.containers[0].imagePullPolicy", "Allways", "imagePullPolicy must be one of"),
    ("RayCluster", f"{HEAD}.volumes[0]", {"name": "shared", "secret": {"secretName": "own"}}, "how the Secret own"),
    ("RayCluster", f"{TRAIN}.containers[0].envFrom[0]", {"secretRef": {"name": "keys"}}, "how the Secret keys is made"),
    ("RayCluster", f"{TRAIN}.securityContext.runAsUser", 0, "runAsUser above 0"),
    ("RayCluster", f"{TRAIN}.hostNetwork", True, "hostNetwork"),
    ("RayCluster", f"{TRAIN}.containers[0].securityContext.privileged", True, "no privilege"),
    ("RayCluster", f"{TRAIN}.containers[0].securityContext.capabilities.add", ["IPC_LOCK"], "capabilities must be"),
    ("RayCluster", f"{TRAIN}.containers[0].livenessProbe", {"tcpSocket": {"port": 8080}}, "no liveness probe"),
    ("RayCluster", f"{TRAIN}.containers[0].envFrom", None, "below 900 s"),
    ("RayCluster", f"{TRAIN}.containers[0].volumeMounts[0].name", "elsewhere", "no volume elsewhere"),
    ("RayCluster", f"{TRAIN}.volumes[0].persistentVolumeClaim.claimName", "lost", "no PersistentVolumeClaim lost"),
    ("RayCluster", f"{TRAIN}.volumes[0]", {"name": "shared", "hostPath": {"path": "/"}}, "volume shared: hostPath"),
    ("RayCluster", f"{TRAIN}.volumes[2].emptyDir.sizeLimit", "4Gi", "twice object-store-memory"),
    ("RayCluster", f"{TRAIN}.volumes[2].emptyDir.sizeLimit", "200Gi", "more than half"),
    ("RayCluster", f"{TRAIN}.serviceAccountName", "root", "no ServiceAccount root"),
    ("RayCluster", f"{TRAIN}.containers[0].resources.requests[nvidia.com/gpu]", "4", "is a device"),
    ("RayCluster", f"{TRAIN}.containers[0].resources.limits[nvidia.com/gpu]", None, "is a device"),
    ("RayCluster", f"{TRAIN}.containers[0].ports[1].name", "training-metrics-port", "at most 15"),
    ("RayCluster", f"{TRAIN}.containers[0].ports[2].containerPort", 9400, "named twice"),
    (
        "RayCluster",
        f"{HEAD}.containers[0].volumeMounts[3]",
        {"name": "kubernetes", "mountPath": "/run"},
        "ray-head: holds",
    ),
    ("RayCluster", f"{TRAIN}.affinity", None, "one pod a node"),
    ("RayCluster", f"{HEAD}.affinity", None, "head: must stay off nodes with GPUs"),
    ("RayCluster", f"{CPU}.affinity.nodeAffinity", None, "cpu: must stay off nodes with GPUs"),
    ("RayCluster", f"{BENCHMARK}.containers[0].resources.limits.cpu", "15", "class Guaranteed"),
    ("RayCluster", f"{BENCHMARK}.tolerations", None, "needs a toleration"),
    ("RayCluster", "spec.workerGroupSpecs[2].rayStartParams.resources", None, "must hold benchmark"),
    ("RayCluster", f"{HEAD}.containers[0].ports[4]", None, "no pod of RayCluster/stillhouse has a port queue"),
    ("RayCluster", f"{HEAD}.containers[0].ports[5]", None, "head: no port pool"),
    ("ClusterQueue", "spec.resourceGroups[0].flavors[1].name", "h100", "no ResourceFlavor h100"),
    ("ClusterQueue", "spec.stopPolicy", "Hold", "it admits nothing"),
    ("ClusterQueue", "spec.namespaceSelector", {}, "namespaceSelector must choose stillhouse"),
    ("ClusterQueue", "spec.resourceGroups[0].flavors[0].resources[0].lendingLimit", "65", "more than nominalQuota"),
    ("PersistentVolumeClaim", "spec.accessModes", ["ReadWriteOnce"], "must be ReadWriteMany"),
    ("PersistentVolumeClaim", "spec.accessModes", ["ReadWriteMny"], "there is no ReadWriteMny"),
    ("PriorityClass", "value", 2_000_000_000, "the system's own"),
    ("ClusterQueue", "spec.resourceGroups[0].coveredResources", ["memory", "cpu", "nvidia.com/gpu"], "in their order"),
    ("ClusterQueue", "spec.resourceGroups[0].flavors[0].resources[0].nominalQuota", "30", "more than any flavor"),
    ("LocalQueue", "metadata.name", "other", "no LocalQueue runs"),
    ("LocalQueue", "spec.clusterQueue", "other", "no ClusterQueue other"),
    ("PodDisruptionBudget", "spec.minAvailable", "50%", "whole number"),
    ("PodDisruptionBudget", "spec.minAvailable", 8, "must be 7"),
    ("ResourceQuota", "spec.hard[requests.cpu]", "100", "is less than"),
    ("NetworkPolicy", "spec.podSelector", {"matchLabels": {"a": "b"}}, "default-deny must select"),
    ("PodMonitor", "spec.podMetricsEndpoints[0].port", "http", "no pod of RayJob/distilbert has a port http"),
    ("Namespace", "metadata.labels", {}, "must be enforced as restricted"),
    ("ConfigMap", "data", {"x": "HF_TOKEN=abc"}, "HF_TOKEN has its value in the open"),
    ("ConfigMap", "data", {"x": "a: 1\n  api_key: abc"}, "api_key has its value in the open"),
    ("Role", "metadata.namespace", "default", "must be stillhouse"),
]


@pytest.mark.parametrize(("kind", "path", "value", "found"), BY_RULES)
def test_a_planted_error_is_found(kind: str, path: str, value: Any, found: str) -> None:
    # Use the variant in which runs have the GPUs: otherwise the quotas have no effect.
    documents = overlay("modern" if kind in ("RayJob", "ClusterQueue", "ResourceFlavor") else "v100-8")
    problems = _problems(changed(documents, kind, _set(path, value)))
    assert [problem for problem in problems if re.search(found, problem)] != [], problems


SERVICE_DOOR, RUN_DOOR = "RayCluster/stillhouse: head", "RayJob/distilbert: head"

BY_NAME = [
    ("NetworkPolicy/dns", "spec.egress[0].ports[0].protocol", "TCP", "must reach DNS at 53/UDP"),
    ("NetworkPolicy/ray-service", "spec.egress", [], f"{SERVICE_DOOR} must reach RayCluster/stillhouse: train"),
    ("NetworkPolicy/ray-run", "spec.ingress", [], f"{RUN_DOOR} must reach RayJob/distilbert: train"),
    ("NetworkPolicy/submit-to-head", "spec.ingress[0].ports", None, f"the operator may not reach {RUN_DOOR} at 6379"),
    (
        "NetworkPolicy/submit-to-head",
        "spec.ingress[0].from[1].podSelector",
        {"matchLabels": {"a": "b"}},
        "submitter must",
    ),
    ("NetworkPolicy/submit-to-head", "spec.ingress[0].from[2].namespaceSelector", {}, "a stranger may not reach"),
    (
        "NetworkPolicy/submit-to-head",
        "spec.ingress[0].from[2]",
        {"ipBlock": {"cidr": "0.0.0.0/0"}},
        "public address may not",
    ),
    ("NetworkPolicy/submitter", "spec.egress[0].ports[0].port", "dashbord", f"submitter must reach {RUN_DOOR}"),
    ("NetworkPolicy/prometheus", "spec.policyTypes", ["Egress"], "Prometheus must reach"),
    ("NetworkPolicy/object-store", "spec.egress[0].to[0].ipBlock.except", None, "may not reach metadata"),
    ("NetworkPolicy/autoscaler", "spec.podSelector.matchLabels", {}, "train may not reach the API server"),
    ("NetworkPolicy/redis-from-head", "spec.ingress", [], f"{SERVICE_DOOR} must reach StatefulSet/stillhouse-redis"),
    ("RayJob/distilbert", "spec.submitterPodTemplate.metadata.labels", {}, "submitter must reach"),
    ("RayCluster/stillhouse", "spec.workerGroupSpecs[1].template.metadata.labels", {}, "cpu must reach"),
    ("Role/stillhouse-submitter", "rules[0].resources", ["secrets"], "no right to secrets"),
    ("Role/stillhouse-viewer", "rules[0].verbs", ["*"], "no right to"),
    ("RoleBinding/stillhouse-submitters", "roleRef.name", "submitter", "no Role submitter"),
    (
        "RoleBinding/stillhouse-submitters",
        "roleRef",
        {"kind": "ClusterRole", "name": "cluster-admin"},
        "no Role cluster-a",
    ),
    ("RoleBinding/stillhouse-viewers", "subjects[0].name", "system:authenticated", "is everybody"),
    ("ServiceAccount/default", "automountServiceAccountToken", None, "must be false"),
    ("RayCluster/stillhouse", "spec.headGroupSpec.serviceType", "LoadBalancer", "only be reached from inside"),
    ("RayCluster/stillhouse", "spec.headGroupSpec.enableIngress", True, "only be reached from inside"),
    ("Service/stillhouse-redis", "spec.selector", {"a": "b"}, "no pod behind it serves redis"),
    ("Service/stillhouse-redis", "spec.ports[0].targetPort", "redi", "no pod behind it serves redi"),
    ("Service/stillhouse-redis", "spec.type", "NodePort", "must be ClusterIP"),
]


@pytest.mark.parametrize(("name", "path", "value", "found"), BY_NAME)
def test_an_error_in_one_document_is_found(name: str, path: str, value: Any, found: str) -> None:
    documents = copy.deepcopy(overlay("modern"))
    (document,) = [document for document in documents if label(document) == name]
    _set(path, value)(document)
    problems = _problems(documents)
    assert [problem for problem in problems if re.search(found, problem)] != [], problems


def test_pods_may_take_variables_from_a_secret() -> None:
    """The variant for object stores that the README describes."""

    def add(document: Document) -> None:
        document["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["envFrom"].append(
            {"secretRef": {"name": "stillhouse-object-store"}}
        )

    assert _problems(changed(overlay("modern"), "RayCluster", add)) == []


def test_no_network_policy_can_be_missing() -> None:
    documents = overlay("modern")
    for policy in of_kind(documents, "NetworkPolicy"):
        if policy["metadata"]["name"] != "default-deny":
            assert list(access_rules.problems([found for found in documents if found is not policy])) != [], policy


BY_SCHEMAS = [
    ("RayJob", "spec.entrypoynt", "python", "entrypoynt: unknown field"),
    ("RayJob", "spec.deletionStrategy", {}, "requires either BOTH onSuccess and onFailure"),
    ("RayJob", "spec.managedBy", "somebody", "must be either"),
    ("RayJob", "spec.backoffLimit", "three", "is not of type 'integer'"),
    ("RayJob", "spec.submitterPodTemplate.spec.containers[0].sekurityContext", {}, "unknown field"),
    ("RayCluster", "spec.autoscalerOptions.version", "v3", "is not one of"),
    ("RayCluster", "spec.headGroupSpec.template", None, "'template' is a required property"),
    ("RayCluster", f"{TRAIN}.containers[0].lifecycle", {"preStop": {"sleep": {}}}, "'seconds' is a required property"),
    ("RayCluster", f"{TRAIN}.containers[0].ports[0].containerPort", "8080", "is not of type 'integer'"),
    ("RayCluster", "apiVersion", "ray.io/v1alpha1", "only v1 is accepted"),
    ("RayCluster", "metadata.namespace", None, "the kind is Namespaced"),
    ("ClusterQueue", "metadata.namespace", "stillhouse", "the kind is Cluster"),
    ("ClusterQueue", "apiVersion", "kueue.x-k8s.io/v1beta1", "only v1beta2 is accepted"),
    ("ClusterQueue", "spec.resourceGroups[0].coveredResources", ["cpu"], "same number of resources"),
    ("ResourceFlavor", "spec", {"tolerations": [{"operator": "Equal"}]}, "operator must be Exists"),
    ("PodMonitor", "spec.podMetricsEndpoints[0].intervall", "15s", "unknown field"),
    ("NetworkPolicy", "spec.egres", [], "Additional properties are not allowed|egres"),
    ("PersistentVolumeClaim", "spec.accessModes", "ReadWriteMany", "accessModes"),
    ("PodDisruptionBudget", "apiVersion", "policy/v1beta1", "has no PodDisruptionBudget"),
]


@needs_definitions
@pytest.mark.real_data
@pytest.mark.parametrize(("kind", "path", "value", "found"), BY_SCHEMAS)
def test_schemas_find_a_planted_error(kind: str, path: str, value: Any, found: str) -> None:
    change = _set(path, value)
    documents = [copy.deepcopy(document) for document in overlay("modern") if document["kind"] == kind]
    for document in documents[:1]:
        change(document)
    problems = _schema_problems(documents[:1])
    assert [problem for problem in problems if re.search(found, problem)] != [], problems
