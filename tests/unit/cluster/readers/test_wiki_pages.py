"""Pages of every WikiExtractor: any attributes, no titles, and nothing that vanishes."""

import bz2
import json
from pathlib import Path

import pytest

from cluster.artifacts.errors import StageError
from cluster.corpus.stage import Corpus
from cluster.readers import splits, text_files, text_lines
from cluster.readers.bad_documents import BadDocument, Document
from cluster.readers.wiki_pages import NO_TEXT

TITLES = ["Plain", 'The "Best" of A > B', "A & B", 'language="en"', "Título"]


def _read(path: Path) -> list[Document]:
    recipe = Corpus.of({"sources": [{"kind": "wikiextractor", "path": str(path)}]})
    spans = [span for piece in splits.make_splits(recipe.sources) for span in piece.spans]
    batches = (batch for span in spans for batch in text_files.read(recipe.sources[0], span))
    found = [document for _, documents in batches for document in documents]
    return [document.strip() if isinstance(document, str) else document for document in found]


HEADERS = {
    "3.x": '<doc id="{number}" url="https://x/?curid={number}" title="{title}">',
    "--revision": '<doc id="{number}" revid="91" url="https://x/?curid={number}" title="{title}">',
    "cirrus-extract": '<doc id="{number}" url="https://x/?curid={number}" title="{title}" language="en" revision="7">',
    "single quotes": "<doc id='{number}' title='{title}'>",
    "another order": '<doc title="{title}" id="{number}">',
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=[*HEADERS])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_every_header_is_read_and_the_text_begins_without_the_title(tmp_path: Path, header: str, mark: str) -> None:
    pages = [
        f"{header.format(number=number, title=title)}\n{title}\n\nText of {number}.\n\n</doc>\n"
        for number, title in enumerate(TITLES)
    ]
    (tmp_path / "wiki_00").write_text(mark + "".join(pages), encoding="utf-8")
    assert _read(tmp_path) == [f"Text of {number}." for number in range(len(TITLES))]
    (tmp_path / "wiki_01.bz2").write_bytes(bz2.compress("".join(pages).encode()))
    assert len(_read(tmp_path)) == 2 * len(TITLES)


def test_a_title_that_is_no_first_line_takes_nothing_away(tmp_path: Path) -> None:
    (tmp_path / "wiki_00").write_text('<doc id="1" title="Mill">\nA mill grinds.\nMill\n</doc>\n', encoding="utf-8")
    assert _read(tmp_path) == ["A mill grinds.\nMill"]


def test_an_array_of_pages_is_refused_with_what_converts_it(tmp_path: Path) -> None:
    (tmp_path / "wiki_00").write_text(json.dumps([{"title": "Mill", "text": "Mill"}]), encoding="utf-8")
    with pytest.raises(StageError, match="jq -c"):
        _read(tmp_path)


def test_json_pages_lose_their_titles_too(tmp_path: Path) -> None:
    pages = [{"id": "1", "title": "Mill", "text": "Mill\n\nA &lt;mill&gt; grinds."}, {"title": "Oven", "text": "Hot."}]
    (tmp_path / "wiki_00").write_text("\ufeff" + "\n".join(map(json.dumps, pages)), encoding="utf-8")
    assert _read(tmp_path) == ["A <mill> grinds.", "Hot."]


OUTSIDE = """before
and more

<doc id="1" title="A">
A

Text of A.
</doc>
between
<doc id="2" title="Empty">
Empty

</doc>
<doc id="3" title="Open">
Open

Text that no line ends.
<doc id="4" title="D">
D

Text of D.
</doc>
after
"""


@pytest.mark.parametrize("size", [3, 20, 64, 2**26])
def test_what_is_no_page_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(splits, "SPLIT_BYTES", size)
    monkeypatch.setattr(text_lines, "BLOCK", max(1, size // 2))
    (tmp_path / "wiki_00").write_text(OUTSIDE, encoding="utf-8")
    found = _read(tmp_path)
    assert [document for document in found if isinstance(document, str)] == ["Text of A.", "Text of D."]
    reasons = [document.reason for document in found if isinstance(document, BadDocument)]
    assert reasons.count(NO_TEXT) == reasons.count("unfinished") == 1
    assert "outside of <doc>" in reasons
    if size == 2**26:
        assert reasons == ["outside of <doc>", "outside of <doc>", NO_TEXT, "unfinished", "outside of <doc>"]


def test_a_file_without_a_page_is_one_fault(tmp_path: Path) -> None:
    (tmp_path / "wiki_00").write_text("Text\nwithout\npages.\n", encoding="utf-8")
    assert _read(tmp_path) == [BadDocument("outside of <doc>", "line 1", "Text")]
