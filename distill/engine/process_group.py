"""The process group: joins the workers of a run and leaves it in order."""

import atexit
import os
import time
from dataclasses import dataclass

import deepspeed
import torch

from cluster.models.precision import Precision, check_precision
from cluster.telemetry import host_memory


@dataclass(frozen=True)
class Workers:
    """This process and the size of its process group."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @property
    def is_main_process(self) -> bool:
        return self.rank == 0

    @property
    def memory(self) -> int:
        """Memory of this worker in bytes: its GPU's, or its share of the machine's."""
        if self.device.type == "cuda":
            return int(torch.cuda.get_device_properties(self.device).total_memory)
        return host_memory.total() // self.local_world_size

    @property
    def free_memory(self) -> int:
        """The part of :attr:`memory` in bytes that nothing uses now."""
        if self.device.type == "cuda":
            return int(torch.cuda.mem_get_info(self.device)[0])
        return host_memory.available() // self.local_world_size

    @property
    def local_world_size(self) -> int:
        """Workers on this node."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"


def gpu_memory(device: torch.device) -> tuple[int, int]:
    """Bytes of a GPU, and those that its driver, libraries and other processes use."""
    free, total = torch.cuda.mem_get_info(device)
    return total, total - free - torch.cuda.memory_reserved(device)


def check_device(precision: Precision, device: torch.device) -> None:
    """Refuse a precision that the device lacks; DeepSpeed knows whether the CPU has fp16.

    Raises:
        PrecisionError: names a precision that the device has.
    """
    check_precision(precision, device, cpu_has_fp16=deepspeed.accelerator.get_accelerator().is_fp16_supported())


def join(threads: int) -> Workers:
    """Join the process group that torchrun or Ray started (``RANK``, ``WORLD_SIZE``), or create one of one process.

    May be called again in the same process. The group lasts as long as the process, because DeepSpeed keeps handles on
    it.
    """
    torch.set_num_threads(threads)
    cuda = torch.cuda.is_available()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank % torch.cuda.device_count()) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if not torch.distributed.is_initialized():
        if not cuda:  # NCCL would wait for failed peers
            atexit.register(_leave)
        backend = "nccl" if cuda else "gloo"
        if "RANK" in os.environ:
            torch.distributed.init_process_group(backend)
        else:
            store = torch.distributed.HashStore()  # type: ignore[attr-defined]
            torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed requires it
    deepspeed.init_distributed(verbose=False)
    return Workers(torch.distributed.get_rank(), local_rank, torch.distributed.get_world_size(), device)


def _leave() -> None:
    """Leave the group at the end of the process."""
    torch.distributed.destroy_process_group()
    # Gloo's threads live on, because DeepSpeed keeps the group. A thread that releases its tensors needs the
    # interpreter; if that has ended, the process dies by SIGABRT. Sleeping gives the threads the interpreter.
    time.sleep(0.2)
