"""The process group: joins the workers of a run and leaves it in order."""

import atexit
import os
import time
from dataclasses import dataclass

import deepspeed
import torch

from cluster.telemetry import host_memory


@dataclass(frozen=True)
class Workers:
    """The processes of a run and this one among them."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @property
    def is_main_process(self) -> bool:
        return self.rank == 0

    @property
    def memory(self) -> int:
        """Bytes of memory there are for this worker: its GPU's, or its share of the machine's."""
        if self.device.type == "cuda":
            return int(torch.cuda.get_device_properties(self.device).total_memory)
        return host_memory.total() // self.local_world_size

    @property
    def local_world_size(self) -> int:
        """Workers on this node."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"


def join(threads: int) -> Workers:
    """Join the processes that torchrun or Ray started (``RANK``, ``WORLD_SIZE``), or be the only one.

    May be called again in a process that has joined. The group lasts as long as the process: DeepSpeed keeps handles
    on it and could not live through a second one.
    """
    torch.set_num_threads(threads)
    cuda = torch.cuda.is_available()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank % torch.cuda.device_count()) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if not torch.distributed.is_initialized():
        if not cuda:  # NCCL would wait for peers that may have failed
            atexit.register(_leave)
        backend = "nccl" if cuda else "gloo"
        if "RANK" in os.environ:
            torch.distributed.init_process_group(backend)
        else:
            store = torch.distributed.HashStore()  # type: ignore[attr-defined]
            torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists
    deepspeed.init_distributed(verbose=False)
    return Workers(torch.distributed.get_rank(), local_rank, torch.distributed.get_world_size(), device)


def _leave() -> None:
    """Leave the other workers, at the end of the process."""
    torch.distributed.destroy_process_group()
    # Gloo's threads live on, for DeepSpeed keeps the group. One that has just done its work lets go of its tensors, for
    # which it needs the interpreter: where that is gone first, the process ends by SIGABRT, with all done. Asleep, we
    # let it.
    time.sleep(0.2)
