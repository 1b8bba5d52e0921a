"""Nodes of the connected Ray cluster, by hex id. No other module reads Ray's private state."""

from collections.abc import Mapping

import ray
from ray._private import state  # Ray 2.60 has no public API for free resources per node, or for draining nodes

HEAD = "node:__internal_head__"
"""Resource that only the head node has, also after it restarts."""


def alive_nodes() -> dict[str, dict[str, float]]:
    """Total resources of every node that is alive."""
    return {node["NodeID"]: dict(node["Resources"]) for node in ray.nodes() if node["Alive"]}


def free_resources() -> dict[str, Mapping[str, float]]:
    """Free resources per node; Ray updates them about a second late."""
    return dict(state.available_resources_per_node())


def reserved_cpus() -> float | None:
    """CPUs that Ray has reserved for this process if it is an actor, as that of a job in the queue; None for others."""
    context = ray.get_runtime_context()
    return None if context.get_actor_id() is None else float(context.get_assigned_resources().get("CPU", 0))


def this_node() -> str:
    """The node on which this process runs."""
    return str(ray.get_runtime_context().get_node_id())


def draining_nodes() -> set[str]:
    """Nodes that are being drained."""
    return set(state.state.get_draining_nodes())
