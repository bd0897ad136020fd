"""Processes of other libraries, each in an environment of its own under build/peers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

# Packages that pip installs for each peer. llama.cpp is built from source, for this
# processor.
PEERS = {
    "onnxruntime": ["onnxruntime==1.32.0", "onnx"],
    "openvino": ["openvino==2026.4.1"],
    "torch": ["torch==2.13.0+cpu"],
    "llama.cpp": ["llama-cpp-python==0.3.36"],
    "openvino-genai": ["openvino-genai==2026.4.1.0"],
    # The others are those that its builder of models needs.
    "onnxruntime-genai": [
        "onnxruntime-genai==0.18.0",
        "onnxruntime==1.32.0",
        "onnx-ir",
        "transformers",
        "torch==2.13.0+cpu",
    ],
}
# Without these options GCC 12 removes the stores of the tile configuration that
# llama.cpp's AMX kernels load, and they crash (its issue 20824).
NATIVE = "-DGGML_NATIVE=ON -DCMAKE_CXX_FLAGS='-fno-tree-dse -fno-dse'"
ENVIRONMENTS = Path(__file__).resolve().parent.parent / "build" / "peers"


def peer_python(name: str) -> Path:
    """Return the Python of the peer's environment; make the environment if needed."""
    home = ENVIRONMENTS / name
    python = home / "bin" / "python"
    done = home / "installed"
    if not done.exists():
        print(f"installing {name} into {home}", file=sys.stderr)
        venv.create(home, with_pip=True, clear=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--no-cache-dir"]
        command = [*pip, "numpy", *PEERS[name]]
        native = {"CMAKE_ARGS": NATIVE, **os.environ}
        subprocess.run(command, check=True, env=native)
        done.touch()
    return python


def script(name: str) -> Path:
    """Return the path of a script of this folder."""
    return Path(__file__).with_name(f"{name}.py")


class Peer:
    """A process that answers requests, and is stopped between its turns."""

    def __init__(self, command: Sequence[str | Path], *arguments: object):
        self._process = subprocess.Popen(
            [*command, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, request: object) -> object:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        self._process.send_signal(signal.SIGCONT)
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} ended")
        self._process.send_signal(signal.SIGSTOP)
        return json.loads(line)

    def close(self) -> None:
        self._process.send_signal(signal.SIGCONT)
        self._process.communicate()
