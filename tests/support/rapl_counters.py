"""Energy counters as the kernel shows them under ``/sys/class/powercap``."""

from pathlib import Path


def domain(folder: Path, name: str, path: str, microjoules: int) -> Path:
    place = folder / path
    place.mkdir(parents=True)
    (place / "name").write_text(f"{name}\n")
    (place / "max_energy_range_uj").write_text("1000000\n")
    (place / "energy_uj").write_text(f"{microjoules}\n")
    return place / "energy_uj"
