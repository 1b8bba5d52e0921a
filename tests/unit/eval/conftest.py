"""Result folders for the tests of results and reports."""

from pathlib import Path

import pytest
from result_folders import pipeline, suite


@pytest.fixture
def small_results(tmp_path: Path) -> Path:
    """Results of a small pipeline, which a test may change."""
    return pipeline(tmp_path / "out")


@pytest.fixture
def complete_results(tmp_path: Path) -> Path:
    """Results of a suite with every measurement, which a test may change."""
    return suite(tmp_path / "out")
