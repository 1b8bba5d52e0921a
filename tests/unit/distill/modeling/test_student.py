"""A student starts from its teacher's layers; with all layers, it equals the teacher."""

from pathlib import Path

import pytest
import tiny
import torch
from transformers import AutoModelForMaskedLM

from distill.config import Student
from distill.modeling import masked_lm, student
from distill.modeling.masked_lm import MaskedLM, ModelError

LAYERS = 4


def teachers(folder: Path) -> dict[str, Path]:
    return {
        "bert": tiny.bert_teacher(folder / "bert", layers=LAYERS),
        "roberta": tiny.roberta_teacher(folder / "roberta", layers=LAYERS),
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return teachers(tmp_path_factory.mktemp("teachers"))


def rows_for(model: object) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(5, model.config.vocab_size, (3, 24), generator=generator)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@torch.no_grad()
def test_a_student_of_all_layers_gives_the_teachers_logits(folders: dict[str, Path], kind: str) -> None:
    teacher, _ = masked_lm.load(folders[kind])
    made = student.make(teacher, Student(layers=tuple(range(LAYERS))), seed=1)
    rows = rows_for(teacher)
    wanted = teacher.eval()(input_ids=rows).logits
    torch.testing.assert_close(made.eval()(input_ids=rows).logits, wanted, rtol=0, atol=1e-5)
    ours = MaskedLM(made)
    logits = ours.projection.logits(ours(rows, torch.arange(rows.numel())).features)
    torch.testing.assert_close(logits, wanted.flatten(0, 1), rtol=0, atol=1e-5)


@torch.no_grad()
def test_without_folding_the_token_type_row_the_start_would_differ(folders: dict[str, Path]) -> None:
    teacher, _ = masked_lm.load(folders["bert"])
    made = student.make(teacher, Student(layers=tuple(range(LAYERS))), seed=1)
    row = teacher.bert.embeddings.token_type_embeddings.weight[0]
    made.distilbert.embeddings.position_embeddings.weight -= row
    rows = rows_for(teacher)
    difference = (made.eval()(input_ids=rows).logits - teacher.eval()(input_ids=rows).logits).abs().max()
    assert difference > 1e-3


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@torch.no_grad()
def test_a_student_has_the_layers_of_the_recipe(folders: dict[str, Path], kind: str) -> None:
    teacher, _ = masked_lm.load(folders[kind])
    made = student.make(teacher, Student(layers=(1, 3)), seed=1)
    assert made.config.num_hidden_layers == 2
    ours = made.base_model
    theirs = teacher.base_model.encoder.layer
    for place, layer in enumerate((1, 3)):
        if kind == "bert":
            weight = ours.transformer.layer[place].ffn.lin2.weight
        else:
            weight = ours.encoder.layer[place].output.dense.weight
        assert torch.equal(weight, theirs[layer].output.dense.weight)


def test_a_saved_student_loads_with_transformers_alone(folders: dict[str, Path], tmp_path: Path) -> None:
    teacher, _ = masked_lm.load(folders["bert"])
    made = student.make(teacher, Student(), seed=1)
    made.save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert type(again).__name__ == "DistilBertForMaskedLM"
    assert again.vocab_projector.weight is again.distilbert.embeddings.word_embeddings.weight
    for name, parameter in made.named_parameters():
        assert torch.equal(dict(again.named_parameters())[name], parameter)


@torch.no_grad()
def test_logits_at_some_positions_are_those_of_transformers(folders: dict[str, Path]) -> None:
    for kind in ("bert", "roberta"):
        teacher, _ = masked_lm.load(folders[kind])
        rows, some = rows_for(teacher), torch.tensor([0, 5, 71, 30])
        for model in (teacher.eval(), student.make(teacher, Student(), seed=1).eval()):
            whole = model(input_ids=rows).logits.flatten(0, 1)
            found = MaskedLM(model)
            outputs = found(rows, some)
            torch.testing.assert_close(found.projection.logits(outputs.features), whole[some], rtol=0, atol=1e-5)
            assert outputs.hidden.shape == (72, model.config.hidden_size)
            assert len(list(found.layers())) == model.config.num_hidden_layers


def test_random_starts_are_seeded_and_unlike_the_teacher(folders: dict[str, Path]) -> None:
    teacher, _ = masked_lm.load(folders["bert"])
    recipe = Student(start="random")
    first, same, other = (student.make(teacher, recipe, seed=seed) for seed in (1, 1, 2))
    words = [model.distilbert.embeddings.word_embeddings.weight for model in (first, same, other)]
    assert torch.equal(words[0], words[1])
    assert not torch.equal(words[0], words[2])
    assert not torch.equal(words[0], teacher.bert.embeddings.word_embeddings.weight)


@pytest.mark.parametrize(
    ("layers", "half"), [(12, (0, 2, 4, 7, 9, 11)), (6, (0, 2, 5)), (4, (0, 3)), (2, (0,)), (1, (0,))]
)
def test_half_of_the_layers_is_evenly_spread(layers: int, half: tuple[int, ...]) -> None:
    assert student.chosen_layers(Student(), layers) == half


@pytest.mark.parametrize(
    ("recipe", "chosen"),
    [
        (Student(layers="first"), (0, 1, 2, 3, 4, 5)),
        (Student(layers="last"), (6, 7, 8, 9, 10, 11)),
        (Student(layers="uniform", depth=3), (0, 6, 11)),
        (Student(layers="first", depth=2), (0, 1)),
        (Student(layers="last", depth=1), (11,)),
        (Student(layers="last", depth=12), tuple(range(12))),
        (Student(layers=(2, 5), depth=2), (2, 5)),
    ],
)
def test_layers_are_chosen_by_name_or_by_list(recipe: Student, chosen: tuple[int, ...]) -> None:
    assert student.chosen_layers(recipe, 12) == chosen


@pytest.mark.parametrize("layers", [(), (0, 4), (-1, 2), (2, 1), (1, 1)])
def test_layers_out_of_range_or_order_are_refused_with_an_example(layers: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"list some of 0 to 3 in rising order, for example \[0, 3\]"):
        student.chosen_layers(Student(layers=layers), LAYERS)


def test_a_depth_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ModelError, match=r"student\.depth 5 is more than the teacher's 4 layers: write fewer"):
        student.chosen_layers(Student(depth=5), LAYERS)
    with pytest.raises(ModelError, match=r"lists 2 layers and student\.depth is 3: leave student\.depth out"):
        student.chosen_layers(Student(layers=(0, 1), depth=3), LAYERS)


def test_a_teacher_with_untied_words_is_refused(folders: dict[str, Path]) -> None:
    teacher, _ = masked_lm.load(folders["bert"])
    teacher.config.tie_word_embeddings = False
    with pytest.raises(ModelError, match="tie_word_embeddings = false"):
        student.make(teacher, Student(), seed=1)
