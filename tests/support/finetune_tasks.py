"""Small tasks that tiny models learn in a second, and a function that runs the fine-tuning stage."""

import json
import random
from pathlib import Path
from typing import Any

from cluster.artifacts import stage
from eval.finetune.stage import STAGE, Finetune

GOOD = ["warm", "clear", "honey", "spring", "green", "garden", "light", "bread", "gold", "river"]
BAD = ["broken", "frozen", "flood", "fire", "loud", "dull", "leak", "snow", "black", "winter"]
QUICK = {"epochs": 4, "learning_rate": 3e-3, "batch": 16, "max_length": 32}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def sentiment(folder: Path, rows: int = 240) -> Path:
    """Sentences of good words, labelled 1, and of bad words, labelled 0."""
    chance = random.Random(5)
    examples = []
    for _ in range(rows):
        label = chance.randrange(2)
        words = chance.choices(GOOD if label else BAD, k=3) + chance.choices(["the", "and", "a"], k=4)
        chance.shuffle(words)
        examples.append({"sentence": " ".join(words), "label": label})
    write_rows(folder / "train.jsonl", examples[: rows * 3 // 4])
    write_rows(folder / "dev.jsonl", examples[rows * 3 // 4 :])
    return folder


def write_squad(path: Path, questions: list[dict[str, Any]]) -> None:
    """A file in SQuAD's JSON format. Questions have ``id``, ``question``, ``context`` and ``answers`` (text, start)."""
    paragraphs = [
        {
            "context": each["context"],
            "qas": [
                {
                    "id": each["id"],
                    "question": each["question"],
                    "answers": [{"text": text, "answer_start": start} for text, start in each["answers"]],
                    "is_impossible": not each["answers"],
                }
            ],
        }
        for each in questions
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"version": "1.1", "data": [{"title": "Mill", "paragraphs": paragraphs}]}
    path.write_text(json.dumps(content), encoding="utf-8")


def colours(count: int, *, silent: bool = False, filler: int = 6) -> list[dict[str, Any]]:
    """Questions whose answer is the one good word of a passage; with ``silent``, 40 % have no answer."""
    chance = random.Random(3)
    found = []
    for number in range(count):
        words = chance.choices(["the", "and", "of", "to", "was", "in"], k=filler)
        answer = chance.choice(GOOD)
        answerable = not silent or chance.random() < 0.6
        if answerable:
            words.insert(chance.randrange(len(words) + 1), answer)
        context = " ".join(words)
        answers = [(answer, context.index(answer))] if answerable else []
        found.append({"id": f"q{number}", "question": "what is it?", "context": context, "answers": answers})
    return found


def finetune(model: Path, data: Path, out: Path, teacher: Path | None = None, **values: Any) -> dict[str, Any]:
    """Run the stage; returns its scores.json."""
    inputs = {"model": model, "data": data} | ({"teacher": teacher} if teacher else {})
    stage.execute(STAGE, Finetune.of({**QUICK, **values}), inputs, out)
    return dict(json.loads((out / "scores.json").read_text(encoding="utf-8")))
