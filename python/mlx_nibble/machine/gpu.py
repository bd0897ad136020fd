"""Facts of this machine's GPU. Nothing is asked before it is needed.

MLX makes its Metal device, which takes a library of 150 MB or more, at the first
question. It raises where there is none: in some virtual machines, sandboxes and
sessions without a screen.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess

import mlx.core as mx

# Metal's architecture string, as MLX reads it: "applegpu_g17s".
_ARCHITECTURE = re.compile(r"applegpu_g(\d+)([a-z])")


def info() -> dict[str, str]:
    """Return the GPU's properties as MLX reports them; empty without a usable GPU."""
    try:
        if not mx.is_available(mx.gpu):
            return {}
        found = mx.device_info(mx.gpu)
    except RuntimeError:
        return {}
    return {key: str(value) for key, value in found.items()}


def has_our_kernels() -> bool:
    """Return whether our kernels run on this GPU: Metal's only, so far."""
    return mx.metal.is_available()


def architecture() -> str:
    """Return Metal's architecture string; "" without a usable GPU."""
    return info().get("architecture", "")


def facts() -> tuple[int, bool, bool]:
    """Return what the planner needs beside the architecture.

    Returns:
        The number of cores, 0 if it is not known; whether MLX has kernels for the
        neural accelerators of these cores; and whether it lets them round float32.
    """
    tf32 = os.environ.get("MLX_ENABLE_TF32", "1") != "0"
    return core_count(), has_neural_kernels(architecture()), tf32


def core_count() -> int:
    """Return the number of cores; 0 if the system does not tell."""
    text = _output("/usr/sbin/ioreg", "-rc", "AGXAccelerator", "-d1")
    found = re.search(r'"gpu-core-count"\s*=\s*(\d+)', text)
    return int(found[1]) if found else 0


def has_neural_kernels(architecture: str) -> bool:
    """Return whether this MLX computes on the neural accelerators of a GPU.

    MLX does from generation 17 on (18 for phones) and from macOS 26.2 on, in its wheel
    for macOS 26; its wheel for macOS 14 never does (``is_nax_available`` of 0.32.4).
    """
    found = _ARCHITECTURE.fullmatch(architecture)
    if not found or int(found[1]) < (18 if found[2] == "p" else 17):
        return False
    # platform.mac_ver() says 16 to a Python that was built for an older macOS.
    system = _output("/usr/sbin/sysctl", "-n", "kern.osproductversion")
    version = tuple(int(part) for part in re.findall(r"\d+", system)[:2])
    return version >= (26, 2) and _wheel_system() >= 26


def _wheel_system() -> int:
    """Return the macOS that the wheel of MLX's Metal half was built for; 0: unknown."""
    try:
        tags = importlib.metadata.distribution("mlx-metal").read_text("WHEEL") or ""
    except importlib.metadata.PackageNotFoundError:
        return 0
    found = re.search(r"macosx_(\d+)_", tags)
    return int(found[1]) if found else 0


def _output(*command: str) -> str:
    """Return the output of a system tool; "" if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""
