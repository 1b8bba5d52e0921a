"""A phone over adb: commands, files, and what it says of itself, its cores and its temperature."""

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.artifacts.errors import StageError

HOT = 2
"""Thermal status from which Android slows its cores: 0 none, 1 light, 2 moderate, up to 6 shutdown."""

PATIENCE_SECONDS = 900.0
"""For one command: calls of a large model on slow cores take minutes, a phone that hangs takes for ever."""

_STATES = {
    "unauthorized": "unlock it and allow debugging from this computer on its screen",
    "offline": "plug it in again, or run adb reconnect",
    "no permissions": "this user may not use the USB device: see adb's notes on udev rules",
}


@dataclass(frozen=True)
class AndroidPhone:
    """One phone that answers."""

    program: str
    serial: str

    def run(self, *arguments: str) -> str:
        """What an adb command prints.

        Raises:
            StageError: it failed, or the phone is gone.
        """
        done = _adb(self.program, "-s", self.serial, *arguments)
        if done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise StageError(f"adb {arguments[0]} on {self.serial}: {said[-1] if said else f'exit {done.returncode}'}")
        return done.stdout

    def shell(self, command: str) -> str:
        """What a shell command on the phone prints.

        Raises:
            StageError: as :meth:`run`; a command that fails there fails here.
        """
        return self.run("shell", command)

    def asked(self, command: str) -> str:
        """What a shell command prints, or nothing where this phone does not have or allow it."""
        done = _adb(self.program, "-s", self.serial, "shell", command)
        return done.stdout.strip() if done.returncode == 0 else ""

    def describe(self) -> dict[str, Any]:
        """Make, chip, system and cores, as far as the phone tells."""
        properties = {
            "model": "ro.product.model",
            "maker": "ro.product.manufacturer",
            "chip": "ro.soc.model",
            "board": "ro.board.platform",
            "android": "ro.build.version.release",
            "abi": "ro.product.cpu.abi",
        }
        found: dict[str, Any] = {name: self.asked(f"getprop {key}") or None for name, key in properties.items()}
        memory = re.search(r"MemTotal:\s+(\d+) kB", self.asked("cat /proc/meminfo"))
        return {**found, "memory_bytes": int(memory[1]) * 1024 if memory else None, "core_khz": self.core_khz()}

    def core_khz(self) -> dict[int, int]:
        """Highest clock of every core; empty where the phone does not tell."""
        listed = self.asked("grep . /sys/devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq")
        found = re.findall(r"cpu(\d+)/cpufreq/cpuinfo_max_freq:(\d+)", listed)
        return {int(core): int(khz) for core, khz in found}

    def thermal(self) -> dict[str, Any]:
        """``status`` (see :data:`HOT`), temperatures in °C by sensor, and the battery; None for what is not told."""
        said = self.asked("dumpsys thermalservice")
        status = re.search(r"Thermal Status: (\d+)", said)
        # Cached ones may be hours old: only those that the hardware gives now.
        now = said.partition("Current temperatures from HAL:")[2].partition("Current cooling devices")[0]
        sensors = re.findall(r"mValue=(-?[\d.]+), mType=\d+, mName=([^,]+),", now)
        battery = self.asked("dumpsys battery")
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
        StageError: no adb here, no phone, several, or one that does not let us.
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
    """The ``fast`` or ``slow`` cores for so many threads; None where nothing is pinned: ``any``, or clocks not told.

    Raises:
        StageError: fewer cores than threads.
    """
    if which == "any" or not khz:
        return None
    if threads > len(khz):
        raise StageError(f"threads = {threads}, but the phone has {len(khz)} cores: lower it")
    # Of equal ones the last: Android puts its own work on the first.
    ranked = sorted(khz, key=lambda core: (khz[core] if which == "fast" else -khz[core], core), reverse=True)
    return sorted(ranked[:threads])


def mask(cores: Sequence[int]) -> str:
    """As Android's taskset takes it: hexadecimal, without 0x."""
    return format(sum(1 << core for core in cores), "x")


def _adb(program: str, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            [program, *map(str, arguments)],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=PATIENCE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        silent = f"no answer within {PATIENCE_SECONDS:.0f} s: look at the phone's screen and cable"
        return subprocess.CompletedProcess([program], 1, "", silent)
    except FileNotFoundError:
        raise StageError(
            f"{program} is not installed: install it (on Debian: apt-get install adb), set placement.adb to where it "
            "is, or measure with --set way.kind=browser"
        ) from None
