"""The tokenizer beside a model: what the model takes, as long as it reads, without the state of the last call."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import tokenizers
from transformers import AutoConfig, AutoTokenizer, BertConfig, DistilBertConfig, RobertaConfig

from cluster.artifacts.errors import StageError
from cluster.models.model_tokenizer import check_tokenizer, open_tokenizer, save_beside
from cluster.tokens.tokenizer import load_tokenizer, train_wordpiece

LONG = "word " * 600


def trained() -> Any:
    return train_wordpiece(lambda: [tiny.ENGLISH], 300, True, 1)


def written(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")))


def test_a_student_of_bert_gets_no_token_types(tmp_path: Path) -> None:
    save_beside(trained(), DistilBertConfig(max_position_embeddings=128), tmp_path)
    assert written(tmp_path)["model_input_names"] == ["input_ids", "attention_mask"]
    assert set(AutoTokenizer.from_pretrained(tmp_path)("a", "b")) == {"input_ids", "attention_mask"}


def test_a_bert_keeps_its_token_types(tmp_path: Path) -> None:
    save_beside(trained(), BertConfig(), tmp_path / "two")
    assert AutoTokenizer.from_pretrained(tmp_path / "two")("a", "b")["token_type_ids"][-1] == 1
    save_beside(trained(), BertConfig(type_vocab_size=1), tmp_path / "one")
    assert "token_type_ids" not in AutoTokenizer.from_pretrained(tmp_path / "one")("a", "b")


@pytest.mark.parametrize(
    ("config", "own", "longest"),
    [
        (DistilBertConfig(max_position_embeddings=128), 512, 128),
        (BertConfig(max_position_embeddings=512), 128, 128),
        (RobertaConfig(max_position_embeddings=514), int(1e30), 512),
        (RobertaConfig(max_position_embeddings=514, pad_token_id=0), int(1e30), 513),
    ],
    ids=["positions", "own", "unlimited", "padding 0"],
)
def test_the_longest_input_is_what_tokenizer_and_model_allow(
    config: Any, own: int, longest: int, tmp_path: Path
) -> None:
    tokenizer = trained()
    tokenizer.model_max_length = own
    save_beside(tokenizer, config, tmp_path)
    assert written(tmp_path)["model_max_length"] == longest
    assert len(AutoTokenizer.from_pretrained(tmp_path)(LONG, truncation=True)["input_ids"]) == longest


def test_truncation_and_padding_of_a_call_are_not_saved(tmp_path: Path) -> None:
    tokenizer = trained()
    tokenizer("a b", truncation=True, max_length=8, padding="max_length")
    save_beside(tokenizer, DistilBertConfig(), tmp_path)
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert (plain.truncation, plain.padding) == (None, None)
    assert len(plain.encode(LONG).ids) > 600
    assert plain.encode(LONG).ids == tokenizer(LONG)["input_ids"]
    assert len(plain.encode("a").ids) == 3


def test_what_a_source_keeps_of_its_calls_is_not_passed_on(tmp_path: Path) -> None:
    """As models of sentence-transformers do."""
    source = trained()
    source.backend_tokenizer.enable_padding(length=128)
    source.backend_tokenizer.enable_truncation(128)
    source.save_pretrained(tmp_path / "source")
    save_beside(load_tokenizer(tmp_path / "source"), BertConfig(), tmp_path / "saved")
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "saved/tokenizer.json"))
    assert len(plain.encode("a").ids) == 3
    assert not {"max_length", "stride", "truncation_strategy", "pad_to_multiple_of"} & {*written(tmp_path / "saved")}


def test_the_class_is_one_that_transformers_4_knows(tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(tiny.roberta_teacher(tmp_path / "source"))
    save_beside(load_tokenizer(tmp_path / "source"), config, tmp_path / "saved")
    assert written(tmp_path / "saved")["tokenizer_class"] == "PreTrainedTokenizerFast"
    before, after = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("source", "saved"))
    assert before("The mill's émigré")["input_ids"] == after("The mill's émigré")["input_ids"]


def test_special_tokens_of_ones_own_have_the_name_that_transformers_4_knows(tmp_path: Path) -> None:
    tokenizer = trained()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[NEW]"]})
    save_beside(tokenizer, BertConfig(), tmp_path)
    assert written(tmp_path)["additional_special_tokens"] == ["[NEW]"]
    assert "extra_special_tokens" not in written(tmp_path)
    assert load_tokenizer(tmp_path).all_special_tokens[-1] == "[NEW]"


def test_more_words_than_embeddings_are_refused(tmp_path: Path) -> None:
    trained().save_pretrained(tmp_path)
    with pytest.raises(StageError, match="299"):
        open_tokenizer(tmp_path, BertConfig(vocab_size=299))
    open_tokenizer(tmp_path, BertConfig(vocab_size=300))


def test_an_added_word_counts_by_its_id() -> None:
    tokenizer = trained()
    tokenizer.add_tokens(["codec"])
    with pytest.raises(StageError, match="301 entries"):
        check_tokenizer(tokenizer, BertConfig(vocab_size=300), "small")


def test_another_padding_id_is_refused_where_positions_are_counted_from_it() -> None:
    tokenizer = trained()
    assert tokenizer.pad_token_id == 0
    check_tokenizer(tokenizer, BertConfig(pad_token_id=1), "bert")
    with pytest.raises(StageError, match="padding id 1"):
        check_tokenizer(tokenizer, RobertaConfig(pad_token_id=1), "roberta")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no tokenizer"):
        open_tokenizer(tmp_path, BertConfig())


def test_an_opened_tokenizer_makes_only_what_its_model_takes(tmp_path: Path) -> None:
    """The RoBERTa has one token type; as transformers 4 saves generic tokenizers, the files name token types."""
    folder = tiny.roberta_teacher(tmp_path, layers=1)
    values = {**written(folder), "model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    assert "token_type_ids" in load_tokenizer(folder)("a", "b")
    tokenizer = open_tokenizer(folder, AutoConfig.from_pretrained(folder))
    assert set(tokenizer("a", "b")) == {"input_ids", "attention_mask"}
