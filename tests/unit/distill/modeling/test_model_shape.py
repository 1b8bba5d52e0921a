"""Shapes of models: their parameter counts, and where they are read from."""

from pathlib import Path

import pytest
import tiny
from planned_runs import BERT, HALF, make_training
from transformers import BertConfig, BertForMaskedLM, RobertaConfig, RobertaForMaskedLM

from distill.modeling import model_shape, student
from distill.modeling.model_shape import ShapeError


def test_parameters_are_those_of_the_models() -> None:
    assert BERT.parameters == 109_514_298
    assert HALF.parameters == 66_985_530
    numbers = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    for kind, config in ((BertForMaskedLM, BertConfig), (RobertaForMaskedLM, RobertaConfig)):
        settings = config(**numbers, intermediate_size=40, max_position_embeddings=32, type_vocab_size=2)
        settings.type_vocab_size = 1 if kind is RobertaForMaskedLM else 2
        teacher = kind(settings)
        shape = model_shape.of_config(teacher.config.to_dict(), "teacher")
        assert shape.parameters == teacher.num_parameters()
        made = student.make(teacher, make_training().student, seed=0)
        assert model_shape.student_shape(shape, 2).parameters == made.num_parameters()
        assert model_shape.of_config(made.config.to_dict(), "student").parameters == made.num_parameters()


def test_shapes_come_from_folders_and_names(tmp_path: Path) -> None:
    folder = tiny.bert_teacher(tmp_path, layers=4)
    found = model_shape.find(str(folder))
    assert (found.family, found.layers) == ("bert", 4)
    assert model_shape.find("google-bert/bert-base-uncased") == BERT
    with pytest.raises(ShapeError, match="give --teacher DIR"):
        model_shape.find("someone/unheard-of")
    (tmp_path / "gpt").mkdir()
    (tmp_path / "gpt" / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    with pytest.raises(ShapeError, match="use a BERT or a RoBERTa"):
        model_shape.find(str(tmp_path / "gpt"))


def test_a_roberta_reads_what_its_padding_id_leaves() -> None:
    for padding, longest in ((0, 31), (1, 30), (4, 27)):
        config = RobertaConfig(max_position_embeddings=32, pad_token_id=padding)
        assert model_shape.of_config(config.to_dict(), "teacher").longest_row == longest
