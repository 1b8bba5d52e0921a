"""Decisions of the queue after a failed attempt, and classification of causes."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import botocore.exceptions
import filelock
import httpx2
import psutil
import pytest
import requests
import torch
from huggingface_hub.errors import OfflineModeIsEnabled

from cluster.artifacts import artifact, commit, errors
from cluster.jobs import worker
from cluster.jobs.failures import Cause, RetryPolicy, is_busy, is_memory, is_outage, next_attempt
from cluster.jobs.job import Job
from cluster.jobs.worker import WorkerProcess, clear
from cluster.telemetry.host_memory import memory_kills

POLICY = RetryPolicy(max_deaths=3, max_outages=4, max_node_losses=5, first_seconds=2, longest_seconds=10)


@pytest.mark.parametrize(
    ("cause", "waits", "ending"),
    [
        ("death", [2, 4], "its worker died 3 times: why"),
        ("node", [2, 4, 8, 10], "its node was lost 5 times: why"),
        ("outage", [2, 4, 8], "a service it needs failed 4 times: why"),
        ("memory", [2], "ran out of memory twice, the second time with half the micro-batch where it has one: why"),
    ],
)
def test_retries_back_off_and_end(cause: Cause, waits: list[float], ending: str) -> None:
    found = [next_attempt(cause, "why", times, POLICY) for times in range(1, len(waits) + 2)]
    assert found == [*((seconds, None) for seconds in waits), (None, ending)]


def test_waiting_for_another_process_has_no_limit() -> None:
    assert [next_attempt("busy", "", times, POLICY) for times in (1, 3, 100, 10**6)] == [
        (2, None),
        (8, None),
        *[(10, None)] * 2,
    ]


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            True,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory for less than one row"), False),
    ],
)
def test_out_of_memory_errors_are_recognized(error: Exception, memory: bool) -> None:
    assert is_memory(error) is memory
    wrapped = RuntimeError("the stage failed")
    wrapped.__cause__ = error
    assert is_memory(wrapped) is memory


@pytest.mark.parametrize(
    ("error", "outage"),
    [
        (ConnectionResetError("reset by peer"), True),
        (OSError(errno.EIO, "Input/output error", "/shared/file"), True),
        (OSError(errno.ENOSPC, "No space left on device", "/shared/file"), False),
        (FileNotFoundError(errno.ENOENT, "No such file", "/shared/file"), False),
        (requests.exceptions.ReadTimeout("the hub does not answer"), True),
        (OfflineModeIsEnabled("offline"), False),
        (httpx2.ConnectError("no route"), True),
        (botocore.exceptions.EndpointConnectionError(endpoint_url="s3://barrel"), True),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("no such task"), False),
        (filelock.Timeout("lock"), False),
    ],
)
def test_outages_are_distinguished_from_user_errors(error: Exception, outage: bool) -> None:
    assert is_outage(error) is outage
    raised = errors.StageError("the data cannot be read")
    raised.__context__, raised.__suppress_context__ = error, True  # as `raise … from None` leaves it
    assert is_outage(raised) is outage


def test_torch_reports_out_of_memory_as_expected() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.int8)
    assert is_memory(raised.value)


def test_a_lease_conflict_is_distinguished_from_a_wrong_artifact(tmp_path: Path) -> None:
    with (
        artifact.create(tmp_path / "out", kind="dataset", inputs={}, recipe={}),
        pytest.raises(commit.ArtifactError) as busy,
        artifact.create(tmp_path / "out", kind="dataset", inputs={}, recipe={}),
    ):
        pytest.fail("two made the same")
    assert isinstance(busy.value.__context__, filelock.Timeout)
    assert is_busy(busy.value)
    with pytest.raises(commit.ArtifactError) as missing:
        artifact.read(tmp_path / "nothing")
    assert not is_busy(missing.value)


ORPHAN = """
import os, subprocess, sys, time
os.setpgrp()
child = subprocess.Popen(["sleep", "1000"])
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_only_the_processes_of_a_dead_worker_are_killed() -> None:
    worker = subprocess.Popen([sys.executable, "-c", ORPHAN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert worker.stdin is not None
    assert worker.stdout is not None
    with worker, worker.stdin, worker.stdout:
        child = psutil.Process(int(worker.stdout.readline()))
        about: WorkerProcess = {
            "host": "here",
            "process": worker.pid,
            "created": psutil.Process(worker.pid).create_time(),
            "memory_kills": memory_kills(),
        }
        worker.kill()
        worker.wait()
        assert child.is_running()
        assert clear(about) is None, "the kernel killed no process"
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
        ours: WorkerProcess = {"host": "here", "process": os.getpid(), "created": 0.0, "memory_kills": None}
        assert clear(ours) is None, "a live process has the same process id"
        kills = memory_kills()
        if kills is not None:
            assert "GiB are free on the node" in str(clear({**about, "memory_kills": kills - 1}))


def test_errors_that_are_not_unicode_can_be_recorded(tmp_path: Path) -> None:
    corpus = os.fsdecode(bytes(tmp_path) + b"/\xff")
    log = tmp_path / "log"
    job = Job("odd", "toy_stage", {}, {"corpus": Path(corpus)}, tmp_path / "out", cwd=tmp_path)
    result = worker.attempt(worker.Call("1", job, log, halves=False, first=True))
    assert result.status == "user"
    assert f"{tmp_path}/\\udcff does not exist" in str(result.error)
    assert f"{tmp_path}/\\udcff does not exist" in log.read_text()
