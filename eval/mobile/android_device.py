"""An Android phone over adb: commands, files, description, cores and temperature."""

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.artifacts.errors import StageError
from cluster.telemetry.error_text import last_line

HOT = 2
"""Thermal status at which Android starts to slow its cores: 0 none, 1 light, 2 moderate, up to 6 shutdown."""

TIMEOUT_SECONDS = 900.0
"""Of one command: calls of a large model on slow cores take minutes."""

_STATES = {
    "unauthorized": "unlock it and allow debugging from this computer on its screen",
    "offline": "plug it in again, or run adb reconnect",
    "no permissions": "this user may not use the USB device: see adb's notes on udev rules",
}


@dataclass(frozen=True)
class AndroidPhone:
    """A connected phone."""

    program: str
    serial: str

    def run(self, *arguments: str) -> str:
        """Output of an adb command.

        Raises:
            StageError: it failed, or the phone is gone.
        """
        done = _adb(self.program, "-s", self.serial, *arguments)
        if done.returncode != 0:
            reason = last_line(done.stderr.strip() or done.stdout, f"exit {done.returncode}")
            raise StageError(f"adb {arguments[0]} on {self.serial}: {reason}")
        return done.stdout

    def shell(self, command: str) -> str:
        """Output of a shell command on the phone.

        Raises:
            StageError: it failed, or the phone is gone.
        """
        return self.run("shell", command)

    def query(self, command: str) -> str:
        """Output of a shell command, or an empty string if it fails: phones differ in what they have and allow."""
        done = _adb(self.program, "-s", self.serial, "shell", command)
        return done.stdout.strip() if done.returncode == 0 else ""

    def describe(self) -> dict[str, Any]:
        """Maker, chip, system and cores; None for what the phone does not report."""
        properties = {
            "model": "ro.product.model",
            "maker": "ro.product.manufacturer",
            "chip": "ro.soc.model",
            "board": "ro.board.platform",
            "android": "ro.build.version.release",
            "abi": "ro.product.cpu.abi",
        }
        found: dict[str, Any] = {name: self.query(f"getprop {key}") or None for name, key in properties.items()}
        memory = re.search(r"MemTotal:\s+(\d+) kB", self.query("cat /proc/meminfo"))
        return {**found, "memory_bytes": int(memory[1]) * 1024 if memory else None, "core_khz": self.core_khz()}

    def core_khz(self) -> dict[int, int]:
        """Highest clock of every core; empty if the phone does not report it."""
        listed = self.query("grep . /sys/devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq")
        found = re.findall(r"cpu(\d+)/cpufreq/cpuinfo_max_freq:(\d+)", listed)
        return {int(core): int(khz) for core, khz in found}

    def thermal(self) -> dict[str, Any]:
        """``status`` (see :data:`HOT`), °C by sensor, and the battery; None for what the phone does not report."""
        printed = self.query("dumpsys thermalservice")
        status = re.search(r"Thermal Status: (\d+)", printed)
        # Not the cached temperatures, which may be hours old.
        now = printed.partition("Current temperatures from HAL:")[2].partition("Current cooling devices")[0]
        sensors = re.findall(r"mValue=(-?[\d.]+), mType=\d+, mName=([^,]+),", now)
        battery = self.query("dumpsys battery")
        level, tenths = (re.search(rf"^\s*{name}: (\d+)", battery, re.MULTILINE) for name in ("level", "temperature"))
        return {
            "status": int(status[1]) if status else None,
            "celsius": {name: float(value) for value, name in sensors},
            "battery_percent": int(level[1]) if level else None,
            "battery_celsius": int(tenths[1]) / 10 if tenths else None,
        }


def connect(program: str, serial: str | None) -> AndroidPhone:
    """The phone with this serial number, or the only one.

    Raises:
        StageError: adb is not installed, or it sees no such phone, several, or one that refuses the connection.
    """
    listed = _adb(program, "devices")
    if listed.returncode != 0:
        raise StageError(f"{program} devices: {listed.stderr.strip() or 'failed'}")
    phones = dict(re.findall(r"^(\S+)\t(.+?)\s*$", listed.stdout, re.MULTILINE))
    if not phones:
        raise StageError("adb sees no phone: plug one in and turn on USB debugging in its developer options")
    if serial is None and len(phones) > 1:
        raise StageError(f"adb sees {', '.join(phones)}: set placement.serial to one of them")
    chosen = serial or next(iter(phones))
    if chosen not in phones:
        raise StageError(f"adb sees {', '.join(phones)}, not {chosen}: set placement.serial to one of them")
    if (state := phones[chosen]) != "device":
        advice = next((text for word, text in _STATES.items() if state.startswith(word)), "plug it in again")
        raise StageError(f"phone {chosen} is {state}: {advice}")
    return AndroidPhone(program, chosen)


def cores_for(khz: Mapping[int, int], threads: int, which: str) -> list[int] | None:
    """The ``fast`` or ``slow`` cores for this number of threads; None (no pinning) for ``any`` or unknown clocks.

    Raises:
        StageError: fewer cores than threads.
    """
    if which == "any" or not khz:
        return None
    if threads > len(khz):
        raise StageError(f"threads = {threads}, but the phone has {len(khz)} cores: lower it")
    # Among equal cores the last ones: Android runs its own work on the first.
    ranked = sorted(khz, key=lambda core: (khz[core] if which == "fast" else -khz[core], core), reverse=True)
    return sorted(ranked[:threads])


def mask(cores: Sequence[int]) -> str:
    """The argument of Android's taskset: hexadecimal, without 0x."""
    return format(sum(1 << core for core in cores), "x")


def _adb(program: str, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            [program, *map(str, arguments)],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        silent = f"no answer within {TIMEOUT_SECONDS:.0f} s: look at the phone's screen and cable"
        return subprocess.CompletedProcess([program], 1, "", silent)
    except FileNotFoundError:
        raise StageError(
            f"{program} is not installed: install it (on Debian: apt-get install adb), set placement.adb to where it "
            "is, or measure with --set way.kind=browser"
        ) from None
