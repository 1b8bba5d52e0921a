"""A file system of a few kilobytes, for tests of a full disk."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """Mount a tmpfs of this size at ``folder``; skip the test if this user may not mount."""
    folder.mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        subprocess.run(mount, check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("this user may not mount a file system to fill")
    try:
        yield folder
    finally:
        # Unmount lazily: a failed assertion may have left a file open.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
