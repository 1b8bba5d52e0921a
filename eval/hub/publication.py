"""What of a model folder goes to the Hub, as it will be there.

The files of the artifact, its card and its manifest. Nothing else in the folder. The manifest loses who made it: the
host, the paths of the inputs, where it was placed. They are no part of its identity, which stays, so the files can be
checked on the other side. Other values may still name a folder of this machine: :attr:`Publication.paths` lists them.
"""

import json
import re
import socket
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from cluster.artifacts import artifact
from cluster.artifacts.artifact import Artifact
from cluster.artifacts.commit import CARD, MANIFEST, ArtifactError
from cluster.artifacts.errors import StageError
from cluster.models import card_text, example_inputs, export_spec, model_check
from cluster.storage import filesystem
from cluster.telemetry.formatting import file_size
from eval.hub import card_file

KINDS = ("student", "finetune", "export")
_PUBLIC_MADE = ("at", "seconds")
_SHOWN = (example_inputs.FILE, "tokenizer.json", "vocab.json")
"""JSON files whose texts are words of a vocabulary, or are shown whole."""
_PATH = re.compile(r"file:///[\w./ -]*|(?<![\w.:/<-])(?:~|[A-Z]:\\|/(?!/)[\w.-]+/)[\w./\\ -]*")
_SECRETS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{30,}|gh[a-z]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|sk-[\w-]{30,}|AKIA[A-Z0-9]{16})\b"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----|\w://[^\s/:@]+:[^\s/:@]+@"
)
"""Tokens of the Hub, GitHub, OpenAI and AWS, private keys, and passwords in URLs."""

_INDEX = re.compile(r"^model-index:", re.MULTILINE)
_USED = re.compile(rf"^## {card_text.USE}[ \t]*\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_NAMED = re.compile(r'(model=|from_pretrained\()"(?:[^"\\]|\\.)*"')
"""The model in the example of a card."""


@dataclass(frozen=True)
class Publication:
    """The files of a repository: from the folder, or with other contents."""

    folder: Path
    made: Artifact
    card: ModelCard
    manifest: str

    @property
    def license(self) -> str:
        return str(self.card.data.get("license"))

    def sizes(self) -> dict[str, int]:
        """Bytes by name, the largest first."""
        found = {name: int(entry["bytes"]) for name, entry in self.made.files.items()}
        found |= {CARD: len(str(self.card).encode()), MANIFEST: len(self.manifest.encode())}
        return dict(sorted(found.items(), key=lambda each: -each[1]))

    def contents(self) -> dict[str, Path | bytes]:
        """Name to file, or to what is in it."""
        found: dict[str, Path | bytes] = {name: self.folder / name for name in self.made.files}
        return found | {CARD: str(self.card).encode(), MANIFEST: self.manifest.encode()}

    def paths(self) -> list[str]:
        """Folders of this machine, and its name, in the card and the settings: ``README.md: /data/text``."""
        texts = [(CARD, str(self.card)), *_strings(json.loads(self.manifest), MANIFEST)]
        for name in self.made.files:
            if name.endswith(".json") and name not in _SHOWN:
                texts += _strings(filesystem.read_json(self.folder / name), name)
        found = [f"{where}: {path.strip()}" for where, text in texts for path in _PATH.findall(text)]
        host = socket.gethostname()
        named = re.compile(rf"(?<![\w-]){re.escape(host)}(?![\w-])")
        return [*dict.fromkeys(found), *(f"{where}: the host {host}" for where, text in texts if named.search(text))]

    def check(self) -> None:
        """
        Raises:
            StageError: a text holds a password.
        """
        for name, content in self.contents().items():
            if name.endswith((".md", ".json", ".txt")):
                text = (content if isinstance(content, bytes) else content.read_bytes()).decode("utf-8", "replace")
                if found := _SECRETS.search(text):
                    raise StageError(
                        f"{name} holds what looks like a password ({found[0][:6]}…), and nothing is sent: take it out, "
                        "and make it invalid where others have seen it"
                    )

    def lines(self) -> Iterator[str]:
        """What becomes public, for people."""
        sizes = self.sizes()
        yield f"{len(sizes)} files, {file_size(sum(sizes.values()))}"
        yield from (f"  {name:32} {file_size(size)}" for name, size in sizes.items())
        yield f"license: {self.license}"
        yield "metadata of the card:"
        yield from (f"  {line}" for line in self.card.data.to_yaml().splitlines())
        yield "training text:"
        yield from (f"  {line}" for line in _section(self.card.text, card_text.TEXT) or ["the card does not say"])
        yield f"{MANIFEST}: without host, paths of the inputs and placement; its identity stays"
        if examples := example_inputs.read(self.folder):
            yield f"examples of the development set that become readable, word for word ({example_inputs.FILE}):"
            texts = (" | ".join(filter(None, (one.text, one.second, one.answer))) for one in examples)
            yield from (f"  {textwrap.shorten(text, 100, placeholder=' …')}" for text in texts)
        if paths := self.paths():
            yield "names of this machine that become readable:"
            yield from (f"  {path}" for path in paths)


def of(folder: Path, repository: str, license_id: str | None = None) -> Publication:
    """What of a folder goes to a repository.

    Raises:
        ArtifactError: no student, fine-tuned model or export, or a file was changed.
        StageError: no card, a card without a license, or a password in a text.
    """
    made = artifact.read(folder)
    if made.kind not in KINDS:
        raise ArtifactError(f"{folder} is {artifact.named(made.kind)}: name a student, a fine-tuned model or an export")
    model_check.check(folder)
    found = Publication(folder, made, _card(folder, made, repository, license_id), _public_manifest(made.manifest))
    found.check()
    return found


def _card(folder: Path, made: Artifact, repository: str, license_id: str | None) -> ModelCard:
    """The card as it will be: with the license, and the name of the repository where it says how to use the model."""
    if filesystem.is_file(folder / CARD):
        card = card_file.read(folder / CARD)
        if card.data.get("eval_results") is None and _INDEX.search((folder / CARD).read_text(encoding="utf-8")):
            raise ArtifactError(f"{folder / CARD}: its model-index cannot be read: correct it, or delete it")
    elif made.kind == "export":
        card = ModelCard(
            f"---\nlibrary_name: {export_spec.read(folder).runtime}\n---\n\n{_export_text(repository, made)}\n"
        )
    else:
        raise StageError(f"{folder} has no {CARD}: stillhouse card REPORT --student {folder} writes one")
    card.data["license"] = stated = license_id or card.data.get("license")
    if stated in (None, "", "unknown"):
        raise StageError(f"{folder / CARD} states no license: give --license ID, for example --license apache-2.0")
    card.text = _USED.sub(lambda found: _NAMED.sub(rf'\g<1>"{repository}"', found[0]), card.text)
    return card


def _export_text(repository: str, made: Artifact) -> str:
    facts, title = made.facts, repository.rpartition("/")[2]
    return (
        f"# {title}\n\nA model in the format {facts.get('format', 'of its manifest')}, exported with Stillhouse. "
        f"`runtime.json` describes its inputs and outputs.\n\n## {card_text.USE}\n\n```bash\n"
        f'hf download {repository} --local-dir {title}\nstillhouse predict {title} "A text."\n```'
    )


def _public_manifest(manifest: Mapping[str, Any]) -> str:
    made = {key: manifest["made"][key] for key in _PUBLIC_MADE}
    return filesystem.json_text({**manifest, "made": made})


def _strings(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """Every string in a JSON value, with its key."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _strings(inner, f"{where}, {key}" if where.endswith(".json") else f"{where}.{key}")
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, where)
    elif isinstance(value, str):
        yield where, value


def _section(text: str, title: str) -> list[str]:
    """Lines of a section, without empty ones."""
    found = re.search(rf"^## {re.escape(title)}[ \t]*\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return [line for line in found[1].splitlines() if line.strip()] if found else []
