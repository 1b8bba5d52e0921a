"""Finds models below a folder by their manifests, and pairs those that answer the same inputs.

In the output folder of a pipeline, teacher and student are artifacts of these kinds. A fine-tuned model names the model
that it was made from, an export the model it was exported from, so roles follow from identities, not from names. Where
the models themselves are elsewhere, as in the output of a suite, the names ``finetune/<role>/`` decide.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from cluster.artifacts import artifact, commit
from cluster.artifacts.artifact import Artifact
from cluster.artifacts.errors import StageError
from cluster.models import example_inputs, export_spec, model_folder, runtimes
from cluster.models.example_inputs import ExampleInput
from cluster.telemetry.formatting import plural
from deploy.ask.masked_sentences import from_heldout_text

Role: TypeAlias = Literal["teacher", "student"]
ROLES: tuple[Role, Role] = ("teacher", "student")
MAIN = "student"
"""Folder of a pipeline's main student; its ablations have other names."""
PYTORCH = "PyTorch"
_KINDS = ("teacher", "student", "finetune", "export")
_DEPTH = 3
"""How deep pipelines write artifacts: ``finetune/<model>/<task>``."""


@dataclass(frozen=True)
class FoundModel:
    """A model folder or export, and its part in a comparison."""

    folder: Path
    role: Role
    title: str
    head: str
    task: str | None
    """Task it was fine-tuned on; None where no manifest says."""
    form: str
    """``PyTorch``, or the format of an export."""
    tuning: str
    """What it was fine-tuned on, for people."""
    source: Path
    """The model it was exported from; itself for a model folder."""


@dataclass(frozen=True)
class Comparison:
    """Models that answer the same inputs side by side."""

    title: str
    form: str
    models: tuple[FoundModel, ...]
    examples: tuple[ExampleInput, ...] = ()
    examples_from: str = ""
    """Where the examples come from, for people."""

    @property
    def key(self) -> str:
        """Its name in requests; unique among the comparisons of a page."""
        return f"{self.head}/{self.title}/{self.form}"

    @property
    def head(self) -> str:
        return self.models[0].head


def find(places: Sequence[Path]) -> list[Comparison]:
    """The comparisons of a pipeline's output folder, or of single models; masked words first.

    Raises:
        StageError: a folder holds no models, or is not there.
        ArtifactError: an artifact was cut.
    """
    single = [place for place in places if _is_model(place)]
    found = list(_compare_single(single)) if single else []
    for place in places:
        if place not in single:
            found += _compare_pipeline(place)
    if repeated := [key for key, count in _counts(one.key for one in found).items() if count > 1]:
        raise StageError(f"several of these folders hold models for {repeated[0]}: name one of them at a time")
    return sorted(found, key=lambda one: one.head != "masked-words")


def _counts(keys: Iterable[str]) -> dict[str, int]:
    return {key: len(list(group)) for key, group in itertools.groupby(sorted(keys))}


def _is_model(place: Path) -> bool:
    return export_spec.is_export(place) or (place / model_folder.CONFIG).is_file()


def _compare_pipeline(folder: Path) -> Iterator[Comparison]:
    """Teacher and main student for each task and form.

    Raises:
        StageError: the folder holds no models.
    """
    by_topic: dict[tuple[str, str, str], dict[Role, FoundModel]] = {}
    below = _below(folder)
    for found in _models(below):
        topic = (found.head, _title(found), found.form)
        # The first one by name; a second step of fine-tuning comes last.
        by_topic.setdefault(topic, {}).setdefault(found.role, found)
    if not by_topic:
        raise StageError(
            f"{folder} holds no models: name the output folder of stillhouse launch, a model folder or an export"
        )
    for (_, title, form), by_role in by_topic.items():
        models = tuple(by_role[role] for role in ROLES if role in by_role)
        yield Comparison(title, form, models, *_examples(models, folder))


def _below(folder: Path) -> dict[str, Artifact]:
    """Artifacts of models in a folder by identity, in the order of their paths."""
    if not folder.is_dir():
        raise StageError(f"{folder} does not exist: name the output folder of stillhouse launch, or a model")
    patterns = ("/".join(["[!.]*"] * depth + [commit.MANIFEST]) for depth in range(1, _DEPTH + 1))
    places = sorted(manifest.parent for pattern in patterns for manifest in folder.glob(pattern))
    read = (artifact.read(place) for place in places)
    return {found.identity: found for found in read if found.kind in _KINDS}


def _models(below: Mapping[str, Artifact]) -> Iterator[FoundModel]:
    """The teacher, the main student, their fine-tuned models and exports."""
    roles = _base_roles(below)
    by_name = not roles
    tuned = sorted(
        (found for found in below.values() if found.kind == "finetune"),
        key=lambda found: found.facts.get("second_step") is not None,
    )
    for found in tuned:
        role = _role_in_path(found.path.parent) if by_name else roles.get(found.inputs.get("model", ""))
        if role is not None:
            roles[found.identity] = role
    known = [below[identity] for identity in roles]
    for found in known:
        yield _folder_model(found.path, roles[found.identity], found)
    for found in below.values():
        source = below.get(str(found.facts.get("source", "")))
        if found.kind == "export" and source is not None and source.identity in roles and _runs_here(found.path):
            yield _export_model(found.path, roles[source.identity], source)


def _base_roles(below: Mapping[str, Artifact]) -> dict[str, Role]:
    """Identities of the teacher and of the main student."""
    students = [found for found in below.values() if found.kind == "student"]
    students.sort(key=lambda found: found.path.name != MAIN)
    teachers = [found for found in below.values() if found.kind == "teacher"]
    roles: dict[str, Role] = {}
    for role, models in zip(ROLES, (teachers, students), strict=True):
        if models:
            roles[models[0].identity] = role
    return roles


def _role_in_path(folder: Path) -> Role | None:
    """The role that a folder is called after, or one of the two around it."""
    return next((role for name in reversed(folder.absolute().parts[-3:]) for role in ROLES if name == role), None)


def _runs_here(folder: Path) -> bool:
    """Whether the runtime of an export exists for this machine and is installed."""
    if not export_spec.is_export(folder):  # the page for phones
        return False
    runtime = runtimes.RUNTIMES.get(export_spec.read(folder).runtime)
    if runtime is None:
        return False
    try:
        runtimes.require(runtime.distribution, "")
    except StageError:
        return False
    return True


def _compare_single(folders: Sequence[Path]) -> Iterator[Comparison]:
    """Models named one by one: those with the same head and labels side by side, in the order given."""
    groups: dict[tuple[str, ...], list[FoundModel]] = {}
    for number, folder in enumerate(folders):
        config = model_folder.configuration(folder)
        known = _known_role(folder)
        role = known or ROLES[min(number, 1)]
        export = export_spec.is_export(folder)
        model = _export_model(folder, role, None) if export else _folder_model(folder, role, _artifact(folder))
        if known is None:
            model = replace(model, title=folder.absolute().name)
        labels = model_folder.labels(config) if model.head == "classification" else []
        groups.setdefault((model.head, *labels), []).append(model)
    titles = _counts(_title(models[0]) for models in groups.values())
    for models in groups.values():
        # Two tasks without a name, or with the same: the folder tells them apart.
        title = _title(models[0])
        title = title if titles[title] == 1 else f"{title} ({models[0].folder.name})"
        yield Comparison(title, " and ".join(dict.fromkeys(model.form for model in models)), _named_apart(models),
                         *_examples(models, None))  # fmt: skip


def _known_role(folder: Path) -> Role | None:
    """The role by the manifest's kind, or by the path, ``finetune/teacher/sst2``."""
    found = _artifact(folder)
    kind = None if found is None else next((role for role in ROLES if role == found.kind), None)
    return kind or _role_in_path(folder)


def _artifact(folder: Path) -> Artifact | None:
    return artifact.read(folder) if (folder / commit.MANIFEST).is_file() else None


def _named_apart(models: Sequence[FoundModel]) -> tuple[FoundModel, ...]:
    """Models with different titles: their folders where two have the same role."""
    if len({model.title for model in models}) == len(models):
        return tuple(models)
    return tuple(replace(model, title=_short(model.folder)) for model in models)


def _short(folder: Path) -> str:
    return "/".join(folder.absolute().parts[-2:])


def _folder_model(folder: Path, role: Role, found: Artifact | None) -> FoundModel:
    head = model_folder.head(model_folder.configuration(folder))
    if head is None:
        raise StageError(f"{folder}: its architecture has no head that answers: fine-tune it, or name another model")
    task = None if found is None else found.facts.get("task")
    return FoundModel(folder, role, role.capitalize(), head, task, PYTORCH, _tuning(head, found), folder)


def _export_model(folder: Path, role: Role, source: Artifact | None) -> FoundModel:
    """An export; ``source`` is the artifact that it was made from."""
    described = export_spec.read(folder)
    task = None if source is None else source.facts.get("task")
    tuning = _tuning(described.head, source)
    place = folder if source is None else source.path
    return FoundModel(folder, role, role.capitalize(), described.head, task, described.format, tuning, place)


def _tuning(head: str, found: Artifact | None) -> str:
    if found is not None and found.kind == "finetune":
        facts = found.facts
        examples = plural(facts["train_examples"], "example")
        return (
            f"fine-tuned on {facts['task']}: {examples}, {facts['metric']} {facts['score']:.1f} on "
            f"{facts['dev_examples']:,} others"
        )
    if head == "masked-words":
        return "not fine-tuned: fills hidden words, as it was trained to"
    return "what it was fine-tuned on is not recorded in its folder"


def _title(model: FoundModel) -> str:
    words = {"masked-words": "Masked words", "question-answering": "Answers", "regression": "Scores"}
    return model.task or words.get(model.head, "Classes")


def _examples(models: Sequence[FoundModel], pipeline: Path | None) -> tuple[tuple[ExampleInput, ...], str]:
    """Examples for a comparison, and where they come from."""
    if models[0].head == "masked-words":
        found = () if pipeline is None else from_heldout_text(pipeline, models[0].source)
        return found, "From documents that were held out of training."
    for model in models:
        if found := example_inputs.read(model.source):
            task = model.task or "the task"
            return found, f"From the development set of {task}, which training never saw."
    return (), ""
