"""Check during its build that an image can run on its GPUs, though the build machine has none.

::

    python -m deploy.verify_image --version 2.13.0+cu126 --architectures sm_70

torch must have this version. Both torch and DeepSpeed's FusedAdam, whose kernels ``cuobjdump`` of the CUDA toolkit
lists, must have kernels for every architecture. Without architectures the check ignores CUDA.
"""

import argparse
import importlib.util
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

from cluster.artifacts import errors


def main(arguments: Sequence[str] | None = None) -> None:
    """Exits 1 with one line if something is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.verify_image", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--version", required=True, help="of torch, with its build: 2.13.0+cu126")
    parser.add_argument("--architectures", default="", help="of the GPUs, separated by spaces: sm_70")
    options = parser.parse_args(arguments)
    with errors.errors_for_people():
        check(options.version, options.architectures.split())
    print(f"torch {torch.__version__}: kernels for {options.architectures or 'the processor'}")


def check(version: str, architectures: Sequence[str]) -> None:
    """
    Raises:
        StageError: names what is missing.
    """
    if torch.__version__ != version:
        raise errors.StageError(f"torch is {torch.__version__}, not {version}: take it from the index of that build")
    _check_kernels("torch", torch.cuda.get_arch_list(), architectures)
    if architectures:
        library = fused_adam()
        listed = subprocess.run(["cuobjdump", "--list-elf", library], capture_output=True, text=True, check=True)
        _check_kernels(library.name, compiled_for(listed.stdout), architectures)


def fused_adam() -> Path:
    """DeepSpeed's compiled FusedAdam, found without importing DeepSpeed, which searches for GPUs."""
    found = importlib.util.find_spec("deepspeed")
    folders = [Path(folder) for folder in (found and found.submodule_search_locations) or ()]
    libraries = [library for folder in folders for library in folder.glob("ops/adam/fused_adam_op*.so")]
    if not libraries:
        raise errors.StageError("DeepSpeed has no compiled FusedAdam: install it with DS_BUILD_FUSED_ADAM=1")
    return libraries[0]


def compiled_for(listing: str) -> list[str]:
    """Architectures in what ``cuobjdump --list-elf`` prints: ``ELF file    1: fused_adam.1.sm_70.cubin``."""
    return sorted(set(re.findall(r"\.(sm_\d+[a-z]?)\.cubin", listing)))


def _check_kernels(what: str, compiled: Sequence[str], wanted: Sequence[str]) -> None:
    if missing := [name for name in wanted if name not in compiled]:
        there = ", ".join(compiled) or "none"
        raise errors.StageError(f"{what} has no kernels for {', '.join(missing)} (it has {there})")


if __name__ == "__main__":
    main()
