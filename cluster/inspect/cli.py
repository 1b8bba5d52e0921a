"""Summaries of artifacts, runs and pipelines.

::

    stillhouse inspect DIR [--rows N] [--picture FILE.png] [--verify]

DIR is an artifact of any kind, by path or URL (``s3://bucket/tokens``), the folder of a run, the ledger of a queue
(``OUT/queue``), or the output folder of a pipeline. The command writes nothing but the picture. It reads large
artifacts in part, evenly spread, and says so.
"""

import argparse
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cluster.artifacts import artifact, cache, commit
from cluster.artifacts.artifact import Artifact
from cluster.artifacts.errors import errors_for_people
from cluster.artifacts.help_format import HelpFormatter
from cluster.inspect import corpus, jobs, models, picture, results, runs, terminal, tokens
from cluster.inspect.findings import Findings, InspectError, Pairs, Section, Table, flat
from cluster.inspect.lineage import headline, inputs_of, made_from
from cluster.models import model_check
from cluster.storage import filesystem
from cluster.storage.filesystem import Location
from cluster.telemetry.formatting import duration, file_size, plural

VIEWS: Mapping[str, Callable[[Artifact, int], Findings]] = {
    "corpus": corpus.inspect,
    "tokens": tokens.inspect,
    "dataset": results.dataset,
    "benchmark": results.benchmark,
    "report": results.report,
    "probes": jobs.probes,
    **dict.fromkeys(("teacher", "student", "finetune", "export"), models.inspect),
}


def look(place: Location, num_samples: int, verify: bool) -> Findings:
    """Inspect a place.

    Raises:
        InspectError: it is not an artifact, a run, a queue or a folder of them.
        ArtifactError: the artifact is incomplete or, with ``verify``, was changed.
    """
    if not filesystem.exists(place) or filesystem.is_file(place / commit.MANIFEST):
        return _artifact((artifact.verify if verify else artifact.read)(place), num_samples, verify)
    if isinstance(place, Path) and runs.is_run(place):
        found = runs.inspect(place, verify)
        *others, recipe = found.sections
        return replace(found, sections=[*others, made_from(runs.described(place)["inputs"], {}, place), recipe])
    if isinstance(place, Path) and jobs.is_queue(place):
        return jobs.inspect(place)
    if isinstance(place, Path) and (below := _below(place)):
        return _pipeline(place, below)
    raise InspectError(
        f"{place} is neither an artifact nor a run: it has no {commit.MANIFEST} and no {runs.RECIPE}, and no "
        "folder in it has; name the --out of a stage"
    )


def _artifact(found: Artifact, num_samples: int, verified: bool) -> Findings:
    if (view := VIEWS.get(found.kind)) is None:
        raise InspectError(f"{found.location} is {artifact.named(found.kind)}, which this version does not know")
    here = found
    if view is models.inspect:
        # A view of a model reads all its files, the others a part of theirs.
        here, verified = model_check.unchanged(cache.fetch(found.location)), True
    seen, learning = view(here, num_samples), list[Section]()
    if (metrics := here.files.get(runs.METRICS)) and metrics["bytes"]:
        learning.append(Section("LEARNING", runs.curves(here.path / runs.METRICS)))
    recipe = Section("RECIPE", [Pairs(flat(found.recipe))], "" if found.recipe else "This stage has no settings.")
    sections = [
        _manifest(found, verified), *seen.sections, *learning, made_from(*inputs_of(found)), recipe, _files(found)
    ]  # fmt: skip
    title = f"{found.kind} {found.identity[:12]}"
    return Findings(title, str(found.location), headline(found), seen.remarks, sections)


def _manifest(found: Artifact, verified: bool) -> Section:
    made, code = found.manifest["made"], found.manifest["code"]
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(made["at"]))
    dirty = "-dirty" if code["commit"].endswith("-dirty") else ""
    revision = f" ({code['commit'][:12]}{dirty})" if code["commit"] else ""
    size = f"{file_size(found.bytes)} in {plural(len(found.files), 'file')}"
    state = "every file has the hash of the manifest" if verified else "sizes as in the manifest, hashes not compared"
    entries = [
        ("identity", found.identity),
        ("made", f"{at} on {made['host']} in {duration(made['seconds'])}, by version {code['version']}{revision}"),
        ("files", f"{size}; {state}"),
    ]
    return Section("ARTIFACT", [Pairs(entries)])


def _files(found: Artifact) -> Section:
    """Files; those whose names differ only in a number have one row."""
    groups: dict[str, list[int]] = {}
    for name, entry in found.files.items():
        groups.setdefault(re.sub(r"\d{4,}", "*", name), []).append(int(entry["bytes"]))
    rows = [(name, f"{len(sizes):,}", file_size(sum(sizes)), file_size(max(sizes))) for name, sizes in groups.items()]
    return Section("FILES", [Table(("name", "files", "size", "largest"), rows)])


def _below(folder: Path) -> dict[str, Artifact]:
    """Artifacts in a folder, as deep as pipelines write them."""
    patterns = ("/".join(["[!.]*"] * depth + [commit.MANIFEST]) for depth in range(1, 4))
    places = sorted(found.parent for pattern in patterns for found in folder.glob(pattern))
    return {str(place.relative_to(folder)): artifact.read(place) for place in places}


def _pipeline(folder: Path, below: Mapping[str, Artifact]) -> Findings:
    found = [str(path.parent.relative_to(folder)) for path in sorted(folder.glob(f"runs/*/{runs.RECIPE}"))]
    jobs = filesystem.read_json(folder / "jobs.json") if (folder / "jobs.json").exists() else []
    numbers = f"{plural(len(below), 'artifact')} and {plural(len(found), 'run')}"
    headline = f"{numbers}: name one of them to inspect it"
    return Findings("pipeline", str(folder), headline, sections=results.pipeline(below, found, jobs))


def _parser(prog: str) -> argparse.ArgumentParser:
    epilog = f"example: {prog} out/tokens --rows 8"
    parser = argparse.ArgumentParser(
        prog=prog, formatter_class=HelpFormatter, description=(__doc__ or "").partition("\n")[0], epilog=epilog
    )
    place = "artifact by path or URL, folder of a run or a queue, or output folder of a pipeline; example: out/tokens"
    parser.add_argument("place", metavar="DIR", help=place)
    rows = "rows or documents to show (default: %(default)s); example: 8"
    parser.add_argument("--rows", metavar="N", type=int, default=4, help=rows)
    picture = "draw the histograms and curves to this file (default: none); example: tokens.png"
    parser.add_argument("--picture", metavar="FILE.png", type=Path, help=picture)
    verify = "compare the hashes of all files with the manifest (default: the sizes alone)"
    parser.add_argument("--verify", action="store_true", help=verify)
    return parser


def main(arguments: Sequence[str] | None = None, prog: str = "python -m cluster.inspect") -> None:
    """Run the command."""
    parser = _parser(prog)
    given = parser.parse_args(arguments)
    if given.rows < 0:
        parser.error(f"argument --rows: {given.rows} is negative")
    if given.picture is not None and given.picture.suffix.lower() != ".png":
        parser.error(f"argument --picture: {given.picture} does not end in .png")
    with errors_for_people():
        found = look(filesystem.location(given.place), given.rows, given.verify)
        if given.picture is not None:
            picture.draw(found, given.picture)
        terminal.write(found, sys.stdout)
