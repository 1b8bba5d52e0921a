"""Measure in a phone's browser: print a one-time link, wait, and accept the result that the page posts."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat

from cluster.artifacts import artifact
from cluster.artifacts.errors import StageError
from cluster.artifacts.recipe import Recipe
from cluster.serving import links
from cluster.storage import filesystem
from cluster.telemetry import progress
from eval.mobile import android_device, one_time_link, result_schema
from eval.mobile.page_server import ResultInbox, serving

LINK, QR_CODE = "link.json", "link.svg"
"""Files for reports that are made while the job waits: ``{"link": …, "until": …}`` in Unix time, and its QR code."""


class BrowserPlacement(Recipe):
    """How the phone is reached."""

    host: str = "0.0.0.0"
    """Address that the page's server listens on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8765
    """Its port; 0 takes any free one."""
    address: str | None = None
    """The page's address for the phone, if not host and port: ``https://bench.example.org``."""
    certificate: str | None = None
    """PEM file of the certificate, for https."""
    key: str | None = None
    """PEM file of the certificate's key."""
    wait_seconds: PositiveFloat = 1800.0
    """Longest wait for the phone, in seconds."""
    reach: Literal["network", "adb"] = "network"
    """"adb" opens the page on a phone that is connected by cable."""
    adb: str = "adb"
    """The adb program."""
    serial: str | None = None
    """Serial number of the phone, if adb sees several."""


def measure(
    page: artifact.Artifact, plan: Mapping[str, Any], placement: BrowserPlacement, name: str, out: Path
) -> dict[str, Any]:
    """Facts of a benchmark, from the phone that opens the link of job ``name``.

    Raises:
        StageError: the page cannot measure this plan, the address is not available, or no result came in time.
    """
    _check(page, plan)
    models = [model["role"] for model in page.facts["models"]]
    inbox = ResultInbox(
        page,
        {"job": name, "plan": dict(plan), "version": page.facts["version"]},
        lambda posted: result_schema.read(posted, page.facts["version"], plan, models),
    )
    secure = one_time_link.tls(placement.certificate, placement.key)
    with serving(inbox, placement.host, placement.port, secure) as port:
        try:
            _invite(inbox, _address(placement, port), port, placement, out)
            _wait(inbox, placement.wait_seconds)
        finally:
            for each in (LINK, QR_CODE):
                (out / each).unlink(missing_ok=True)
    result: result_schema.PhoneResult = inbox.result
    filesystem.write_json(out / "posted.json", result.model_dump(mode="json"))
    return {
        "device": result.device.model_dump(mode="json"),
        "rows": result_schema.rows(result, page.facts),
        "problems": [problem.model_dump(mode="json") for problem in result.problems],
        "unfit": result_schema.unfit(result),
        "page": page.facts["version"],
    }


def _check(page: artifact.Artifact, plan: Mapping[str, Any]) -> None:
    if page.facts.get("format") != "page":
        raise StageError(f"--page {page.location} is an export for another use: make the page with stillhouse web-page")
    result_schema.check(plan, len(page.facts["models"]))
    for model in page.facts["models"]:
        if max(plan["lengths"]) > model["positions"]:
            raise StageError(
                f"lengths: {max(plan['lengths'])} tokens are more than {model['title']} has positions "
                f"({model['positions']}): lower it"
            )


def _address(placement: BrowserPlacement, port: int) -> str:
    """Address of the page for the phone."""
    if placement.address is not None:
        return str(placement.address)
    if placement.reach == "adb":
        return f"http://localhost:{port}"
    scheme = "https" if placement.certificate else "http"
    return f"{scheme}://{links.reachable(placement.host)}:{port}"


def _invite(inbox: ResultInbox, address: str, port: int, placement: BrowserPlacement, out: Path) -> None:
    link = one_time_link.link(address, inbox.token)
    (out / QR_CODE).write_text(links.svg(link), encoding="utf-8")
    filesystem.write_json(out / LINK, {"link": link, "until": time.time() + placement.wait_seconds})
    progress.say(f"open this link on the phone within {placement.wait_seconds / 60:.0f} minutes, and press Measure:")
    progress.say(link)
    for line in links.terminal(link):
        progress.say(line)
    if not one_time_link.is_secure(address):
        progress.say(
            "with plain http, browsers allow one thread and no offline use: for both, "
            'set placement.certificate and placement.key, or on Android placement.reach = "adb"'
        )
    if placement.reach == "adb":
        phone = android_device.connect(placement.adb, placement.serial)
        phone.run("reverse", f"tcp:{port}", f"tcp:{port}")
        phone.shell(f"am start -a android.intent.action.VIEW -d '{link}'")


def _wait(inbox: ResultInbox, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    opened = False
    with progress.Progress("waiting for a phone", round(seconds), "seconds") as shown:
        while not inbox.done.wait(min(1.0, max(0.0, deadline - time.monotonic()))):
            if inbox.opened.is_set() and not opened:
                opened = True
                progress.say("the link was opened")
            shown.advance()
            if time.monotonic() >= deadline:
                state = "opened" if opened else "not opened"
                raise StageError(
                    f"the link was {state}, but no result came within {seconds:.0f} seconds, and it has expired: run "
                    "this again for another link, or raise placement.wait_seconds"
                )
    progress.say("received the result")
