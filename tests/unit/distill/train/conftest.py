"""The folder that the tests of training take their inputs from."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def folder(training_folder: Path) -> Path:
    """With the artifacts ``tokens`` and ``teacher``, and ``bert``, the teacher's model folder."""
    return training_folder
