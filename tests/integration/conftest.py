"""A headless Chromium that looks like a phone, for the tests of the page."""

from collections.abc import Iterator

import chromium
import pytest


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[chromium.Browser]:
    with chromium.open_browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def tab(browser) -> Iterator[chromium.Tab]:
    browser.events.clear()
    found = chromium.Tab(browser)
    found.phone()
    yield found
    found.close()
