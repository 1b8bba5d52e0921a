"""Answers of saved models, as people use them: run in an environment of ``make consumers``, prints JSON.

    python answers.py TEXTS.json FOLDER …

A folder is used in every way that its files and its head allow.
"""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers


def fill_mask(folder: str, texts: list[str]) -> list[Any]:
    mask = transformers.AutoTokenizer.from_pretrained(folder).mask_token
    filled = transformers.pipeline("fill-mask", model=folder, tokenizer_kwargs={"truncation": True})
    return [filled(f"the {mask} {text}")[0]["score"] for text in texts]


def classes(folder: str, texts: list[str]) -> list[Any]:
    found = transformers.pipeline("text-classification", model=folder, truncation=True)
    single = [found(text)[0]["score"] for text in texts]
    return [single, [each["score"] for each in found(texts, batch_size=3)]]


def answer(folder: str, texts: list[str]) -> list[Any]:
    asked = transformers.pipeline("question-answering", model=folder)
    return [asked(question="who met whom?", context=text)["score"] for text in texts if text]


def tensors(folder: str, texts: list[str]) -> list[Any]:
    """Outputs of the model for its tokenizer's own output, the texts as one batch."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    kind = getattr(transformers, transformers.AutoConfig.from_pretrained(folder).architectures[0])
    with torch.inference_mode():
        outputs = kind.from_pretrained(folder).eval()(
            **tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        )
    return [values[:, :2].float().tolist() for values in outputs.to_tuple()]


def session(folder: str, texts: list[str]) -> list[Any]:
    """Outputs of an ONNX file for its tokenizer's own output, each text alone and all as one batch."""
    import onnxruntime

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    path = next(Path(folder).rglob("*.onnx"))
    opened = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    rows = [tokenizer(each, truncation=True, padding=True, return_tensors="np") for each in (*texts, texts)]
    return [opened.run(None, dict(row))[0][:, :2].tolist() for row in rows]


def ids(folder: str, texts: list[str]) -> list[Any]:
    """Ids of the library tokenizers alone, and whether transformers makes the same of texts of any length."""
    plain = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
    whole = transformers.AutoTokenizer.from_pretrained(folder)
    return [[plain.encode(text).ids for text in texts], [whole(text)["input_ids"] for text in texts]]


def sentences(folder: str, texts: list[str]) -> list[Any]:
    from sentence_transformers import SentenceTransformer, models

    words = models.Transformer(folder)
    model = SentenceTransformer(modules=[words, models.Pooling(words.get_word_embedding_dimension())], device="cpu")
    return [words.max_seq_length, model.encode(texts).tolist()]


def main() -> None:
    texts = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    transformers.logging.set_verbosity_error()
    found: dict[str, dict[str, Any]] = {}
    for folder in sys.argv[2:]:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        ways: list[Any] = [ids]
        if next(Path(folder).rglob("*.onnx"), None) is not None:
            ways.append(session)
        else:
            head = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["architectures"][0]
            by_head = {"MaskedLM": (fill_mask, sentences), "Classification": (classes,), "Answering": (answer,)}
            ways += [tensors, *next(ways for ending, ways in by_head.items() if head.endswith(ending))]
        absent = [] if importlib.util.find_spec("sentence_transformers") else [sentences]
        # transformers 5 has no pipeline for questions.
        absent += [] if transformers.__version__.startswith("4.") else [answer]
        ways = [way for way in ways if way not in absent]
        found[folder] = {way.__name__: way(folder, texts) for way in ways}
        found[folder]["reads"] = {"names": tokenizer.model_input_names, "longest": tokenizer.model_max_length}
    print(json.dumps({"version": transformers.__version__, "found": found}))


if __name__ == "__main__":
    main()
