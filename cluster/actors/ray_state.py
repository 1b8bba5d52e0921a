"""What Ray knows about the nodes of its cluster."""

import ray

HEAD = "node:__internal_head__"
"""A resource that only the head has, also one that was started again."""


def alive() -> dict[str, dict[str, float]]:
    """Everything each living node has."""
    return {node["NodeID"]: dict(node["Resources"]) for node in ray.nodes() if node["Alive"]}
