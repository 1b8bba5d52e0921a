"""Runs the Python of a model card as a reader would: copied into a process of its own, without network."""

import os
import re
import subprocess
import sys
from pathlib import Path


def snippet_output(card: str, folder: Path) -> str:
    """What the first block of Python in a card prints, started in ``folder``; fails if it fails."""
    found = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert found is not None, "the card has no Python"
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", found[1]],
        cwd=folder,
        capture_output=True,
        text=True,
        env=clean | {"HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
