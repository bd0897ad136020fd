"""The folder of an unfinished conversion: finished work survives a kill."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_nibble.io.checkpoint import read_tensors, save_tensors
from mlx_nibble.io.folder import flush, work_folder
from mlx_nibble.progress import Tell, untold

SOURCE = "source"
"""The folder, within that of a workspace, of a model that was imported first."""


class Workspace:
    """Measurements and finished layers, on disk.

    Each file is written under another name and then renamed. A kill at any moment
    leaves it whole or absent.

    Attributes:
        folder: `.NAME.nibble` beside the output folder.
        finished: Number of finished layers.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], tell: Tell = untold):
        """Open the workspace of an output folder; empty it if settings differ.

        Args:
            out: The output folder.
            settings: All that the work depends on, by the words that name it.
            tell: Function that is told why earlier work is not continued.
        """
        self.folder = work_folder(out)
        self.finished = 0
        if (why := self._unusable(settings)) is None:
            return
        if why:
            tell(f"Starting afresh: {why}.")
        self._empty()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._replace("settings.json", json.dumps(settings))

    def _unusable(self, settings: Mapping[str, Any]) -> str | None:
        """Return why the work that is there cannot be continued; None if it can."""
        if not (self.folder / "settings.json").exists():
            return ""
        try:
            then = json.loads(self._read("settings.json") or "")
            # As it would be read back.
            now = json.loads(json.dumps(settings))
            if other := [k for k in now if k not in then or then[k] != now[k]]:
                return f"the unfinished conversion has another {' and '.join(other)}"
            if then != now:
                raise ValueError(then)
            progress = self._read("progress.json")
            self.finished = int(json.loads(progress)["finished"]) if progress else 0
            if not all(self.has_part(name) for name in self._needed()):
                raise ValueError(self.finished)
        except (ArithmeticError, ValueError, TypeError, KeyError, RecursionError):
            self.finished = 0
            return f"the unfinished conversion in '{self.folder}' is damaged"
        return None

    def _needed(self) -> Iterator[str]:
        """Yield the parts that the recorded progress needs, which may be too many."""
        yield from (f"layer-{i:05}" for i in range(self.finished))

    def _empty(self) -> None:
        """Delete all but the imported source, which the caller has just made."""
        for entry in self.folder.glob("*"):
            if entry.is_dir() and not entry.is_symlink():
                if entry.name != SOURCE:
                    shutil.rmtree(entry)
            else:
                entry.unlink()

    def save_record(self, name: str, value: Any) -> None:
        """Write a value that JSON can represent."""
        self._replace(f"{name}.json", json.dumps(value))

    def load_record(self, name: str) -> Any:
        """Return the value of a name; None if there is none."""
        text = self._read(f"{name}.json")
        try:
            return None if text is None else json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"{name}.json") from error

    def keep_plan(self, plan: Any) -> None:
        """Record the plan of the layers; delete layers of another plan."""
        if self.load_record("plan") == plan:
            return
        (self.folder / "progress.json").unlink(missing_ok=True)
        for part in self.folder.glob("*.safetensors"):
            part.unlink()
        self.finished = 0
        self.save_record("plan", plan)

    def save_part(self, name: str, arrays: Mapping[str, mx.array]) -> None:
        """Write the arrays of a finished layer, or of the modules outside."""
        self._save(f"{name}.safetensors", arrays)

    def has_part(self, name: str) -> bool:
        """Tell whether a part exists."""
        return (self.folder / f"{name}.safetensors").exists()

    def load_part(self, name: str) -> dict[str, mx.array]:
        """Return the lazy arrays of a part."""
        return read_tensors([self.folder / f"{name}.safetensors"], "convert")

    def finish_layer(self, count: int) -> None:
        """Record `count` finished layers."""
        self._replace("progress.json", json.dumps({"finished": count}))

    def _damaged(self, name: str) -> ValueError:
        return ValueError(
            f"[convert] the state of the unfinished conversion is damaged: {name!r} in "
            f"{str(self.folder)!r}. Remove that folder to start afresh."
        )

    def _save(self, name: str, arrays: Mapping[str, mx.array]) -> None:
        partial = self.folder / f"partial-{name}"
        save_tensors(partial, arrays)
        self._rename(partial, name)

    def _replace(self, name: str, text: str) -> None:
        partial = self.folder / f"partial-{name}"
        partial.write_text(text)
        self._rename(partial, name)

    def _rename(self, partial: Path, name: str) -> None:
        flush(partial)  # a power cut must not leave a whole name of half a file
        os.replace(partial, self.folder / name)

    def _read(self, name: str) -> str | None:
        path = self.folder / name
        return path.read_text(encoding="utf-8") if path.exists() else None
