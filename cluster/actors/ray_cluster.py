"""Connecting to Ray: the cluster that is there, or one of our own for as long as it is needed."""

import contextlib
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator

from cluster.artifacts.errors import StageError
from cluster.telemetry.error_text import first_line

ADDRESS = "RAY_ADDRESS"
PROBE_SECONDS = 10.0


@contextlib.contextmanager
def connect(cpus: int | None = None) -> Iterator[None]:
    """Be connected to Ray inside the block.

    Inside a process that is connected already this does nothing. With ``RAY_ADDRESS`` set (as in every Ray job) it
    joins that cluster and leaves it at the end; otherwise it starts a cluster in this machine with ``cpus`` CPUs (all
    of them by default) and stops it at the end. Meanwhile SIGTERM interrupts this command.

    Raises:
        StageError: the cluster at ``RAY_ADDRESS`` cannot be reached or does not accept us.
    """
    import ray  # after the environment is settled by whoever calls; and slow to import

    if ray.is_initialized():
        yield
        return
    address = os.environ.get(ADDRESS, "")
    if address and address != "local":
        _join(address)
    else:
        _start(cpus)
    try:
        with _sigterm_interrupts():
            yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Inside the block SIGTERM (``ray job stop``) ends this command as Ctrl-C does: Ray would abort it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def is_connected() -> bool:
    """Whether this process is part of a Ray cluster, or will be as soon as it connects."""
    import ray

    address = os.environ.get(ADDRESS, "")
    return bool(ray.is_initialized() or (address and address != "local"))


def is_private() -> bool:
    """Whether the cluster this process is connected to was started by :func:`connect`, and ends with its block."""
    return os.environ.get(ADDRESS, "") in ("", "local")


def _join(address: str) -> None:
    import ray

    if address.startswith(("http://", "https://")):
        raise StageError(
            f"{ADDRESS}={address} is the address of a dashboard: submit this command with `ray job submit`, "
            f"or set {ADDRESS} to the head's host:6379"
        )
    if "://" not in address and address != "auto":
        _probe(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise StageError(
            f"the Ray cluster at {ADDRESS}={address} cannot be joined ({first_line(error)}): check the address, and "
            "RAY_AUTH_MODE and the token if it asks for one"
        ) from None


def _probe(address: str) -> None:
    """Knock first: Ray waits two minutes for a head that is not there and then ends the process."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=PROBE_SECONDS).close()
    except (OSError, ValueError) as error:
        raise StageError(
            f"no Ray cluster answers at {ADDRESS}={address} ({error}): start it, correct the address to host:port, "
            f"or unset {ADDRESS} to run on this machine alone"
        ) from None


def _start(cpus: int | None) -> None:
    """A cluster of this machine alone: no dashboard, no usage reports, and only for holders of a token of its own."""
    import ray
    from ray._raylet import Config  # type: ignore[attr-defined]

    if "RAY_AUTH_MODE" not in os.environ:
        # Left unset, Ray would write a token into the home folder that changes how later clusters behave there.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        Config.initialize("")  # Ray read the environment when it was imported; this is how it reads it again
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # Ray's coming default; silences a warning per start
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
