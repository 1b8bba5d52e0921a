"""Models that ship in the packages, which recipes name as they name a folder or a model of the Hugging Face Hub."""

from pathlib import Path

from cluster.artifacts.commit import MANIFEST
from cluster.artifacts.recipe import ROOT


def models() -> dict[str, Path]:
    """Name to folder of every teacher that ships."""
    return {path.parent.name: path.parent for path in sorted(ROOT.glob(f"*/teachers/*/{MANIFEST}"))}


def place(name: Path | str) -> Path | str:
    """The folder of a shipped teacher; any other name as it is. What exists under this name comes first."""
    return name if Path(name).exists() else models().get(str(name), name)
