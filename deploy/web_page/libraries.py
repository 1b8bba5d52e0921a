"""Fetch the libraries of the measuring page: the npm packages pinned in ``deploy/browser/package-lock.json``.

::

    python -m deploy.web_page.libraries --out build/browser

npm checks every package against the lock's digests and runs none of their scripts. The folder has only the files that
a browser loads, the list of licenses, and ``libraries.json`` with versions and digests::

    {"packages": {"onnxruntime-web": "1.30.0", …}, "files": {"ort.wasm.min.mjs": "<sha256>", …}}

Only this step needs a network.
"""

import argparse
import json
import logging
import shutil
import subprocess
import tempfile
from pathlib import Path

from cluster.artifacts import errors
from cluster.storage import filesystem

logger = logging.getLogger("stillhouse")

BROWSER = Path(__file__).parents[1] / "browser"
LIBRARIES = "libraries.json"
LICENSES = "LICENCES.md"

FILES = {
    "@huggingface/tokenizers": ("tokenizers.min.mjs",),
    "onnxruntime-web": (
        "ort.wasm.min.mjs",
        "ort-wasm-simd-threaded.mjs",
        "ort-wasm-simd-threaded.wasm",
        # For GPUs; the page fetches these only on a phone that has one.
        "ort.webgpu.min.mjs",
        "ort-wasm-simd-threaded.asyncify.mjs",
        "ort-wasm-simd-threaded.asyncify.wasm",
    ),
}
"""Package to the files of its ``dist`` that the page uses."""


def versions() -> dict[str, str]:
    """The pinned packages and their versions."""
    return dict(json.loads((BROWSER / "package.json").read_text(encoding="utf-8"))["dependencies"])


def vendor(out: Path) -> Path:
    """Fetch the packages into the folder ``out``, all or nothing; does nothing if they are already there.

    Raises:
        StageError: npm is not installed or failed, or ``out`` has other contents.
    """
    if out.exists():
        check(out)
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as work:
        for name in ("package.json", "package-lock.json"):
            shutil.copyfile(BROWSER / name, Path(work) / name)
        _install(Path(work))
        chosen = Path(work) / "chosen"
        chosen.mkdir()
        for package, names in FILES.items():
            for name in names:
                shutil.copyfile(Path(work) / "node_modules" / package / "dist" / name, chosen / name)
        shutil.copyfile(BROWSER / LICENSES, chosen / LICENSES)
        files = {path.name: filesystem.file_sha256(path) for path in sorted(chosen.iterdir())}
        filesystem.write_json(chosen / LIBRARIES, {"packages": versions(), "files": files})
        chosen.rename(out)
    return out


def check(folder: Path) -> dict[str, str]:
    """The packages in a folder made by :func:`vendor`, and their versions.

    Raises:
        StageError: the folder is absent, has other versions or other files, or was changed.
    """
    fetch = f"run python -m deploy.web_page.libraries --out {folder}"
    if not folder.exists():
        raise errors.StageError(f"the libraries of the page are not at {folder}: {fetch}")
    again = f"delete it and {fetch}"
    if not (folder / LIBRARIES).is_file():
        raise errors.StageError(f"{folder} has no {LIBRARIES}, so it holds no libraries of the page: {again}")
    try:
        said = json.loads((folder / LIBRARIES).read_text(encoding="utf-8"))
        packages, files = dict(said["packages"]), dict(said["files"])
    except (ValueError, KeyError, TypeError):
        raise errors.StageError(f"{folder / LIBRARIES} was cut or changed: {again}") from None
    if packages != versions():
        raise errors.StageError(f"{folder} has other versions than {BROWSER / 'package.json'}: {again}")
    # The page takes the whole folder.
    if others := sorted({path.name for path in folder.iterdir()} - {LIBRARIES, *files}):
        raise errors.StageError(f"{folder / others[0]} is no library of the page: {again}")
    for name in sorted({name for names in FILES.values() for name in names} | {*files}):
        digest = files.get(name)
        if not (folder / name).is_file() or filesystem.file_sha256(folder / name) != digest:
            raise errors.StageError(f"{folder / name} is missing or was changed: {again}")
    return packages


def _install(work: Path) -> None:
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    logger.info("fetching %s", ", ".join(f"{name} {version}" for name, version in versions().items()))
    try:
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise errors.StageError("npm is not installed: install it (on Debian: apt-get install npm)") from None
    if done.returncode != 0:
        lines = [line.removeprefix("npm error ") for line in done.stderr.strip().splitlines()[:2]]
        reason = "; ".join(lines) or "it gave no reason"
        raise errors.StageError(f"npm could not fetch the packages ({reason}): check npm's registry and the network")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.web_page.libraries", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="folder for the libraries")
    options = parser.parse_args()
    with errors.errors_for_people():
        print(vendor(options.out))


if __name__ == "__main__":
    main()
