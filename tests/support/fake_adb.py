"""An imitation of adb with one phone attached: ``fake_adb.py STORAGE SERIAL adb-arguments``.

The phone's storage is a folder; its shell is this machine's, with the phone's programs (getprop, dumpsys, …) first
in the path and ``/data/local/tmp`` in the folder. States, stderr and exit codes of shell commands are those of adb.
Files in the folder change the phone: ``state`` (unauthorized, offline), ``hot`` (its thermal status),
``gone``.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

TEMPERATURES = """IsStatusOverride: false
Thermal Status: {status}
Cached temperatures:
\tTemperature{{mValue=99.0, mType=0, mName=BIG, mStatus=3}}
HAL Ready: true
Current temperatures from HAL:
\tTemperature{{mValue=41.5, mType=0, mName=BIG, mStatus=0}}
\tTemperature{{mValue=33.2, mType=3, mName=VIRTUAL-SKIN, mStatus=0}}
Current cooling devices from HAL:
\tCoolingDevice{{mValue=0, mType=2, mName=thermal-cpufreq-0}}
"""
BATTERY = "Current Battery Service state:\n  AC powered: false\n  level: 87\n  scale: 100\n  temperature: 305\n"
PROPERTIES = {
    "ro.product.model": "Pixel 7",
    "ro.product.manufacturer": "Google",
    "ro.soc.model": "GS201",
    "ro.build.version.release": "14",
    "ro.product.cpu.abi": "arm64-v8a",
}
CLOCKS = {0: 1803000, 1: 1803000, 2: 1803000, 3: 1803000, 4: 2348000, 5: 2348000, 6: 2850000, 7: 2850000}
PROGRAMS = {
    "getprop": 'case "$1" in\n' + "".join(f'{key}) echo "{value}";;\n' for key, value in PROPERTIES.items()) + "esac",
    "dumpsys": 'cat "$PHONE/dumpsys.$1"',
    "taskset": 'echo "$1" >> "$PHONE/pinned"; shift; exec "$@"',
    "am": 'echo "$@" >> "$PHONE/started"; echo "Starting: Intent"',
    "grep": 'case "$2" in /sys/devices/system/cpu/*) cat "$PHONE/clocks";; *) exec /bin/grep "$@";; esac',
}


def main(storage: Path, serial: str, arguments: list[str]) -> int:
    state = (storage / "state").read_text().strip() if (storage / "state").is_file() else "device"
    if arguments == ["devices"]:
        sys.stderr.write("* daemon not running; starting now at tcp:5037\n* daemon started successfully\n")
        listed = "" if (storage / "gone").exists() else f"{serial}\t{state}\n"
        sys.stdout.write(f"List of devices attached\n{listed}\n")
        return 0
    if arguments[:1] == ["-s"]:
        if arguments[1] != serial or (storage / "gone").exists():
            return fail(f"adb: device '{arguments[1]}' not found")
        arguments = arguments[2:]
    if state != "device":
        return fail(f"adb: device {state}.")
    command, *rest = arguments
    return {"shell": shell, "push": push, "pull": pull, "reverse": reverse}[command](storage, rest)


def fail(line: str) -> int:
    print(line, file=sys.stderr)
    return 1


def there(storage: Path, path: str) -> Path:
    assert path.startswith("/data/local/tmp/"), path
    return storage / path[1:]


def push(storage: Path, rest: list[str]) -> int:
    source, target = rest
    if not Path(source).is_file():
        return fail(f"adb: error: cannot stat '{source}': No such file or directory")
    shutil.copyfile(source, there(storage, target))
    print(f"{source}: 1 file pushed, 0 skipped. 38.1 MB/s ({Path(source).stat().st_size} bytes in 0.001s)")
    return 0


def pull(storage: Path, rest: list[str]) -> int:
    source, target = rest
    if not there(storage, source).is_file():
        return fail(f"adb: error: failed to stat remote object '{source}': No such file or directory")
    shutil.copyfile(there(storage, source), target)
    print(f"{source}: 1 file pulled, 0 skipped.")
    return 0


def reverse(storage: Path, rest: list[str]) -> int:
    (storage / "reversed").write_text(" ".join(rest))
    print(rest[0].removeprefix("tcp:"))
    return 0


def shell(storage: Path, rest: list[str]) -> int:
    programs = storage / "bin"
    programs.mkdir(exist_ok=True)
    for name, body in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    status = (storage / "hot").read_text().strip() if (storage / "hot").is_file() else "0"
    (storage / "dumpsys.thermalservice").write_text(TEMPERATURES.format(status=status))
    (storage / "dumpsys.battery").write_text(BATTERY)
    lines = [f"/sys/devices/system/cpu/cpu{core}/cpufreq/cpuinfo_max_freq:{khz}\n" for core, khz in CLOCKS.items()]
    (storage / "clocks").write_text("".join(lines))
    command = re.sub(r"/data/local/tmp", str(storage / "data/local/tmp"), " ".join(rest))
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PHONE": str(storage)}
    return subprocess.run(["/bin/sh", "-c", command], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
