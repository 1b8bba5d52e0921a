"""Tiny models, tokenizers and text, built in code in seconds instead of downloaded.

Every builder writes into a given folder and returns its path. The same arguments give the same files, bit for bit.
"""

import collections
import json
import random
import re
import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

ENGLISH: list[str] = [
    "The mill by the river has ground barley for the village since the year of the great flood.",
    "She poured the warm mash into the copper still and waited for the first clear drops.",
    "A train leaves the northern station every morning at seven, unless snow covers the line.",
    "Nobody in the office remembered who had ordered the three boxes of green paper.",
    "The old teacher wrote slowly, so that even the youngest student could follow him.",
    "Our neighbor keeps bees on the roof and gives away more honey than he eats.",
    "When the engine stopped, the captain asked for silence and listened to the water.",
    "It is easier to repair a small leak today than to rebuild the whole wall in spring.",
    "The committee met twice, talked for hours, and decided to meet again on Friday.",
    "Wild geese crossed the valley in the evening, flying low above the frozen fields.",
    "Her first novel was refused by eleven publishers before a small press in Leeds took it.",
    "The price of wheat fell by four percent, while copper and tin rose a little.",
    "Two boys raced their bicycles down the hill and nearly hit the baker's cart.",
    "A good map shows what is there; a better one shows what has been left out.",
    "The doctor washed her hands, put on a clean coat, and called the next patient.",
    "In the cellar they found forty bottles, a broken lamp, and a letter nobody had opened.",
    "Rain fell all night, and by noon the road to the harbour was under water.",
    "He played the same slow tune on the violin until the neighbors knocked on the wall.",
    "The museum shows tools of stone, bronze and iron in three long rooms.",
    "If the bridge is closed, take the ferry from the east bank; it runs every half hour.",
    "The cook tasted the soup, added salt, tasted it again, and shook his head.",
    "Light from that star left it before the first cities were built.",
    "They planted apple trees along the fence and pears beside the barn.",
    "The judge read the contract aloud and asked which of them had signed it.",
    "My grandmother could name every bird in the garden by its song alone.",
    "The pump works well in summer, but ice blocks the pipe from December to March.",
    "Each worker receives one row of numbers and returns one number to the others.",
    "A red fox came to the edge of the camp, looked at the fire, and went away.",
    "The library opens at nine and closes at six, except on the first Monday of the month.",
    "You cannot judge a wine by its label, nor a ship by the colour of its sails.",
    "The film was long, loud and dull, and half of the audience left before the end.",
    "What a wonderful evening: the singers were superb and the story moved everyone.",
    "The river carries sand from the mountains and builds new islands at its mouth.",
    "He sold the farm, bought a boat, and has not written a letter since.",
    "The new clock in the tower is two minutes fast, and the whole town is early.",
    "Before winter the shepherds bring four hundred sheep down from the high pastures.",
    "The recipe asks for six eggs, a pound of flour, butter, sugar and patience.",
    "A strong wind broke the mast, but the crew reached the port before dark.",
    "Students measured the temperature of the lake at ten depths and drew a curve.",
    "The queen visited the factory, asked clever questions, and left without a speech.",
    "Every spring the orchard turns white, and visitors come from the city to see it.",
    "The report is short because the facts are few; the footnotes are longer than the text.",
    "Gold was found in the stream, and within a year the valley had nine hotels.",
    "The night watchman heard steps, lit his lamp, and saw only a cat on the stairs.",
    "Iron expands when it is heated, so the rails need a small gap between them.",
    "The painter mixed blue and yellow, looked at the green, and added a touch of black.",
    "Their house stands at the end of a narrow lane, behind a wall covered with ivy.",
    "Nothing in the letter explained why the money had been sent, or by whom.",
]
"""Distinct English sentences of 12 to 18 words."""

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
POSITIONS = 64


def wordpiece(folder: Path, *, positions: int = POSITIONS) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer saved into ``folder``: any printable ASCII text, no unknown pieces."""
    characters = [character for character in string.printable if not character.isspace() and not character.isupper()]
    counts = collections.Counter(word for line in ENGLISH for word in re.findall(r"[a-z]{2,}", line.lower()))
    words = [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:300]]
    pieces = [*SPECIALS, *characters, *(f"##{character}" for character in characters), *words]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=positions,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def byte_level(folder: Path, *, positions: int = POSITIONS) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer as RoBERTa's (``<s>`` is 0, ``<pad>`` is 1), saved into ``folder``."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(ENGLISH, trainer)
    core.post_processor = processors.RobertaProcessing(
        ("</s>", core.token_to_id("</s>")), ("<s>", core.token_to_id("<s>")), add_prefix_space=False
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=positions,
        model_input_names=["input_ids", "attention_mask"],
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def bert_teacher(
    folder: Path, *, layers: int = 4, hidden: int = 32, heads: int = 2, seed: int = 0, positions: int = POSITIONS
) -> Path:
    """A ``BertForMaskedLM`` and its tokenizer, saved into ``folder``."""
    tokenizer = wordpiece(folder, positions=positions)
    config = BertConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=positions,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _save(BertForMaskedLM, config, seed, folder)


def roberta_teacher(
    folder: Path, *, layers: int = 4, hidden: int = 32, heads: int = 2, seed: int = 0, positions: int = POSITIONS
) -> Path:
    """A ``RobertaForMaskedLM`` and its tokenizer, saved into ``folder``."""
    tokenizer = byte_level(folder, positions=positions)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        # RoBERTa counts positions from the padding id + 1, so two rows are never used.
        max_position_embeddings=positions + 2,
        type_vocab_size=1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return _save(RobertaForMaskedLM, config, seed, folder)


def distilbert(
    folder: Path, *, layers: int = 2, hidden: int = 32, heads: int = 2, seed: int = 0, positions: int = POSITIONS
) -> Path:
    """A ``DistilBertForMaskedLM`` and its tokenizer, as a student artifact has them, saved into ``folder``."""
    tokenizer = wordpiece(folder, positions=positions)
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        n_layers=layers,
        dim=hidden,
        n_heads=heads,
        hidden_dim=4 * hidden,
        max_position_embeddings=positions,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _save(DistilBertForMaskedLM, config, seed, folder)


def corpus(folder: Path, documents: int = 200, seed: int = 0) -> Path:
    """A folder with one JSON-lines file of ``documents`` distinct texts of 3 to 12 sentences."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    texts: dict[str, None] = {}
    while len(texts) < documents:
        texts[" ".join(chance.sample(ENGLISH, chance.randint(3, 12)))] = None
    lines = (json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "documents.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def _save(kind: type[PreTrainedModel], config: PreTrainedConfig, seed: int, folder: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
        with torch.no_grad():
            # Fresh models have LayerNorm (1, 0), zero biases and near-zero rows, which would hide a value that
            # is lost or swapped on the way into a student.
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return folder
