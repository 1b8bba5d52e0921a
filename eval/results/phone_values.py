"""Measurements on phones, for ``report.json``."""

import dataclasses
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from eval.results import paper
from eval.results.collect import Results
from eval.results.schema import PhoneMeasurement


def values(results: Results) -> dict[str, Any]:
    """Measurements by device, the links of jobs that wait for a phone, and the paper's phone."""
    return {
        "measured": [
            {"name": name, **dataclasses.asdict(phone), "title": _title(phone)}
            for name, phone in results.phones.items()
        ],
        "waiting": [
            {
                "name": name,
                "section": f"link-{name}",
                "link": each.link,
                "until": f"{datetime.fromtimestamp(each.until, UTC):%Y-%m-%d %H:%M}",
            }
            for name, each in results.links.items()
        ],
        "paper": {"phone": paper.PHONE, "rows": list(_published())},
    }


def _title(phone: PhoneMeasurement) -> str:
    """A short description of the device, from what it reports."""
    device = phone.device
    if phone.way == "proxy":
        return str(device["processor"])
    if phone.way == "adb":
        model = " ".join(str(device[key]) for key in ("maker", "model") if device.get(key))
        system = f"Android {device['android']}" if device.get("android") else None
        return ", ".join(filter(None, (model, device.get("chip"), system)))
    # The first brackets of a user agent describe the device: (Linux; Android 14; Pixel 7).
    match = re.search(r"\(([^)]*)\)", device["user_agent"])
    return match[1] if match else str(device["platform"])


def _published() -> Iterator[dict[str, Any]]:
    slowest = paper.PHONES[0].milliseconds
    for each in paper.PHONES:
        ratio = None if each.milliseconds == slowest else slowest / each.milliseconds
        yield {
            "model": each.model,
            "p50_ms": each.milliseconds,
            "bytes": each.bytes,
            "ratio_to_teacher": ratio,
            "less_time_percent": None if ratio is None else 100 * (1 - each.milliseconds / slowest),
        }
