"""The fast encoder gives the tokenizer's ids, for cached and uncached words."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import paths
import pytest
import tiny
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from cluster.tokens import fast_encoder
from cluster.tokens.fast_encoder import Encoder, load_encoder

DATA = paths.DATA

# Characters of real text, and those that break word splitters: marks, scripts, joiners, blanks, controls.
_CHARACTERS = [
    *"abcXYZ0159", *" " * 12, *"\n\n\t\r\x0b\x1c\x85\xa0\u2003\u2028\u3000\u200b\u200d\ufeff\x00\x07\x7f\ufffd",
    *".,;:!?'\"()[]{}-_/\\@#$%^&*+=<>|~`", *"éÉßİıΣσςñ\u0301\u0327\u030a", *"中文日本語한국어", *"“”‘’—…•¿", *"🙂👩‍👧",
    *"\ue000\uf8ff", "[SEP]", "[MASK]", "##ing", "don't", "  ", " \n", "Straße", "ﬁ", "ΟΔΟΣ", "a" * 101,
    "´", "b \u0301",
]  # fmt: skip


def _texts(count: int = 400) -> list[str]:
    draw = random.Random(0)
    words = " ".join(tiny.ENGLISH).split()
    noise = ["".join(draw.choices(_CHARACTERS, k=draw.randrange(60))) for _ in range(count)]
    mixed = [" ".join(draw.choices([*words, *_CHARACTERS], k=draw.randrange(40))) for _ in range(count)]
    return [*noise, *mixed, *tiny.ENGLISH, "", " ", "\n", "a", " a", "a "]


def _bert(folder: Path) -> Tokenizer:
    tiny.wordpiece(folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def _cased(folder: Path) -> Tokenizer:
    found = _bert(folder)
    found.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    return found


def _roberta(folder: Path) -> Tokenizer:
    tiny.byte_level(folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def _roberta_with_prefix(folder: Path) -> Tokenizer:
    found = _roberta(folder)
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return found


def _with_added_words(folder: Path) -> Tokenizer:
    found = _bert(folder)
    found.add_tokens(["abc", AddedToken("X-Y", single_word=True), AddedToken("中文", lstrip=True, rstrip=True)])
    return found


def _with_an_added_phrase(folder: Path) -> Tokenizer:
    found = _bert(folder)
    found.add_tokens(["a b"])
    return found


def _with_an_added_accent(folder: Path) -> Tokenizer:
    found = _word_level(folder)
    found.add_tokens(["´"])  # normalized, it is a blank and a mark, like two words of some texts
    return found


def _word_level(_: Path) -> Tokenizer:
    found = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    found.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    found.train_from_iterator(tiny.ENGLISH, trainers.WordLevelTrainer(special_tokens=["[UNK]"]))
    return found


def _metaspace(_: Path) -> Tokenizer:
    found = Tokenizer(models.Unigram())
    found.normalizer = normalizers.Replace("abc", "a b")
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    found.train_from_iterator(tiny.ENGLISH, trainers.UnigramTrainer(vocab_size=200, unk_token="[UNK]"))
    return found


@pytest.mark.parametrize(
    ("make", "split"),
    [
        (_bert, "_split_at_spaces"),
        (_cased, "_split_at_spaces"),
        (_with_added_words, "_split_at_spaces"),
        (_word_level, "_split_at_spaces"),
        (_roberta, "_split_before_spaces"),
        (_roberta_with_prefix, "_split_before_spaces"),
        (_with_an_added_phrase, None),
        (_with_an_added_accent, None),
        (_metaspace, None),
    ],
)
@pytest.mark.parametrize("vocab_size", [30_000, 70_000])
def test_ids_are_those_of_the_tokenizer(
    tmp_path: Path, make: Callable[[Path], Tokenizer], split: str | None, vocab_size: int
) -> None:
    tokenizer, texts = make(tmp_path), _texts()
    tokenizer.encode_special_tokens = True
    expected = [encoded.ids for encoded in tokenizer.encode_batch(texts, add_special_tokens=False)]
    encoder = Encoder(Tokenizer.from_str(tokenizer.to_str()), vocab_size)
    assert (None if encoder._words is None else encoder._words.split.__name__) == split
    for _ in range(2):  # the second time from the cache
        found = encoder.encode(texts)
        for text, ids, wanted in zip(texts, found, expected, strict=True):
            assert ids is not None
            assert np.frombuffer(ids, encoder.dtype).tolist() == wanted, repr(text)
    assert encoder.dtype.itemsize == (2 if vocab_size < 2**16 else 4)


def test_the_cache_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_encoder, "KEPT_WORDS", 50)
    encoder = Encoder(_bert(tmp_path), 500)
    for number in range(40):
        encoder.encode([f"word{number} {number}é other{number}" for number in range(number, number + 20)])
        assert len(encoder._words) <= 50 + 60 + 1  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [_bert, _word_level, _roberta])
def test_long_words_are_not_cached(tmp_path: Path, make: Callable[[Path], Tokenizer]) -> None:
    tokenizer = make(tmp_path)
    expected = Encoder(Tokenizer.from_str(tokenizer.to_str()), 500).encode_whole
    encoder = Encoder(tokenizer, 500)
    texts = [text for word in ("ab", "é,", "a \n") for text in [word * 1_000 + "x"] * 2]
    assert encoder.encode(texts) == encoder.encode(texts) == expected(texts)
    assert encoder._words is not None
    assert sum(len(word) for word in encoder._words) <= 10


def test_out_of_memory_is_not_a_fault_of_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(_bert(tmp_path), 500)

    def full(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(encoder._words, "encode", full)
    with pytest.raises(MemoryError):
        encoder.encode(["the"])


def test_a_text_on_which_the_tokenizer_fails_is_none_and_its_neighbors_are_not(tmp_path: Path) -> None:
    whole = Tokenizer(models.WordLevel({"good": 0, "text": 1}, unk_token="missing"))  # fails on unknown words
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    encoder = Encoder(whole, 100)
    for _ in range(2):
        found = encoder.encode(["good text", "bad text", "text"])
        assert found == [b"\0\0\1\0", None, b"\1\0"]


def test_names_of_special_tokens_are_text_and_nothing_is_cut(tmp_path: Path) -> None:
    tiny.wordpiece(tmp_path)
    definition = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition | {"truncation": None}))
    plain = load_encoder(tmp_path / "tokenizer.json")
    plain.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    (ids,) = Encoder(plain, 500).encode(["the [SEP] " * 1_000])
    assert ids is not None
    assert 3 not in np.frombuffer(ids, np.uint16)
    assert len(ids) // 2 > 1_000


@pytest.mark.real_data
@pytest.mark.skipif(not DATA.exists(), reason="no real data next to the checkout")
def test_real_articles_have_the_ids_of_berts_tokenizer() -> None:
    import pyarrow.parquet as pq

    tokenizer = load_encoder(DATA / "models" / "bert-base-uncased" / "tokenizer.json")
    texts = pq.read_table(DATA / "corpus" / "wikipedia_en-00000-of-00008.parquet")["text"].to_pylist()[:150]
    expected = [
        np.array(found.ids, np.uint16).tobytes() for found in tokenizer.encode_batch(texts, add_special_tokens=False)
    ]
    assert Encoder(tokenizer, 30_522).encode(texts) == expected
