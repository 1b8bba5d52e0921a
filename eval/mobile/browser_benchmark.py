"""Measure on any phone that opens a page: give out a one-time link, wait, and take the result it posts."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat

from cluster.artifacts import artifact
from cluster.artifacts.errors import StageError
from cluster.artifacts.recipe import Recipe
from cluster.storage import filesystem
from cluster.telemetry import progress
from eval.mobile import android_device, one_time_link, result_schema
from eval.mobile.page_server import ResultInbox, serving

LINK, PICTURE = "link.json", "link.svg"
"""The link of a job that waits, for a report that is made meanwhile: ``{"link": …, "until": …}`` in Unix time."""


class BrowserPlacement(Recipe):
    """How the phone is reached."""

    host: str = "0.0.0.0"
    port: Annotated[int, Field(ge=0, le=65535)] = 8765  # 0: any free one
    address: str | None = None  # as the phone sees it, where that is not host and port: https://bench.example.org
    certificate: str | None = None  # PEM files, for https
    key: str | None = None
    wait_seconds: PositiveFloat = 1800.0
    reach: Literal["network", "adb"] = "network"  # adb: a phone on a cable opens the page through it
    adb: str = "adb"
    serial: str | None = None  # of the phone, where adb sees several


def measure(
    page: artifact.Artifact, plan: Mapping[str, Any], where: BrowserPlacement, name: str, out: Path
) -> dict[str, Any]:
    """Facts of a benchmark, from the phone that opened the link of job ``name``; ``where`` is the recipe's placement.

    Raises:
        StageError: the page cannot measure this, the address cannot be had, or no result came in time.
    """
    _check(page, plan)
    models = [model["role"] for model in page.facts["models"]]
    inbox = ResultInbox(
        page,
        {"job": name, "plan": dict(plan), "version": page.facts["version"]},
        lambda posted: result_schema.read(posted, page.facts["version"], plan, models),
    )
    secure = one_time_link.tls(where.certificate, where.key)
    with serving(inbox, where.host, where.port, secure) as port:
        try:
            _invite(inbox, _address(where, port), port, where, out)
            _wait(inbox, where.wait_seconds)
        finally:
            # It leads nowhere any more.
            for each in (LINK, PICTURE):
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
        raise StageError(f"--page {page.location} is an export for another use: make the page with deploy.web_page")
    result_schema.check(plan, len(page.facts["models"]))
    for model in page.facts["models"]:
        if max(plan["lengths"]) > model["positions"]:
            raise StageError(
                f"lengths: {max(plan['lengths'])} tokens are more than {model['title']} has positions "
                f"({model['positions']}): lower it"
            )


def _address(where: BrowserPlacement, port: int) -> str:
    """Where a phone finds the page."""
    if where.address is not None:
        return str(where.address)
    if where.reach == "adb":
        return f"http://localhost:{port}"
    scheme = "https" if where.certificate else "http"
    host = where.host if where.host not in ("0.0.0.0", "::", "") else one_time_link.own_address()
    return f"{scheme}://{host}:{port}"


def _invite(inbox: ResultInbox, address: str, port: int, where: BrowserPlacement, out: Path) -> None:
    link = one_time_link.link(address, inbox.token)
    one_time_link.picture(link, out / PICTURE)
    filesystem.write_json(out / LINK, {"link": link, "until": time.time() + where.wait_seconds})
    progress.say(f"open this link on the phone within {where.wait_seconds / 60:.0f} minutes, and press Measure:")
    progress.say(link)
    for line in one_time_link.terminal(link):
        progress.say(line)
    if not one_time_link.is_secure(address):
        progress.say(
            "this link is plain http: browsers then give one thread and keep nothing for offline use. For all of it "
            'set placement.certificate and placement.key, or on Android placement.reach = "adb"'
        )
    if where.reach == "adb":
        phone = android_device.connect(where.adb, where.serial)
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
                came = "it was opened, but no result came" if opened else "nobody opened it"
                raise StageError(
                    f"the link has ended, {came} within {seconds:.0f} seconds: run this again for another link, or "
                    "raise placement.wait_seconds"
                )
    progress.say("the result is here")
