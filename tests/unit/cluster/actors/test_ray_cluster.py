"""Connecting to a Ray cluster: refusals say what is wrong."""

import os
import subprocess
import sys

import ray

JOIN = """
import ray
ray.__version__ = "2.0.0"
from cluster.actors import ray_cluster
from cluster.artifacts import errors
with errors.errors_for_people(), ray_cluster.connect():
    pass
"""


def test_another_version_of_ray_is_not_blamed_on_the_address(ray_of_three_cpus: None) -> None:
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    done = subprocess.run([sys.executable, "-c", JOIN], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert "version" in line
    assert "2.0.0" in line
    assert "RAY_AUTH_MODE" not in line
