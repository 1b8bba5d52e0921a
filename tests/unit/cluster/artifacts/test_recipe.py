"""Recipes: strict reading, errors with place and remedy, and the resolved values of the shipped ones.

Every shipped recipe has a golden file in ``tests/golden/recipes`` with all its values, including defaults, so that a
review shows every change. To rewrite them after a change::

    STILLHOUSE_GOLDEN=write python -m pytest tests/unit/cluster/artifacts/test_recipe.py
"""

import json
import os
import re
import textwrap
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import paths
import pydantic
import pytest
from pydantic import Field

from cluster.artifacts import recipe, registry
from cluster.artifacts.recipe import Recipe, RecipeError
from cluster.corpus.stage import Corpus
from distill.config import Distillation
from distill.launch.pipeline_recipe import Pipeline, PipelinePlan
from eval.suite.plan import finetune_values
from eval.suite.recipe import Suite

GOLDEN = paths.GOLDEN / "recipes"

STAGES = {
    "cluster/installed-docs": "cluster.corpus",
    "deploy/coreml": "deploy.coreml_export",
    "deploy/executorch": "deploy.executorch_export",
    "deploy/int8": "deploy.quantize",
    "deploy/int8-static": "deploy.quantize",
    "deploy/litert": "deploy.litert_export",
    "deploy/onnx": "deploy.onnx_export",
    "deploy/openvino": "deploy.openvino_export",
    "deploy/page": "deploy.web_page",
    "eval/baselines": "eval.latency",
    "eval/finetune": "eval.finetune",
    "eval/glue": "eval.suite",
    "eval/latency": "eval.latency",
    "eval/mobile-adb": "eval.mobile",
    "eval/mobile-browser": "eval.mobile",
    "eval/mobile-proxy": "eval.mobile",
    "eval/provenance": "eval.provenance",
}
"""Stages of the shipped recipes; those of ``distill`` are pipelines."""

SHIPPED = [f"{path.parts[-3]}/{path.stem}" for path in sorted(recipe.ROOT.glob("*/recipes/*.toml"))]


class Plain(Recipe):
    """One member of a union."""

    kind: Literal["plain"]
    path: str


class Packed(Recipe):
    """Another one."""

    kind: Literal["packed"]
    level: int = 3


class Loss(Recipe):
    """A table."""

    temperature: float = Field(2.0, gt=0)
    mode: Literal["all", "masked"] = "all"


class Range(Recipe):
    """A table among plain values."""

    min: int
    max: int

    @pydantic.model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.min > self.max:
            raise ValueError("min is above max")
        return self


class Placement(Recipe):
    """The placement."""

    workers: int | Range | Literal["auto"] = "auto"


class Whole(Recipe):
    """A recipe with every type of field that a recipe may have."""

    name: str
    steps: int = 10
    loss: Loss = Loss()
    optional: Loss | None = None
    sources: tuple[Annotated[Plain | Packed, Field(discriminator="kind")], ...] = ()
    layers: tuple[int, ...] | None = None
    words: tuple[str, ...] = Field(("a",), min_length=1)
    named: dict[str, Loss] = Field(default_factory=dict)
    placement: Placement = Placement()


def _refused(values: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as refused:
        Whole.of({"name": "n", **values}, "file.toml")
    message = str(refused.value)
    assert "\n" not in message
    assert message.startswith("file.toml: ")
    return message.removeprefix("file.toml: ")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stps": 1}, "unknown key stps; did you mean steps?"),
        ({"loss": {"temprature": 2.0}}, "unknown key loss.temprature; did you mean loss.temperature?"),
        ({"optional": {"temprature": 2.0}}, "unknown key optional.temprature; did you mean optional.temperature?"),
        ({"named": {"a": {"mod": "all"}}}, "unknown key named.a.mod; did you mean named.a.mode?"),
        (
            {"sources": [{"kind": "plain", "path": "p"}, {"kind": "packed", "levl": 1}]},
            "unknown key sources.1.levl; did you mean sources.1.level?",
        ),
        ({"placement": {"worker": 1}}, "unknown key placement.worker; did you mean placement.workers?"),
        ({"loss": {"zzz": 1}}, "unknown key loss.zzz; known here: loss.mode, loss.temperature"),
        # Suggests no name that only another member of the union has.
        (
            {"sources": [{"kind": "packed", "pth": "p"}]},
            "unknown key sources.0.pth; known here: sources.0.kind, sources.0.level",
        ),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_known_one(values: dict[str, Any], message: str) -> None:
    assert _refused(values) == message


@pytest.mark.parametrize(
    ("values", "place", "written"),
    [
        ({"steps": "10"}, "steps", '"10"'),
        ({"steps": 1.5}, "steps", "1.5"),
        ({"steps": True}, "steps", "true"),
        ({"name": 3}, "name", "3"),
        ({"loss": 3}, "loss", "3"),
        ({"loss": {"temperature": -1.0}}, "loss.temperature", "-1.0"),
        ({"loss": {"temperature": float("nan")}}, "loss.temperature", "NaN"),
        ({"loss": {"mode": "some"}}, "loss.mode", '"some"'),
        ({"named": {"a": {"temperature": 0}}}, "named.a.temperature", "0"),
        ({"sources": [{"kind": "packed", "level": "high"}]}, "sources.0.level", '"high"'),
        ({"placement": {"workers": "many"}}, "placement.workers", '"many"'),
    ],
)
def test_a_value_of_another_type_or_range_is_refused_with_its_place(
    values: dict[str, Any], place: str, written: str
) -> None:
    message = _refused(values)
    assert message.startswith(f"{place}: ")
    assert message.endswith(f", not {written}")


def test_what_is_missing_is_named() -> None:
    with pytest.raises(RecipeError, match=r"^file\.toml: name is missing"):
        Whole.of({}, "file.toml")
    assert _refused({"sources": [{"kind": "plain"}]}) == "sources.0.path is missing and has no default"
    assert _refused({"sources": [{"path": "p"}]}) == 'sources.0.kind is missing: write kind = one of "plain", "packed"'


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sources": [{"kind": "plian"}]}, "sources.0.kind: no kind is called plian; did you mean plain?"),
        ({"sources": [{"kind": "zip"}]}, 'sources.0.kind: no kind is called zip; write one of "plain", "packed"'),
        (
            {"loss": {"mode": "maskd"}},
            "loss.mode: input should be 'all' or 'masked', not \"maskd\"; did you mean masked?",
        ),
        (
            {"placement": {"workers": "aut"}},
            "placement.workers: input should be a valid integer or a table or 'auto', not \"aut\"; did you mean auto?",
        ),
        ({"placement": {"workers": {"min": 2, "max": 1}}}, "placement.workers: min is above max"),
        ({"placement": {"workers": {"min": 2}}}, "placement.workers.max is missing and has no default"),
        ({"sources": {"kind": "plain"}}, 'sources: input should be a list, not {"kind": "plain"}; put it in [ ]'),
        ({"sources": "plain"}, 'sources: input should be a list, not "plain"'),
        ({"sources": ["plain"]}, 'sources.0: input should be a table, not "plain"'),
        ({"layers": 3}, "layers: input should be a list, not 3; put it in [ ]"),
        ({"words": "en"}, 'words: input should be a list, not "en"; put it in [ ]'),
        ({"words": []}, "words: input should be a list of at least 1 value, not []"),
        ({"loss": 3}, "loss: input should be a table, not 3"),
    ],
)
def test_a_member_of_a_union_is_named_without_words_of_the_library(values: dict[str, Any], message: str) -> None:
    assert _refused(values) == message


def test_a_missing_table_says_what_to_write() -> None:
    with pytest.raises(
        RecipeError, match=r"^default: corpus is missing and has no default: write \[corpus\] with sources = "
    ):
        recipe.load(Pipeline, "default")
    with pytest.raises(RecipeError, match=r"sources is missing and has no default: write sources = \[\{ kind"):
        registry.find("cluster.corpus").load("default")
    for command, example in (
        ("eval.finetune", 'task = "rte"'),
        ("eval.score", 'task = "rte"'),
        ("eval.mobile", "way = {"),
    ):
        with pytest.raises(RecipeError, match=f"has no default: write {example}"):
            registry.find(command).load("default")


def test_a_whole_number_is_a_number_and_a_list_is_a_tuple() -> None:
    found = Whole.of({"name": "n", "loss": {"temperature": 3}, "sources": [{"kind": "plain", "path": "p"}]})
    assert found.loss.temperature == 3.0
    assert found.sources == (Plain(kind="plain", path="p"),)


def test_a_recipe_never_changes() -> None:
    found = Whole(name="n")
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        found.loss.temperature = 3.0  # type: ignore[misc]


def test_placement_is_resolved_but_is_not_identity() -> None:
    here, there = Whole(name="n"), Whole(name="n", placement=Placement(workers=8))
    assert here.resolved() != there.resolved()
    assert here.identity() == there.identity()
    assert here.identity() != Whole(name="n", steps=11).identity()
    assert Whole.of(here.resolved()) == here


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("steps=5", {"steps": 5}),
        ("steps = 5", {"steps": 5}),
        ("loss.temperature=5e-1", {"loss": {"temperature": 0.5, "mode": "all"}}),
        ("name=demo", {"name": "demo"}),
        ('name="5"', {"name": "5"}),
        ("name=a=b", {"name": "a=b"}),
        ("name=../some/path.txt", {"name": "../some/path.txt"}),
        ("sources=[{kind='plain', path='p'}]", {"sources": [{"kind": "plain", "path": "p"}]}),
        ("named.a.mode=masked", {"named": {"a": {"mode": "masked"}}}),
        ("flag=true", {"flag": True}),
    ],
)
def test_a_setting_replaces_one_value(setting: str, expected: dict[str, Any]) -> None:
    before = {"name": "n", "steps": 1, "loss": {"temperature": 2.0, "mode": "all"}}
    assert recipe.override(before, setting) == {**before, **expected}
    assert before == {"name": "n", "steps": 1, "loss": {"temperature": 2.0, "mode": "all"}}


@pytest.mark.parametrize(
    "setting", ["steps", "=5", " = 5", "loss.temperature:5", "loss.=5", ".loss=5", "loss..mode=all"]
)
def test_a_malformed_setting_is_refused_with_an_example(setting: str) -> None:
    with pytest.raises(RecipeError, match=r"write key=value, for example --set loss\.temperature"):
        recipe.override({}, setting)


def _file(folder: Path, text: str) -> Path:
    path = folder / "file.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_setting_through_something_that_is_no_table_is_refused(tmp_path: Path) -> None:
    path = _file(tmp_path, "name = 'n'\nsteps = 3\nsources = [{ kind = 'packed' }]\n")
    with pytest.raises(RecipeError, match="steps") as refused:
        recipe.load(Whole, str(path), ["steps.more=1"])
    assert str(path) in str(refused.value)
    for setting in ("sources.1.level=1", "sources.level=1", "sources.-1.level=1"):
        with pytest.raises(RecipeError, match=rf"--set {setting}: sources is a list, in which there is sources\.0; "):
            recipe.load(Whole, str(path), [setting])


def test_settings_go_over_the_file_and_later_ones_over_earlier_ones(tmp_path: Path) -> None:
    path = _file(tmp_path, "name = 'n'\nsteps = 3\n[loss]\ntemperature = 4.0\n")
    found = recipe.load(Whole, str(path), ["steps=4", "loss.mode=masked", "steps=5"])
    assert found == Whole(name="n", steps=5, loss=Loss(temperature=4.0, mode="masked"))


def test_a_setting_reaches_into_a_list(tmp_path: Path) -> None:
    path = _file(tmp_path, "name = 'n'\nsources = [{ kind = 'packed' }, { kind = 'plain', path = 'p' }]\n")
    found = recipe.load(Whole, str(path), ["sources.0.level=1", "sources.1.path=q"])
    assert found.sources == (Packed(kind="packed", level=1), Plain(kind="plain", path="q"))


@pytest.mark.parametrize(
    ("command", "reference", "line"),
    [
        ("distill.train", "demo", "demo has tables for several commands: write demo#train"),
        ("eval.suite", "demo", "write demo#suite"),
        ("eval.finetune", "demo", "write demo#suite.finetune"),
        ("distill.train", "demos", "did you mean demo?"),
        ("distill.train", "train", "did you mean the table demo#train?"),
        ("eval.finetune", "demo#finetune", "did you mean demo#suite.finetune?"),
        ("distill.train", "demo#trian", "did you mean train?"),
    ],
)
def test_a_wrong_name_suggests_the_right_one_across_recipes_and_tables(command: str, reference: str, line: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(line)):
        registry.find(command).load(reference)


def test_one_table_of_a_file_is_a_recipe(tmp_path: Path) -> None:
    path = _file(tmp_path, "name = 'n'\n[named.a]\ntemperature = 4.0\n")
    assert recipe.load(Loss, f"{path}#named.a") == Loss(temperature=4.0)
    with pytest.raises(RecipeError, match=r"no table \[nmed\.a\]; did you mean named\?"):
        recipe.load(Loss, f"{path}#nmed.a")
    with pytest.raises(RecipeError, match=r"no table \[name\]"):
        recipe.load(Loss, f"{path}#name")


def test_a_file_with_a_number_sign_in_its_name_comes_before_a_table(tmp_path: Path) -> None:
    (tmp_path / "run#1").write_text("temperature = 1.0\n[a]\ntemperature = 2.0\n", encoding="utf-8")
    (tmp_path / "run").write_text("[1]\ntemperature = 3.0\n[2]\ntemperature = 4.0\n", encoding="utf-8")
    for reference, temperature in (("run#1", 1.0), ("run#1#a", 2.0), ("run#2", 4.0)):
        assert recipe.read_values(f"{tmp_path}/{reference}")["temperature"] == temperature
    with pytest.raises(RecipeError, match=r"run#1: unknown key a"):
        recipe.load(Loss, f"{tmp_path}/run#1")


def test_default_is_nothing_but_defaults() -> None:
    assert recipe.load(Loss, "default") == Loss()
    assert recipe.load(Loss, "default", ["mode=masked"]) == Loss(mode="masked")
    with pytest.raises(RecipeError, match="name is missing"):
        recipe.load(Whole, "default")


def test_a_shipped_recipe_is_known_by_its_name_and_a_file_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert recipe.find("onnx") == recipe.ROOT / "deploy" / "recipes" / "onnx.toml"
    with pytest.raises(RecipeError, match=r"recipe onyx is neither a file nor one that ships: did you mean onnx\?"):
        recipe.find("onyx")
    monkeypatch.chdir(tmp_path)
    Path("onnx").write_text("opset = 17", encoding="utf-8")
    assert recipe.read_values("onnx") == {"opset": 17}


@pytest.mark.parametrize("text", ["steps = ", "[loss", "steps = 1\nsteps = 2", "{}"])
def test_what_is_not_toml_is_refused_with_where_it_stops(tmp_path: Path, text: str) -> None:
    path = _file(tmp_path, text)
    with pytest.raises(RecipeError, match=r"not TOML: .*(at line \d+|at end of document)") as refused:
        recipe.load(Whole, str(path))
    assert str(refused.value).startswith(str(path))


def test_bytes_and_dates_have_no_place_in_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "bytes.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(RecipeError, match="not TOML"):
        recipe.load(Whole, str(tmp_path / "bytes.toml"))
    with pytest.raises(RecipeError, match=r'file\.toml: 2020-01-01 is .*dates and times.*: write "2020-01-01"'):
        recipe.load(Whole, str(_file(tmp_path, "name = 2020-01-01\n")))


def test_merging_goes_table_by_table_and_replaces_the_rest_whole() -> None:
    base = {"a": {"x": 1, "y": {"z": 2}}, "list": [1, 2], "plain": 1}
    changes = {"a": {"y": {"w": 3}}, "list": [3], "plain": {"now": "a table"}, "new": {"b": 1}}
    merged = recipe.merge(base, changes)
    assert merged == {
        "a": {"x": 1, "y": {"z": 2, "w": 3}},
        "list": [3],
        "plain": {"now": "a table"},
        "new": {"b": 1},
    }
    assert base == {"a": {"x": 1, "y": {"z": 2}}, "list": [1, 2], "plain": 1}


def _resolved(name: str) -> dict[str, Any]:
    """Every value of a shipped recipe; of a pipeline also those of every stage it calls."""
    path = str(recipe.ROOT / name.replace("/", "/recipes/")) + ".toml"
    if not name.startswith("distill/"):
        assert name in STAGES, f"{name} is new: name its stage in STAGES above"
        return dict(registry.find(STAGES[name]).read(recipe.read_values(path), path).resolved())
    pipeline = recipe.load(Pipeline, path)
    plan = PipelinePlan(pipeline, Path("out"))
    trained = {f"students/{student}": plan.distillation(student).resolved() for student in pipeline.students()}
    teacher = registry.find("distill.teacher").read(pipeline.teacher)
    stages: dict[str, Any] = {"teacher": teacher.resolved(), **trained}
    for job in plan.text():
        stages[job.name] = registry.find(job.stage).read(job.recipe).resolved()
    suite, finetune = Suite.of(pipeline.suite), registry.find("eval.finetune")
    stages |= {task: finetune.read(finetune_values(suite, task)).resolved() for task in suite.tasks}
    stages["suite"] = suite.resolved()
    return {"pipeline": pipeline.resolved(), "stages": _once(stages)}


def _once(stages: dict[str, Any]) -> dict[str, Any]:
    """Drop repeated recipes: the same task is fine-tuned for several models."""
    found: dict[str, Any] = {}
    for name, values in stages.items():
        same = next((earlier for earlier, known in found.items() if known == values), None)
        found[name] = f"as {same}" if same else values
    return found


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_means_what_its_golden_file_says(name: str) -> None:
    path = GOLDEN / f"{name.replace('/', '-')}.json"
    found = json.dumps(_resolved(name), indent=2, ensure_ascii=False) + "\n"
    if os.environ.get("STILLHOUSE_GOLDEN") == "write":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(found, encoding="utf-8")
    write = "STILLHOUSE_GOLDEN=write python -m pytest -k recipe writes it; read the difference"
    assert path.is_file(), f"{path} is not there: {write}"
    assert json.loads(found) == json.loads(path.read_text(encoding="utf-8")), f"{path} differs: {write}"


def test_golden_files_of_deleted_recipes_are_deleted() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} <= {name.replace("/", "-") for name in SHIPPED}
    assert {*STAGES} <= {*SHIPPED}
    assert len({name.partition("/")[2] for name in SHIPPED}) == len(SHIPPED), "two shipped recipes share a name"


def test_recipes_in_the_docs_are_what_the_code_accepts() -> None:
    docs = paths.ROOT / "docs"
    text = "\n".join((docs / name).read_text(encoding="utf-8") for name in ("corpus.md", "recipes.md"))
    blocks = [textwrap.dedent(block) for block in re.findall(r"(?:^    \S.*\n|^     .*\n|^\n(?=    ))+", text, re.M)]
    tables = [tomllib.loads(block) for block in blocks if re.search(r"^(\[|sources = )", block, re.M)]
    accepted = {"train": Distillation, "suite": Suite, "sources": Corpus}
    found = [next(name for name in accepted if name in table) for table in tables]
    assert sorted(found) == ["sources", "suite", "suite", "train", "train", "train"]
    for name, table in zip(found, tables, strict=True):
        accepted[name].of(table if name == "sources" else table[name], "docs")


@pytest.mark.parametrize("name", [name for name in registry.entries() if name.startswith("deploy.")])
def test_one_value_set_alone_leaves_the_others_as_they_were(name: str) -> None:
    """A table in a file replaces the defaults of its class: those of the field must be equal."""
    found = registry.find(name)
    for table, field in found.recipe.model_fields.items():
        below = field.get_default(call_default_factory=True)
        # A field without a default, like a title, is refused by name when it is missing.
        if isinstance(below, Recipe) and not any(each.is_required() for each in type(below).model_fields.values()):
            for key, value in below.resolved().items():
                changed = found.recipe.of({table: {key: value}})
                assert getattr(changed, table) == below, f"{name}: {table}.{key}"
