"""Describes the machine of a run, without names of persons, hosts or networks."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_nibble import _native
from mlx_nibble.machine import gpu

_CPUS = Path("/sys/devices/system/cpu")
_SUPPLIES = Path("/sys/class/power_supply")
# If the system reports no size: larger than the cache of most desktops.
_UNKNOWN_CACHE = 64 << 20


def describe() -> dict[str, Any]:
    """Return the machine's current state, as JSON values.

    A value that the system does not tell is None.
    """
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "last_level_cache_bytes": last_level_cache_bytes(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "system": system(),
        "device": device(),
        "gpu": gpu.info().get("device_name"),
        "cpu_isa": None if _native.ext is None else _native.ext.cpu_isa(),
        "power": power_mode(),
    }


def versions() -> dict[str, str | None]:
    """Return the versions of Python and the packages that affect a measurement."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("mlx", "mlx-nibble", "mlx-lm", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def device() -> str:
    """Return the device that is measured: "cpu" or "gpu"."""
    return str(mx.default_device().type).removeprefix("DeviceType.")


def system() -> str:
    """Return name, version and architecture of the operating system."""
    mac = platform.mac_ver()[0]
    name = f"macOS {mac}" if mac else f"{platform.system()} {platform.release()}"
    return f"{name} {platform.machine()}"


def cpu_name() -> str:
    """Return the maker's name of the processor."""
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def threads() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def last_level_cache_bytes() -> int:
    """Return the size of the largest cache that is reported, at least 64 MiB."""
    sizes = [_UNKNOWN_CACHE]
    if sys.platform == "darwin":
        # Apple's system-level cache is not reported; the largest is 96 MB.
        sizes.append(96 << 20)
    for file in (_CPUS / "cpu0" / "cache").glob("index*/size"):
        if match := re.fullmatch(r"(\d+)K\s*", file.read_text()):
            sizes.append(int(match[1]) << 10)
    return max(sizes)


def busy_elsewhere() -> float | None:
    """Return the seconds that the cores have worked for other processes.

    Children of this process are left out once they have ended. Time that the hypervisor
    took is included. None if the system does not tell.
    """
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    except OSError:
        return None
    user, nice, kernel, _idle, _wait, irq, softirq, steal = map(int, fields)
    ticks = user + nice + kernel + irq + softirq + steal
    spent = os.times()
    ours = time.process_time() + spent.children_user + spent.children_system
    return ticks / os.sysconf("SC_CLK_TCK") - ours


def power_mode() -> str | None:
    """Return the power mode, such as "governor performance, on mains"."""
    if sys.platform == "darwin":
        said = _output("pmset", "-g") + _output("pmset", "-g", "batt")
        low = re.search(r"\blowpowermode\s+1", said)
        source = re.search(r"drawing from '(.*?)'", said)
        mode = ["low power mode" if low else "", source[1] if source else ""]
    else:
        governor = _read(_CPUS / "cpu0" / "cpufreq" / "scaling_governor")
        mains = [_read(file) for file in sorted(_SUPPLIES.glob("A*/online"))]
        mode = [f"governor {governor}" if governor else ""]
        mode += ["on mains" if "1" in mains else "on battery"] if mains else []
    return ", ".join(part for part in mode if part) or None


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""
