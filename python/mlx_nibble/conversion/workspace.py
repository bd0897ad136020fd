"""The folder of an unfinished conversion: finished work survives a kill."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_nibble.io.checkpoint import read_tensors


class Workspace:
    """Measurements, finished layers and the hidden states after them, on disk.

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
        progress = self.load_record("progress")
        self.finished = 0 if progress is None else self._checked(progress)

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

    def finish_layer(self, count: int, states: Sequence[mx.array]) -> None:
        """Record `count` finished layers and the hidden states after them."""
        name = f"states-{count:05}.safetensors"
        self._save(name, {str(i): x for i, x in enumerate(states)})
        self._replace("progress.json", json.dumps({"finished": count}))
        for old in self.folder.glob("states-*.safetensors"):
            if old.name != name:
                old.unlink()

    def states(self) -> list[mx.array]:
        """Return the states recorded last, one for each batch."""
        name = f"states-{self.finished:05}"
        loaded = self.load_part(name)
        if loaded.keys() != set(map(str, range(len(loaded)))):
            raise self._damaged(f"{name}.safetensors")
        return [loaded[str(i)] for i in range(len(loaded))]

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder)

    def _checked(self, progress: Any) -> int:
        """Return the number of finished layers."""
        finished = progress.get("finished") if isinstance(progress, dict) else None
        if type(finished) is not int or finished < 0:
            raise self._damaged("progress.json")
        return finished

    def _damaged(self, name: str) -> ValueError:
        return ValueError(
            f"[convert] the state of the unfinished conversion is damaged: {name!r} in "
            f"{str(self.folder)!r}. Remove that folder to start afresh."
        )

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
        return path.read_text(encoding="utf-8") if path.exists() else None
