"""Which packets network policies allow, which rights roles grant, and which ports services expose."""

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from manifests import NAMESPACE, Document, Pod, all_pods, cluster_spec, label, of_kind
from service_rules import labels_of

SPACE = "kubernetes.io/metadata.name"
OWN_CHOICE = 31234
"""A port in the range from which Ray, NCCL and gloo choose theirs."""
SCRAPED = {"metrics", "training", "queue", "pool", "probes"}
DANGEROUS = {"*", "secrets", "pods/exec", "pods/attach", "serviceaccounts/token", "roles", "rolebindings"}


@dataclass(frozen=True, eq=False)
class Place:
    """Source or destination of packets: a pod, or an address outside of every pod."""

    name: str
    labels: dict[str, str] = field(default_factory=dict)
    space: str = ""
    address: str = ""
    ports: dict[str, int] = field(default_factory=dict)

    @property
    def cluster(self) -> str:
        return self.name.partition(":")[0]


API, METADATA = Place("the API server", address="10.96.0.1"), Place("metadata", address="169.254.169.254")
PUBLIC = Place("a public address", address="93.184.215.14")
DNS = Place("DNS", {"k8s-app": "kube-dns"}, "kube-system")
OPERATOR = Place("the operator", {"app.kubernetes.io/name": "kuberay-operator"}, "kuberay-system")
PROMETHEUS = Place("Prometheus", {"app.kubernetes.io/name": "prometheus"}, "monitoring")
STRANGER = Place("a stranger", {"stillhouse/role": "submitter", "stillhouse/instance": "service"}, "default")


def problems(documents: Iterable[Document]) -> Iterator[str]:
    known = list(documents)
    policies = [document["spec"] for document in of_kind(known, "NetworkPolicy")]
    for source, target, port, wanted in _flows(all_pods(known)):
        for protocol in ("UDP", "TCP") if target is DNS else ("TCP",):
            if _passes(policies, source, target, port, protocol) != wanted:
                yield f"{source.name} {'must' if wanted else 'may not'} reach {target.name} at {port}/{protocol}"
    yield from _rights(known)
    yield from _doors(known)


def _flows(found: list[Pod]) -> Iterator[tuple[Place, Place, int, bool]]:
    """Packets from a source to a destination port, and whether policies must allow or block them."""
    places = {_place(pod): pod.role for pod in found}
    ray = [place for place, role in places.items() if role in ("head", "worker")]
    for place in ray:
        asks = places[place] == "head" and place.cluster.startswith("RayCluster")
        yield from [(place, DNS, 53, True), (place, PUBLIC, 443, True), (place, API, 443, asks)]
        yield from [(place, PUBLIC, 80, False), (place, METADATA, 80, False), (place, METADATA, 443, False)]
        for name, port in [*place.ports.items(), ("", OWN_CHOICE)]:
            yield from [(STRANGER, place, port, False), (PUBLIC, place, port, False)]
            yield PROMETHEUS, place, port, name in SCRAPED
            yield OPERATOR, place, port, name == "dashboard"
        yield from ((place, one, OWN_CHOICE, one.cluster == place.cluster) for one in ray if one is not place)
    heads = [place for place in ray if places[place] == "head"]
    for place in (one for one, role in places.items() if role == "submitter"):
        yield place, DNS, 53, True
        yield from ((place, head, head.ports.get("dashboard", 8265), head.cluster == place.cluster) for head in heads)
    for place in (one for one, role in places.items() if role == "other"):
        for one in ray:
            asks = one in heads and one.cluster.startswith("RayCluster")
            yield from ((one, place, port, asks) for port in place.ports.values())


def _place(pod: Pod) -> Place:
    ports = {port["name"]: port["containerPort"] for port in pod.main.get("ports", [])}
    return Place(pod.where, labels_of(pod), NAMESPACE, ports=ports)


def _passes(policies: list[Document], source: Place, target: Place, port: int, protocol: str) -> bool:
    """A selected pod sends and receives only what some policy allows; our policies do not limit outside addresses."""
    sides = [("Egress", "egress", "to", source, target), ("Ingress", "ingress", "from", target, source)]
    for kind, rules, peers, own, other in sides:
        found = [policy for policy in policies if kind in policy["policyTypes"] and _is_meant(own, policy)]
        allowed = [rule for policy in found for rule in policy.get(rules, [])]
        if found and not any(
            (not rule.get(peers) or any(_is_peer(other, peer) for peer in rule[peers]))
            and (not rule.get("ports") or any(_is_port(target, port, protocol, one) for one in rule["ports"]))
            for rule in allowed
        ):
            return False
    return True


def _is_meant(place: Place, policy: Document) -> bool:
    return place.space == NAMESPACE and _holds(policy["podSelector"], place.labels)


def _is_peer(place: Place, peer: Document) -> bool:
    if block := peer.get("ipBlock"):
        ranges = [ipaddress.ip_network(text) for text in (block["cidr"], *block.get("except", []))]
        hits = [bool(place.address) and ipaddress.ip_address(place.address) in one for one in ranges]
        return hits[0] and not any(hits[1:])
    spaces = peer.get("namespaceSelector", {"matchLabels": {SPACE: NAMESPACE}})
    return bool(place.space) and _holds(spaces, {SPACE: place.space}) and _holds(peer.get("podSelector"), place.labels)


def _is_port(target: Place, port: int, protocol: str, rule: Document) -> bool:
    named = target.ports.get(rule["port"]) if isinstance(rule.get("port"), str) else rule.get("port", port)
    return rule.get("protocol", "TCP") == protocol and named == port


def _holds(selector: Document | None, labels: dict[str, str]) -> bool:
    assert (selector or {}).keys() <= {"matchLabels"}, f"{selector}: a selector these rules do not know"
    return bool((selector or {}).get("matchLabels", {}).items() <= labels.items())


def _rights(known: list[Document]) -> Iterator[str]:
    """Role bindings name existing roles and our groups, and no role grants all rights."""
    for document in of_kind(known, "Role", "ClusterRole"):
        for rule in document["rules"]:
            if dangerous := sorted({*rule.get("resources", []), *rule["verbs"]} & DANGEROUS):
                yield f"{label(document)}: may have no right to {', '.join(dangerous)}"
    roles = {document["metadata"]["name"] for document in of_kind(known, "Role")}
    for document in of_kind(known, "RoleBinding", "ClusterRoleBinding"):
        role = document["roleRef"]
        if role["kind"] != "Role" or role["name"] not in roles:
            yield f"{label(document)}: there is no Role {role['name']} here"
        for subject in document["subjects"]:
            if subject["name"].startswith("system:"):
                yield f"{label(document)}: {subject['name']} is everybody"
    for document in of_kind(known, "ServiceAccount"):
        if document.get("automountServiceAccountToken") is not False:
            yield f"{label(document)}: automountServiceAccountToken must be false"


def _doors(known: list[Document]) -> Iterator[str]:
    """No service is reachable from outside the cluster, and every service selects a pod that serves its port."""
    places = [_place(pod) for pod in all_pods(known)]
    for document in known:
        head = (cluster_spec(document) or {}).get("headGroupSpec", {})
        if head.get("serviceType", "ClusterIP") != "ClusterIP" or head.get("enableIngress"):
            yield f"{label(document)}: the head may only be reached from inside: ClusterIP, no ingress"
    for document in of_kind(known, "Ingress"):
        yield f"{label(document)}: nothing is reached from outside"
    for document in of_kind(known, "Service"):
        spec = document["spec"]
        if spec.get("type", "ClusterIP") != "ClusterIP":
            yield f"{label(document)}: type must be ClusterIP"
        behind = [place for place in places if spec["selector"].items() <= place.labels.items()]
        served = {port for place in behind for port in (*place.ports, *place.ports.values())}
        wanted = [port.get("targetPort", port["port"]) for port in spec["ports"]]
        yield from (f"{label(document)}: no pod behind it serves {port}" for port in wanted if port not in served)
