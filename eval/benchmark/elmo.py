"""ELMo with the GLUE baseline's classifier: what the DistilBERT paper's table 3 calls "ELMo", in eager PyTorch.

ELMo (Peters et al. 2018, arXiv 1802.05365) reads characters and needs no vocabulary: convolutions over the bytes of
each word, two highway layers, then a language model of two LSTM layers in each direction; a task learns a mix of the
three layers. The GLUE baseline (Wang et al. 2019, arXiv 1804.07461, without attention and word vectors) adds a BiLSTM
of two layers, takes the maximum over the words, and compares two sentences by ``[u; v; |u - v|; u * v]``. Parameters::

    characters, convolutions, highways, projection    18.0 M
    language model, both directions                   75.6 M     ELMo      93.6 M
    BiLSTM of the classifier, 2 x 1500                84.3 M     total    177.9 M, the paper's "180 M"

At batch 1 each word reads all LSTM weights from memory, so bandwidth decides the time. The weights are random: this is
a baseline for size and speed only.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float, Int
from pydantic import Field, PositiveInt, model_validator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cluster.artifacts.recipe import Recipe

SIZES, WEIGHTS = "elmo.json", "model.safetensors"

# Ids of ELMo's alphabet: 0 pads a sentence, a byte has its value + 1, and these mark the ends of words and sentences.
SENTENCE_START, SENTENCE_END, WORD_START, WORD_END, PADDING = 257, 258, 259, 260, 261
ALPHABET = 262
CLIP = 3.0

# The baseline used NLTK; the speed needs only the number of words.
WORD = re.compile(r"\w+(?:['’]\w+)?|[^\w\s]")


class ElmoSizes(Recipe):
    """Sizes of ELMo; the defaults are the published ones."""

    character: PositiveInt = 16
    """Width of a character's embedding."""
    filters: tuple[tuple[PositiveInt, PositiveInt], ...] = Field(
        ((1, 32), (2, 32), (3, 64), (4, 128), (5, 256), (6, 512), (7, 1024)), min_length=1
    )
    """Convolutions: characters that a filter spans, and number of filters."""
    highways: PositiveInt = 2
    """Highway layers."""
    projection: PositiveInt = 512
    """Width of a word's vector in each direction."""
    cell: PositiveInt = 4096
    """Width of the language model's LSTM cells."""
    hidden: PositiveInt = 1500
    """Width of the classifier's BiLSTM in each direction."""
    characters: PositiveInt = 50
    """Most characters of a word, with the marks of its start and end."""
    words: PositiveInt = 40
    """Most words of a sentence."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (widest := max(width for width, _ in self.filters)) > self.characters:
            raise ValueError(f"a filter spans {widest} characters, a word has {self.characters}: raise characters")
        return self


def words_of(sentence: str, most: int) -> list[str]:
    """The first ``most`` words and punctuation marks of a sentence."""
    return WORD.findall(sentence)[:most]


def character_ids(words: Sequence[str], characters: int) -> Int[Tensor, "tokens characters"]:
    """Ids of each word's UTF-8 bytes with its marks, cut to ``characters``, between the marks of the sentence."""
    tokens = [[SENTENCE_START], *([byte + 1 for byte in word.encode()] for word in words), [SENTENCE_END]]
    marked = [[WORD_START, *token[: characters - 2], WORD_END] for token in tokens]
    return torch.tensor([token + [PADDING] * (characters - len(token)) for token in marked])


def encode(first: str, second: str, sizes: ElmoSizes) -> tuple[Tensor, Tensor]:
    """Character ids of both sentences of a pair; a sentence without words has one empty word."""
    sentences = (words_of(text, sizes.words) or [""] for text in (first, second))
    one, two = (character_ids(words, sizes.characters) for words in sentences)
    return one, two


class WordEncoder(nn.Module):
    """Encodes the characters of each word: convolutions, maximum over the positions, highways, projection."""

    def __init__(self, sizes: ElmoSizes) -> None:
        super().__init__()
        self.embedding = nn.Embedding(ALPHABET, sizes.character)
        self.convolutions = nn.ModuleList(nn.Conv1d(sizes.character, count, width) for width, count in sizes.filters)
        width = sum(count for _, count in sizes.filters)
        self.highways = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(sizes.highways))
        self.projection = nn.Linear(width, sizes.projection)

    def forward(self, ids: Int[Tensor, "tokens characters"]) -> Float[Tensor, "tokens projection"]:
        characters = self.embedding(ids).transpose(1, 2)
        features = torch.cat([each(characters).amax(dim=-1).relu() for each in self.convolutions], dim=-1)
        for highway in self.highways:
            new, gate = highway(features).chunk(2, dim=-1)
            carried = torch.sigmoid(gate)
            features = carried * features + (1 - carried) * new.relu()
        vectors: Tensor = self.projection(features)
        return vectors


class ClippedLstm(nn.Module):
    """One direction of one layer: an LSTM with projected output, cell and output clipped to ±3.

    PyTorch's LSTM can project but not clip, and on a CPU is no faster with projection than this loop.
    """

    def __init__(self, width: int, cell: int) -> None:
        super().__init__()
        self.inputs = nn.Linear(width, 4 * cell, bias=False)
        self.state = nn.Linear(width, 4 * cell)
        self.projection = nn.Linear(cell, width, bias=False)

    def forward(self, vectors: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens width"]:
        driven = self.inputs(vectors)  # for all tokens at once; only the state depends on the token before
        output = vectors.new_zeros(1, self.projection.out_features)
        cell = vectors.new_zeros(1, self.projection.in_features)
        outputs = []
        for token in driven.split(1):
            enter, forget, new, leave = (token + self.state(output)).chunk(4, dim=-1)
            cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(new)
            cell = cell.clamp(-CLIP, CLIP)
            output = self.projection(torch.sigmoid(leave) * torch.tanh(cell)).clamp(-CLIP, CLIP)
            outputs.append(output)
        return torch.cat(outputs)


class Elmo(nn.Module):
    """One vector per word: the mix of its own vector and two bidirectional LSTM layers."""

    LAYERS = 2

    def __init__(self, sizes: ElmoSizes) -> None:
        super().__init__()
        self.words = WordEncoder(sizes)
        self.ahead, self.back = (
            nn.ModuleList(ClippedLstm(sizes.projection, sizes.cell) for _ in range(self.LAYERS)) for _ in range(2)
        )
        self.mix = nn.Parameter(torch.zeros(self.LAYERS + 1))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, ids: Int[Tensor, "tokens characters"]) -> Float[Tensor, "words width"]:
        """``words`` are the tokens without the two marks of the sentence; ``width`` is twice the projection."""
        vectors = self.words(ids)
        ahead, back = _stack(self.ahead, vectors), [each.flip(0) for each in _stack(self.back, vectors.flip(0))]
        layers = torch.stack([torch.cat(both, dim=-1) for both in zip(ahead, back, strict=True)])
        mixed: Tensor = self.scale * torch.tensordot(self.mix.softmax(dim=0), layers, dims=1)
        return mixed[1:-1]


def _stack(layers: nn.ModuleList, vectors: Tensor) -> list[Tensor]:
    """The input of the first layer and the output of each; every layer but the first adds its input."""
    first, *others = layers
    outputs = [vectors, first(vectors)]
    for layer in others:
        outputs.append(layer(outputs[-1]) + outputs[-1])
    return outputs


class ElmoPairs(nn.Module):
    """Scores a pair of sentences, one after the other as the GLUE baseline does."""

    def __init__(self, sizes: ElmoSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.elmo = Elmo(sizes)
        self.reader = nn.LSTM(2 * sizes.projection, sizes.hidden, num_layers=2, bidirectional=True)
        self.score = nn.Linear(8 * sizes.hidden, 1)

    def save(self, folder: Path) -> None:
        (folder / SIZES).write_text(self.sizes.model_dump_json(), encoding="utf-8")
        save_file(self.state_dict(), folder / WEIGHTS)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The model of a folder that :meth:`save` wrote, in evaluation mode."""
        with torch.device("meta"):
            model = cls(ElmoSizes.model_validate_json((folder / SIZES).read_text(encoding="utf-8")))
        model.load_state_dict(load_file(folder / WEIGHTS), assign=True)
        return model.eval()

    def forward(
        self, first: Int[Tensor, "tokens characters"], second: Int[Tensor, "others characters"]
    ) -> Float[Tensor, "1"]:
        one, two = (self.reader(self.elmo(ids))[0].amax(dim=0) for ids in (first, second))
        score: Tensor = self.score(torch.cat([one, two, (one - two).abs(), one * two]))
        return score
