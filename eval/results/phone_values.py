"""Values of the mobile benchmarks for the report."""

import dataclasses
import datetime
import re
from collections.abc import Iterator
from typing import Any

from eval.results import paper
from eval.results.collect import Results
from eval.results.schema import PhoneMeasurement

PROXY = "proxy, no phone"
TRANSPORTS = {"browser": "in a browser", "adb": "over adb", "proxy": PROXY}


def values(results: Results) -> dict[str, Any]:
    """Benchmarks, links of waiting jobs, and the paper's phone, for ``report.json``."""
    return {
        "measured": [{"name": name, **_phone_values(phone)} for name, phone in results.phones.items()],
        "waiting": [
            {"name": name, "section": f"link-{name}", "link": each.link, "until": _minute(each.until)}
            for name, each in results.links.items()
        ],
        "paper": {"phone": paper.PHONE, "rows": list(_published())},
    }


def _phone_values(phone: PhoneMeasurement) -> dict[str, Any]:
    return {**dataclasses.asdict(phone), "title": _title(phone)}


def _title(phone: PhoneMeasurement) -> str:
    """A short description of the device."""
    about = phone.device
    if phone.way == "proxy":
        return str(about["processor"])
    if phone.way == "adb":
        named = " ".join(str(about[key]) for key in ("maker", "model") if about.get(key))
        system = f"Android {about['android']}" if about.get("android") else None
        return ", ".join(filter(None, (named, about.get("chip"), system)))
    # Browsers describe the device in the first brackets: (Linux; Android 14; Pixel 7).
    found = re.search(r"\(([^)]*)\)", about["user_agent"])
    return found[1] if found else str(about["platform"])


def _minute(seconds: float) -> str:
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M}"


def _published() -> Iterator[dict[str, Any]]:
    slowest = paper.PHONES[0].milliseconds
    for each in paper.PHONES:
        alone = each.milliseconds == slowest
        yield {
            "model": each.model,
            "p50_ms": each.milliseconds,
            "bytes": each.bytes,
            "ratio_to_teacher": None if alone else slowest / each.milliseconds,
            "less_time_percent": None if alone else 100 * (1 - each.milliseconds / slowest),
        }
