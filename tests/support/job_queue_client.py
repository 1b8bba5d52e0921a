"""A process connected to a cluster that sends requests to its job queue: a line of JSON in, a line of JSON out."""

import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from cluster.actors import ray_cluster
from cluster.artifacts import errors
from cluster.jobs import client, job
from cluster.jobs.failures import RetryPolicy


def _job(values: dict[str, Any]) -> job.Job:
    inputs = {role: Path(place) for role, place in values["inputs"].items()}
    places = {"inputs": inputs, "out": Path(values["out"]), "after": tuple(values.get("after", ()))}
    return job.Job(**{**values, **places})


def _do(method: str, arguments: list[Any]) -> Any:
    if method == "start":
        return str(client.start(Path(arguments[0]), RetryPolicy(**arguments[1])).ledger)
    if method == "stop":
        return client.stop()
    if method in ("submit", "run"):
        wanted = [_job(values) for values in arguments[0]]
        return client.queue().submit(wanted) if method == "submit" else client.run(wanted, Path(arguments[1]))
    return getattr(client.queue(), method)(*arguments)


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else str(value)


def main() -> None:
    """Write one line to stdout for every line of stdin."""
    answers = sys.stdout  # only answers: Ray prints messages about its nodes to a driver's stdout
    with contextlib.redirect_stdout(sys.stderr), errors.logging_to_stderr(), ray_cluster.connect():
        for line in sys.stdin:
            method, *arguments = json.loads(line)
            try:
                answer = {"answer": _do(method, arguments)}
            except ValueError as error:
                answer = {"error": str(error)}
            print(json.dumps(answer, default=_plain), file=answers, flush=True)


if __name__ == "__main__":
    main()
