"""The folder of an unfinished conversion: finished work survives a kill."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx


class Workspace:
    """Measurements and finished layers, on disk.

    Each file is written under another name and then renamed. A kill at any moment
    leaves it whole or absent.

    Attributes:
        folder: `.NAME.nibble` beside the output folder.
        finished: Number of finished layers.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any]):
        """Open the workspace of an output folder; empty it if settings differ."""
        self.folder = out.parent / f".{out.name}.nibble"
        stated = json.dumps(settings, sort_keys=True)
        if self._read("settings.json") != stated:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            self._replace("settings.json", stated)
        progress = self._read("progress.json")
        self.finished = json.loads(progress)["finished"] if progress else 0

    def save_record(self, name: str, value: Any) -> None:
        """Write a value that JSON can represent."""
        self._replace(f"{name}.json", json.dumps(value))

    def load_record(self, name: str) -> Any:
        """Return the value of a name; None if there is none."""
        text = self._read(f"{name}.json")
        return None if text is None else json.loads(text)

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
        loaded = mx.load(str(self.folder / f"{name}.safetensors"))
        assert isinstance(loaded, dict)
        return loaded

    def finish_layer(self, count: int) -> None:
        """Record `count` finished layers."""
        self._replace("progress.json", json.dumps({"finished": count}))

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder)

    def _save(self, name: str, arrays: Mapping[str, mx.array]) -> None:
        partial = self.folder / f"partial-{name}"
        try:
            mx.save_safetensors(str(partial), dict(arrays))
        except RuntimeError as error:  # MLX's error, which lacks the reason
            raise OSError(f"[save] {partial} could not be written: {error}.") from error
        os.replace(partial, self.folder / name)

    def _replace(self, name: str, text: str) -> None:
        partial = self.folder / f"partial-{name}"
        partial.write_text(text)
        os.replace(partial, self.folder / name)

    def _read(self, name: str) -> str | None:
        path = self.folder / name
        return path.read_text() if path.exists() else None
