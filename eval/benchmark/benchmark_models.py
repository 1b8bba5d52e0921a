"""The models that a benchmark times: folders in PyTorch, their exports, and published architectures.

An export's manifest names the model it was made from. An export of none of the given models is refused.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cluster.artifacts import artifact, stage
from cluster.artifacts.errors import StageError
from cluster.models import export_spec, model_check, model_folder, model_tokenizer
from cluster.models.export_spec import Exported
from cluster.tokens.tokenizer import load_tokenizer
from eval.benchmark import reference_models, workloads
from eval.benchmark.elmo import ElmoSizes
from eval.benchmark.model_process import Kind
from eval.benchmark.reference_models import CONFIGURATIONS, Reader, Weights
from eval.benchmark.workloads import Encoded, Workload
from eval.results.schema import STUDENT, TEACHER

OWN = (TEACHER, STUDENT)
REFERENCE = "bert_base"
PYTORCH: Final = "pytorch"
"""Form of a model that is not an export: eager PyTorch in fp32."""

_HEADS = {"score": ("regression", "classification"), "answers": ("question-answering",)}
"""Heads of exports that a workload can time."""
_REMEDIES: dict[workloads.Kind, str] = {
    "lengths": "leave that length out",
    "questions": "lower questions.length, or export it for that length too",
    "pairs": "export it for that length too",
}
_ORDER = ("regression", "classification", "question-answering", "masked-words")
"""For a workload that any head can do, the model with the first of these heads is taken."""


@dataclass(frozen=True)
class BenchmarkModel:
    """One model in one form."""

    who: str
    """``teacher``, ``student`` or an architecture."""
    form: str
    """``pytorch``, or the export's format."""
    weights: Weights
    folder: Path | None = None
    """None for an architecture without one."""
    export: Exported | None = None
    of: Path | None = None
    """The model that an export was made from, with its tokenizer."""

    @property
    def name(self) -> str:
        """``student``, ``student int8``."""
        return self.who if self.export is None else f"{self.who} {self.form}"

    def serves(self, workload: Workload) -> bool:
        """Whether it can do a workload: an export needs the right head, other models get one."""
        if self.export is not None:
            return workload.head == "any" or self.export.head in _HEADS[workload.head]
        return self.who != "elmo" or workload.kind == "pairs"

    @property
    def config(self) -> Any:
        """Configuration of the model, or of the model that an export was made from."""
        folder = self.of or self.folder
        return CONFIGURATIONS[self.who]() if folder is None else model_folder.configuration(folder)

    @property
    def positions(self) -> int:
        """Longest input in tokens."""
        return model_folder.positions(self.config) if self.export is None else self.export.positions


@dataclass(frozen=True)
class PreparedModel:
    """A benchmark model made ready for one workload."""

    model: BenchmarkModel
    kind: Kind
    folder: Path
    tokenizer: str
    """``own``, or the model whose tokenizer replaces a missing one."""
    encoded: Encoded


def gather(models: Sequence[str], inputs: Mapping[str, Path]) -> list[BenchmarkModel]:
    """Every model and export among the inputs, and the architectures in ``models``.

    Raises:
        ArtifactError: a model or export was changed after it was made.
        StageError: no models, an export in place of a model, an export of none of the models, a model whose weights do
            not fit its configuration, or a folder of an architecture that is not in ``models``.
    """
    folders = {who: list(stage.inputs_of(who, inputs).values()) for who in OWN}
    folders |= {name: [inputs[name]] for name in CONFIGURATIONS if name in inputs}
    if unused := [name for name in folders if name not in (*OWN, *models)]:
        raise StageError(f"--{unused[0]} was given, but models does not have {unused[0]}: add it there")
    found = [each for who in OWN for each in _eager(who, folders[who], "own")]
    for name in models:
        given = folders.get(name, [])
        random = not given or not model_folder.has_weights(given[0])
        found += _eager(name, given or [None], "random" if random else "given")
    if not found:
        raise StageError("nothing to measure: give --student or --teacher, or name architectures in models")
    found += _exports(list(stage.inputs_of("export", inputs).values()), found)
    # By head, so that the choice of a model does not depend on the names of folders.
    return sorted(found, key=lambda each: _ORDER.index(_head(each)))


def _eager(who: str, places: Sequence[Path | None], weights: Weights) -> Iterator[BenchmarkModel]:
    for place in places:
        if place is not None and export_spec.is_export(place):
            raise StageError(
                f"--{who} {place} is an export: give the model folder it was made from, and the export as --export"
            )
        if place is not None and weights != "random":
            model_check.check(place)
        yield BenchmarkModel(who, PYTORCH, weights, place)


def _exports(places: Sequence[Path], models: Sequence[BenchmarkModel]) -> Iterator[BenchmarkModel]:
    known = {model_folder.identity(each.folder): each for each in models if each.folder is not None}
    for place in places:
        made = artifact.read(place, "export")
        of = known.get(made.facts["source"])
        if of is None:
            raise StageError(
                f"--export {place} was not exported from any of the given models: pass its source model, "
                f"{made.facts['model_name']}, as --student, --teacher or an architecture"
            )
        model_check.check(place)
        described = export_spec.read(place)
        yield BenchmarkModel(of.who, described.format, of.weights, place, described, of.folder)


def _head(model: BenchmarkModel) -> str:
    if model.export is not None:
        return model.export.head
    if model.folder is None:
        return _ORDER[0]
    return model_folder.head(model.config) or "masked-words"


def choose(known: Sequence[BenchmarkModel], workload: Workload) -> list[BenchmarkModel]:
    """One benchmark model for each ``who`` and form, if possible with the workload's own head."""
    fitting = [each for each in known if each.serves(workload)]
    wanted = _HEADS.get(workload.head, _ORDER)
    ordered = sorted(fitting, key=lambda each: _head(each) not in wanted)
    first = {(each.who, each.form): each for each in reversed(ordered)}
    rank = {who: place for place, who in enumerate(("elmo", *CONFIGURATIONS, *OWN))}
    return sorted(first.values(), key=lambda each: (rank[each.who], each.form != PYTORCH, each.form))


class Preparation:
    """Prepares benchmark models for workloads; writes into ``folder``."""

    def __init__(self, known: Sequence[BenchmarkModel], sizes: ElmoSizes, seed: int, folder: Path) -> None:
        self._sizes, self._seed, self._folder = sizes, seed, folder
        self._made: dict[tuple[str, str], Path] = {}
        self._encoded: dict[tuple[Path | str, str], Encoded] = {}
        given = [each for each in known if each.export is None]
        # For architectures without a tokenizer: that of BERT-base if given, else the first.
        ordered = sorted(given, key=lambda each: (each.who != REFERENCE, each.who not in OWN))
        self._stand_in = next(((each.who, each.folder) for each in ordered if each.folder), ("none", None))

    def ready(self, model: BenchmarkModel, workload: Workload, drawn: Encoded | None = None) -> PreparedModel:
        """``drawn`` are the inputs of a workload without texts.

        Raises:
            StageError: no tokenizer, one with more ids than the model, an input longer than the model reads, or
                missing weights.
        """
        if model.who == "elmo":
            place = self._folder / "elmo"
            if not place.exists():
                place.mkdir()
                reference_models.random_elmo(self._sizes, place, self._seed)
            return PreparedModel(model, "elmo", place, "own", workloads.read_characters(workload, self._sizes))
        reader = Reader(None, "own") if drawn else self._reader(model)
        encoded = drawn or self._read(model, reader, workload)
        if encoded.longest > model.positions:
            raise StageError(
                f"{workload.name}: {encoded.longest} tokens are more than {model.name} has positions "
                f"({model.positions}): {_REMEDIES[workload.kind]}"
            )
        if model.export is not None and model.folder is not None:
            return PreparedModel(model, "export", model.folder, reader.of, encoded)
        return PreparedModel(model, PYTORCH, self._model(model, workload), reader.of, encoded)

    def _model(self, model: BenchmarkModel, workload: Workload) -> Path:
        if model.folder is not None and model_folder.has_weights(model.folder):
            place = self._folder / f"{model.who}-{workload.head}"
            return reference_models.with_head(model.folder, workload.head, place, self._seed)
        key = (model.who, "answers" if workload.head == "answers" else "score")
        if key not in self._made:
            place = self._folder / "-".join(key)
            self._made[key] = reference_models.random(model.config, workload.head, place, self._seed)
        return self._made[key]

    def _reader(self, model: BenchmarkModel) -> Reader:
        own = model.of or model.folder
        whose, folder = ("own", own) if own else self._stand_in
        if folder is None:
            raise StageError(
                f"{model.who} has no tokenizer here: give a folder with config.json and tokenizer.json as "
                f"--{model.who} (or as --{REFERENCE}, whose tokenizer then stands in)"
            )
        if own is not None:
            return Reader(model_tokenizer.open_tokenizer(own, model.config), whose)
        reader = Reader(load_tokenizer(folder), whose)
        reference_models.check_reads(model.config, reader)
        return reader

    def _read(self, model: BenchmarkModel, reader: Reader, workload: Workload) -> Encoded:
        """Inputs of a workload, encoded once for a model and its exports, which have the same tokenizer."""
        key = (model.of or model.folder or model.who, workload.name)
        if key not in self._encoded:
            config = model.config
            types = model_folder.has_token_types(config)
            self._encoded[key] = workloads.read(workload, reader, model_folder.positions(config), types)
        return self._encoded[key]
