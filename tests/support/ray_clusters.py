"""Ray clusters of several nodes on one machine, started with ``ray start``, whose nodes a test can kill.

As root, every node but the head runs in its own network namespace, connected by a bridge: killing a node first takes
its link down, as a power cut does. Other users' nodes share the loopback address on different ports.
"""

import contextlib
import dataclasses
import functools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import tiny_pipeline
from waiting import wait_until

RAY = str(Path(sys.executable).with_name("ray"))
_NODE_PORTS = (
    "--metrics-export-port",
    "--dashboard-agent-listen-port",
    "--dashboard-agent-grpc-port",
    "--runtime-env-agent-port",
    "--node-manager-port",
    "--object-manager-port",
)
_HEAD_PORTS = ("--port", "--dashboard-port", "--ray-client-server-port", *_NODE_PORTS)
# By default Ray declares a silent node dead after half a minute. The head decides, so it gets these.
_IMPATIENT = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
}


@dataclasses.dataclass(frozen=True)
class Node:
    """A node of a cluster: its ``ray start`` process, its address, and whether it has its own network namespace."""

    process: "subprocess.Popen[bytes]"
    number: int
    address: str
    isolated: bool

    def processes(self) -> list[psutil.Process]:
        """All processes of this node, ``ray start`` last."""
        found = {child.pid: child for child in _family(self.process.pid)}
        if self.isolated:
            listed = subprocess.run(
                ["ip", "netns", "pids", _namespace(self.number)], capture_output=True, text=True, check=False
            )
            for pid in map(int, listed.stdout.split()):
                with contextlib.suppress(psutil.NoSuchProcess):
                    found.setdefault(pid, psutil.Process(pid))
        return sorted(found.values(), key=lambda process: process.pid == self.process.pid)

    def kill(self) -> None:
        """Remove the node without warning: first its network, then all of its processes."""
        if self.isolated:
            self.cut()
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()

    def cut(self) -> None:
        """Take its network link down. Its processes keep running."""
        _ip("link", "set", _cable(self.number), "down")

    def drain(self) -> None:
        """Send SIGTERM, as Kubernetes or a cloud does before it removes a node."""
        self.process.send_signal(signal.SIGTERM)


class Cluster:
    """A running cluster. A process with ``environment`` can connect to it."""

    def __init__(self, folder: Path, isolated: bool) -> None:
        self._folder, self._isolated = folder, isolated
        self.nodes: list[Node] = []
        self._ports = dict(zip(_HEAD_PORTS, free_ports(len(_HEAD_PORTS)), strict=True))
        # Ray's sockets have paths of at most 107 bytes.
        self.temporary = Path(f"/tmp/st-{os.getpid()}")
        (folder / "token").write_text("0123456789abcdef" * 4)
        self.environment = tiny_pipeline.environment(
            RAY_AUTH_MODE="token",
            RAY_AUTH_TOKEN_PATH=str(folder / "token"),
            RAY_USAGE_STATS_ENABLED="0",
            RAY_ADDRESS=f"{self._ip_of(0)}:{self._ports['--port']}",
            RAY_API_SERVER_ADDRESS=f"http://127.0.0.1:{self._ports['--dashboard-port']}",
            **_IMPATIENT,
        )

    def start_head(self, cpus: int, dashboard: bool) -> None:
        if self._isolated:
            self._lay_bridge()
        arguments = ["--head", f"--temp-dir={self.temporary}", f"--include-dashboard={str(dashboard).lower()}"]
        head = self._start(0, cpus, [*arguments, *(f"{name}={port}" for name, port in self._ports.items())])
        if dashboard:
            wait_until(lambda: listening(self._ports["--dashboard-port"]), head.process)

    def add(self, cpus: int = 1) -> Node:
        """Start another node and wait until it is part of the cluster."""
        number = len(self.nodes)
        arguments = [f"--address={self.environment['RAY_ADDRESS']}"]
        if self._isolated:
            self._plug_in(number)
        else:
            ports = free_ports(len(_NODE_PORTS))
            arguments += [f"{name}={port}" for name, port in zip(_NODE_PORTS, ports, strict=True)]
        return self._start(number, cpus, arguments)

    def stop(self) -> None:
        """Kill every remaining node and delete only this cluster's processes, interfaces and files."""
        for node in reversed(self.nodes):
            node.kill()
        if self._isolated:
            for node in self.nodes[1:]:
                _ip("link", "delete", _cable(node.number))
                _ip("netns", "delete", _namespace(node.number))
            _ip("link", "delete", _bridge())
        shutil.rmtree(self.temporary, ignore_errors=True)

    def _lay_bridge(self) -> None:
        _ip("link", "add", _bridge(), "type", "bridge")
        _ip("address", "add", f"{self._ip_of(0)}/24", "dev", _bridge())
        _ip("link", "set", _bridge(), "up")

    def _start(self, number: int, cpus: int, arguments: list[str]) -> Node:
        apart = self._isolated and number > 0
        node_log = self._folder / f"node-{number}.log"
        command = [RAY, "start", "--block", f"--num-cpus={cpus}", f"--node-ip-address={self._ip_of(number)}"]
        command += ["--object-store-memory=100000000", *arguments]
        environment = self.environment
        if apart:
            command = ["ip", "netns", "exec", _namespace(number), *command]
        if self._isolated:
            # Gloo would look for the address of this machine's name, which the namespaces do not have.
            environment = {**environment, "GLOO_SOCKET_IFNAME": "eth0" if apart else _bridge()}
        with node_log.open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        node = Node(process, number, self._ip_of(number), apart)
        self.nodes.append(node)
        wait_until(lambda: b"Ray runtime started" in node_log.read_bytes(), process)
        return node

    def _plug_in(self, number: int) -> None:
        name, cable = _namespace(number), _cable(number)
        _ip("netns", "add", name)
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", cable, "master", _bridge(), "up")
        _ip("-n", name, "address", "add", f"{self._ip_of(number)}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        _ip("-n", name, "link", "set", "lo", "up")

    def _ip_of(self, number: int) -> str:
        return f"10.213.{os.getpid() % 250}.{number + 1}" if self._isolated else "127.0.0.1"


@contextlib.contextmanager
def running_cluster(
    folder: Path, *, nodes: int = 0, head_cpus: int = 0, isolated: bool = False, dashboard: bool = False
) -> Iterator[Cluster]:
    """A head and ``nodes`` nodes of one CPU each. On exit all of their processes have ended."""
    cluster = Cluster(folder, isolated)
    try:
        cluster.start_head(head_cpus, dashboard)
        for _ in range(nodes):
            cluster.add()
        yield cluster
    finally:
        cluster.stop()


@functools.cache
def namespaces_work() -> bool:
    """Whether this user may create network namespaces and bridges."""
    try:
        _ip("netns", "add", _namespace(0))
        _ip("netns", "delete", _namespace(0))
        _ip("link", "add", _bridge(), "type", "bridge")
        _ip("link", "delete", _bridge())
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def training_workers(processes: list[psutil.Process]) -> list[psutil.Process]:
    """The Ray Train workers among the processes, the one that writes the metrics first."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("RayTrainWorker" in part for part in process.cmdline()):
                found.append(process)
    return sorted(found, key=lambda process: not any(f.path.endswith("metrics.jsonl") for f in process.open_files()))


def actors(processes: list[psutil.Process]) -> list[psutil.Process]:
    """The actors of a pool among the processes that work on a unit."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("_Host.work" in part for part in process.cmdline()):
                found.append(process)
    return found


def listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def free_ports(count: int) -> list[int]:
    """Free ports below the range from which the system numbers connections and Ray numbers workers."""
    found: dict[int, socket.socket] = {}
    while len(found) < count:
        tried = socket.socket()
        with contextlib.suppress(OSError):
            port = random.randrange(20_000, 32_000)
            tried.bind(("127.0.0.1", port))
            found[port] = tried
    for bound in found.values():
        bound.close()
    return [*found]


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [*parent.children(recursive=True), parent]
    except psutil.NoSuchProcess:
        return []


def _namespace(number: int) -> str:
    return f"stillhouse-{os.getpid()}-{number}"


def _cable(number: int) -> str:
    return f"sh{os.getpid()}-{number}"


def _bridge() -> str:
    return f"sh{os.getpid()}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
