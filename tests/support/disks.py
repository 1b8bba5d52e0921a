"""A disk small enough to be filled, where this user may mount one."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A file system of its own at ``folder``; skips the test where none can be mounted."""
    folder.mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        subprocess.run(mount, check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("this user may not mount a file system to fill")
    try:
        yield folder
    finally:
        # Lazily: an assertion that failed may have left a file open.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
