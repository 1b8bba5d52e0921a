"""Opens the measuring page in a browser tab, and asks it questions as a person would."""

import contextlib
from collections.abc import Iterator

import chromium
import phone_setup

from cluster.artifacts import artifact
from eval.mobile.page_server import ResultInbox, serving

READY = "document.getElementById('measure').disabled === false"


@contextlib.contextmanager
def open_page(tab: chromium.Tab, page: artifact.Artifact) -> Iterator[tuple[ResultInbox, int]]:
    """The page, loaded in the tab, and its server."""
    inbox = phone_setup.result_inbox(page)
    with serving(inbox, "127.0.0.1", 0) as port:
        tab.go(f"http://127.0.0.1:{port}/?t={inbox.token}")
        tab.wait(READY)
        yield inbox, port


def text(tab: chromium.Tab, name: str) -> str:
    return str(tab.run(f"document.getElementById('{name}').innerText")).replace("\u00a0", " ")


def submit(tab: chromium.Tab, passage: str, question: str) -> None:
    """Select a custom text, type the text and the question, press Enter."""
    tab.run("document.getElementById('text').value = 'own'")
    tab.run("document.getElementById('text').dispatchEvent(new Event('change'))")
    tab.run("document.getElementById('draft').focus()")
    tab.type(passage)
    tab.run("document.getElementById('question').focus(); document.getElementById('question').select()")
    tab.type(question)
    tab.key("Enter", "\r")


def ask(tab: chromium.Tab, passage: str, question: str) -> None:
    """Submit, and wait for the answers of both models."""
    submit(tab, passage, question)
    tab.wait("document.querySelectorAll('.answer').length === 2")
