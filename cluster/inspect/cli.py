"""What is in an artifact or a run: one look tells whether the data is what you think it is.

::

    python -m cluster.inspect DIR [--rows N] [--picture FILE.png] [--verify]

DIR is an artifact of any kind, by path or URL (``s3://bucket/tokens``), the folder of a run, or the output folder of a
pipeline. Nothing is written but the picture. Large artifacts are looked at in parts, evenly spread, which is said.

The module has the name of one of Python's own. Nothing imports it: it is only ever run.
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cluster.artifacts import artifact, cache, commit
from cluster.artifacts.artifact import Artifact
from cluster.artifacts.errors import errors_for_people
from cluster.inspect import corpus, models, picture, results, runs, terminal, tokens
from cluster.inspect.findings import Findings, InspectError, Pairs, Section, Table, flat
from cluster.inspect.lineage import ancestors, headline
from cluster.inspect.runs import RECIPE
from cluster.storage import filesystem
from cluster.storage.filesystem import Location
from cluster.telemetry.formatting import duration, file_size, plural

VIEWS: Mapping[str, Callable[[Artifact, int], Findings]] = {
    "corpus": corpus.inspect,
    "tokens": tokens.inspect,
    "dataset": results.dataset,
    "benchmark": results.benchmark,
    "report": results.report,
    **dict.fromkeys(("teacher", "student", "finetune", "export"), models.inspect),
}
_WHOLE = ("teacher", "student", "finetune", "export")
"""Kinds that are fetched from an object store before they are looked at; of others only what is looked at."""
_CLOSED = 141
"""The exit code of a program whose reader has gone (128 + SIGPIPE)."""


def look(place: Location, num_samples: int, verify: bool) -> Findings:
    """All there is to see at a place.

    Raises:
        InspectError: neither an artifact nor a run nor a folder of some.
        ArtifactError: an artifact that is not whole, or with ``verify`` one that was changed.
    """
    if not filesystem.exists(place) or filesystem.is_file(place / commit.MANIFEST):
        return _artifact((artifact.verify if verify else artifact.read)(place), num_samples, verify)
    if isinstance(place, Path) and runs.is_run(place):
        found = runs.inspect(place, verify)
        found.sections.insert(-1, _descent(runs.described(place)["inputs"], {}, place))
        return found
    if isinstance(place, Path) and (below := _below(place)):
        return _pipeline(place, below)
    raise InspectError(
        f"{place} is neither an artifact nor a run: it has no {commit.MANIFEST} and no {runs.RECIPE}, and no "
        "folder in it has; name the --out of a stage"
    )


def _artifact(found: Artifact, num_samples: int, verified: bool) -> Findings:
    if found.kind not in VIEWS:
        raise InspectError(f"{found.location} is a {found.kind} artifact, which this version does not know")
    here = found if filesystem.is_local(found.location) or found.kind not in _WHOLE else _fetched(found)
    seen = VIEWS[found.kind](here, num_samples)
    if (metrics := here.files.get("metrics.jsonl")) and metrics["bytes"]:
        seen.sections.append(Section("LEARNING", runs.curves(here.path / "metrics.jsonl")))
    made = found.manifest["made"]
    inputs = {**found.inputs, **found.facts.get("lineage", {})}
    sections = [
        _manifest(found, verified),
        *seen.sections,
        _descent(inputs, made.get("paths", {}), found.location),
        Section("RECIPE", [Pairs(flat(found.recipe))], "" if found.recipe else "Nothing to choose."),
        _files(found),
    ]
    title = f"{found.kind} {found.identity[:12]}"
    return Findings(title, str(found.location), headline(found), seen.remarks, sections)


def _fetched(found: Artifact) -> Artifact:
    return artifact.read(cache.fetch(found.location))


def _manifest(found: Artifact, verified: bool) -> Section:
    made, code = found.manifest["made"], found.manifest["code"]
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(made["at"]))
    commit = (
        f" ({code['commit'][:12]}{'-dirty' if code['commit'].endswith('-dirty') else ''})" if code["commit"] else ""
    )
    files = f"{file_size(found.bytes)} in {plural(len(found.files), 'file')}"
    state = "every file has the hash of the manifest" if verified else "sizes as in the manifest, hashes not compared"
    entries = [
        ("identity", found.identity),
        ("made", f"{at} on {made['host']} in {duration(made['seconds'])}, by version {code['version']}{commit}"),
        ("files", f"{files}; {state}"),
    ]
    return Section("ARTIFACT", [Pairs(entries)])


def _descent(inputs: Mapping[str, str], paths: Mapping[str, str], place: Location) -> Section:
    rows = [
        ("  " * one.depth + one.role, f"{one.identity[:12]}: {one.state}" + f"\n{one.place}" * bool(one.place))
        for one in ancestors(inputs, paths, place)
    ]
    return Section("MADE FROM", [Pairs(rows)], "" if rows else "No other artifact.")


def _files(found: Artifact) -> Section:
    """Files, those that differ only by a number as one line."""
    groups: dict[str, list[int]] = {}
    for name, entry in found.files.items():
        groups.setdefault(re.sub(r"\d{4,}", "*", name), []).append(int(entry["bytes"]))
    rows = [(name, f"{len(sizes):,}", file_size(sum(sizes)), file_size(max(sizes))) for name, sizes in groups.items()]
    return Section("FILES", [Table(("name", "files", "size", "largest"), rows)])


def _below(folder: Path) -> dict[str, Artifact]:
    """Artifacts in a folder, as deep as a pipeline puts them."""
    manifests = [
        found for depth in range(1, 4) for found in folder.glob("/".join(["[!.]*"] * depth + [commit.MANIFEST]))
    ]
    return {str(found.parent.relative_to(folder)): artifact.read(found.parent) for found in sorted(manifests)}


def _pipeline(folder: Path, below: Mapping[str, Artifact]) -> Findings:
    runs = [str(found.parent.relative_to(folder)) for found in sorted(folder.glob(f"runs/*/{RECIPE}"))]
    jobs = filesystem.read_json(folder / "jobs.json") if (folder / "jobs.json").exists() else []
    told = f"{plural(len(below), 'artifact')} and {plural(len(runs), 'run')}: name one of them to see what is in it"
    return Findings("pipeline", str(folder), told, [], results.pipeline(below, runs, jobs))


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("place", metavar="DIR", help="an artifact by path or URL, a run, or a pipeline's output folder")
    parser.add_argument(
        "--rows", metavar="N", type=int, default=4, help="rows or documents to show (default: %(default)s)"
    )
    parser.add_argument("--picture", metavar="FILE.png", type=Path, help="draw the histograms and curves")
    parser.add_argument("--verify", action="store_true", help="compare the hashes of all files with the manifest")
    return parser


def main(arguments: Sequence[str] | None = None, prog: str = "python -m cluster.inspect") -> None:
    """The command line."""
    parser = _parser(prog)
    given = parser.parse_args(arguments)
    if given.rows < 0:
        parser.error(f"argument --rows: {given.rows} is less than none")
    if given.picture is not None and given.picture.suffix.lower() != ".png":
        parser.error(f"argument --picture: {given.picture} does not end in .png")
    with errors_for_people():
        found = look(filesystem.location(given.place), given.rows, given.verify)
        if given.picture is not None:
            picture.draw(found, given.picture)
        try:
            terminal.write(found, sys.stdout)
        except BrokenPipeError:
            # The reader has seen enough; Python would complain once more when it closes the stream.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(_CLOSED) from None
