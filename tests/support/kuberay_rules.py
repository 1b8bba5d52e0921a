"""What KubeRay 1.7 refuses beyond its schema: its validation rules for the fields that our manifests use.

Features that need an alpha gate are refused: our manifests must work with the default gates.
"""

import re
from collections.abc import Iterable, Iterator

import yaml
from manifests import Document, cluster_spec, label, of_kind

NAME_LETTERS = {"RayCluster": 53, "RayJob": 47}
ALPHA = ("networkPolicy", "tlsOptions", "historyServerOptions")
TOKEN_SINCE = (2, 52)
PROBED_SINCE = (2, 53)
"""Since this version the operator probes over HTTP; earlier ones need wget, which our image does not have."""
RESOURCE_PARAMETERS = ("num-cpus", "num-gpus", "memory", "resources")
AUTOSCALER_VARIABLE = "RAY_enable_autoscaler_v2"


def problems(documents: Iterable[Document]) -> Iterator[str]:
    for document in of_kind(documents, "RayCluster", "RayJob"):
        for problem in _document(document):
            yield f"{label(document)}: {problem}"


def _document(document: Document) -> Iterator[str]:
    name, limit = document["metadata"]["name"], NAME_LETTERS[document["kind"]]
    if len(name) > limit:
        yield f"a name may have {limit} letters"
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield "a name must be a DNS-1035 label"
    if document["kind"] == "RayJob":
        yield from _job(document["spec"])
    if (spec := cluster_spec(document)) is not None:
        annotations = document["metadata"].get("annotations", {})
        if annotations.get("ray.io/ft-enabled") and "gcsFaultToleranceOptions" in spec:
            yield "the annotation ray.io/ft-enabled and gcsFaultToleranceOptions are both set"
        yield from _cluster(spec, document["kind"])


def _job(spec: Document) -> Iterator[str]:
    selected, stays = bool(spec.get("clusterSelector")), not spec.get("shutdownAfterJobFinishes")
    mode, retries = spec.get("submissionMode", "K8sJobMode"), spec.get("backoffLimit", 0)
    rules = spec.get("deletionStrategy", {}).get("deletionRules")
    if stays and spec.get("suspend"):
        yield "suspend needs shutdownAfterJobFinishes"
    if stays and spec.get("ttlSecondsAfterFinished", 0) > 0:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if rules and not stays:
        yield "deletionRules and shutdownAfterJobFinishes exclude each other"
    if not selected and "rayClusterSpec" not in spec:
        yield "one of rayClusterSpec and clusterSelector must be set"
    if selected and not spec["clusterSelector"].get("ray.io/cluster"):
        yield "clusterSelector must name ray.io/cluster"
    if selected and (spec.get("suspend") or retries > 0 or mode == "SidecarMode"):
        yield "clusterSelector excludes suspend, backoffLimit and SidecarMode"
    if mode == "InteractiveMode" and retries > 0:
        yield "InteractiveMode excludes backoffLimit"
    if mode == "SidecarMode" and ("submitterPodTemplate" in spec or "submitterConfig" in spec):
        yield "SidecarMode excludes submitterPodTemplate and submitterConfig"
    if spec.get("activeDeadlineSeconds", 1) <= 0 or retries < 0 or spec.get("ttlSecondsAfterFinished", 0) < 0:
        yield "deadlines must be positive, limits not negative"
    if not isinstance(yaml.safe_load(spec.get("runtimeEnvYAML", "{}")), dict):
        yield "runtimeEnvYAML must be a mapping"
    if spec.get("rayClusterSpec", {}).get("authOptions", {}).get("enableK8sTokenAuth"):
        yield "a RayJob has no authentication by Kubernetes tokens"


def _cluster(spec: Document, kind: str) -> Iterator[str]:
    yield from (f"{name} needs an alpha feature gate" for name in ALPHA if name in spec)
    if kind == "RayJob" and "upgradeStrategy" in spec:
        yield "upgradeStrategy is for a RayCluster of its own"
    yield from _authentication(spec)
    yield from _fault_tolerance(spec)
    yield from _group("head", spec["headGroupSpec"])
    for group in spec.get("workerGroupSpecs", []):
        yield from _group(group["groupName"], group)
        yield from _worker_group(group, spec)
    yield from _autoscaling(spec)


def _authentication(spec: Document) -> Iterator[str]:
    options = spec.get("authOptions", {})
    if options.get("mode") == "token":
        found = re.match(r"(\d+)\.(\d+)", spec.get("rayVersion", ""))
        if found is None:
            yield "token authentication needs rayVersion"
        elif (int(found[1]), int(found[2])) < TOKEN_SINCE:
            yield f"token authentication needs Ray 2.52, rayVersion is {spec['rayVersion']}"
        elif (int(found[1]), int(found[2])) < PROBED_SINCE:
            yield f"the operator probes Ray {spec['rayVersion']} with wget, which the image does not have"
        if options.get("enableK8sTokenAuth") and options.get("secretName"):
            yield "enableK8sTokenAuth and secretName exclude each other"
    elif options.get("enableK8sTokenAuth"):
        yield "enableK8sTokenAuth needs authOptions.mode token"


def _fault_tolerance(spec: Document) -> Iterator[str]:
    options, head = spec.get("gcsFaultToleranceOptions"), spec["headGroupSpec"]
    variables, parameters = _variables(head), head.get("rayStartParams", {})
    if options is None and "RAY_REDIS_ADDRESS" in variables:
        yield "RAY_REDIS_ADDRESS needs gcsFaultToleranceOptions"
    if "redis-username" in parameters or "REDIS_USERNAME" in variables:
        yield "the user of Redis belongs into gcsFaultToleranceOptions"
    if options is None:
        return
    if "redis-password" in parameters or variables & {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS"}:
        yield "address and password of Redis belong into gcsFaultToleranceOptions alone"
    if options.get("backend", "redis") == "rocksdb":
        yield "gcsFaultToleranceOptions.backend rocksdb needs an alpha feature gate"
    elif "storage" in options:
        yield "gcsFaultToleranceOptions.storage is for the backend rocksdb"


def _group(name: str, group: Document) -> Iterator[str]:
    parameters = group.get("rayStartParams", {})
    if "labels" in parameters:
        yield f"{name}: rayStartParams.labels is not supported: write labels of the group"
    if group.get("resources") and any(parameters.get(word) for word in RESOURCE_PARAMETERS):
        yield f"{name}: resources are set in rayStartParams and in the group"


def _worker_group(group: Document, spec: Document) -> Iterator[str]:
    name, least, most = group["groupName"], group.get("minReplicas"), group.get("maxReplicas")
    if not spec.get("enableInTreeAutoscaling") and (least is None or most is None):
        yield f"{name}: without autoscaling minReplicas and maxReplicas must both be set"
    least, most = least or 0, 2**31 - 1 if most is None else most
    if not 0 <= least <= most:
        yield f"{name}: minReplicas {least} is more than maxReplicas {most}, or negative"
    if not least <= group.get("replicas", 0) <= most:
        yield f"{name}: replicas {group.get('replicas', 0)} are not between minReplicas and maxReplicas"
    second = spec.get("autoscalerOptions", {}).get("version") == "v2"
    if not second and ("idleTimeoutSeconds" in group or group.get("priority")):
        yield f"{name}: idleTimeoutSeconds and priority need the autoscaler v2"


def _autoscaling(spec: Document) -> Iterator[str]:
    options = spec.get("autoscalerOptions", {})
    if any(variable["name"] == "KUBERAY_GEN_AUTOSCALER_START_CMD" for variable in options.get("env", [])):
        yield "KUBERAY_GEN_AUTOSCALER_START_CMD is KubeRay's own"
    named = AUTOSCALER_VARIABLE in _variables(spec["headGroupSpec"])
    if named and (not spec.get("enableInTreeAutoscaling") or "version" in options):
        yield f"{AUTOSCALER_VARIABLE} is set: write autoscalerOptions.version"
    if not spec.get("enableInTreeAutoscaling"):
        return
    for name, group in _groups(spec):
        if group.get("suspend"):
            yield f"{name}: a group cannot be suspended with autoscaling"
        policy = group["template"]["spec"].get("restartPolicy", "Never")
        if options.get("version") == "v2" and policy != "Never":
            yield f"{name}: restartPolicy must be Never under the autoscaler v2"


def _groups(spec: Document) -> Iterator[tuple[str, Document]]:
    yield "head", spec["headGroupSpec"]
    yield from ((group["groupName"], group) for group in spec.get("workerGroupSpecs", []))


def _variables(group: Document) -> set[str]:
    return {variable["name"] for variable in group["template"]["spec"]["containers"][0].get("env", [])}
