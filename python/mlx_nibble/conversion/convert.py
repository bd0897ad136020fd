"""Conversion of a model folder to a quantized MLX model folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_nibble import lm
from mlx_nibble.conversion.calibration import calibration_batches, text_digest
from mlx_nibble.conversion.card import write_card
from mlx_nibble.conversion.gguf_import import import_gguf
from mlx_nibble.conversion.options import Options
from mlx_nibble.conversion.packed_import import import_packed, is_packed
from mlx_nibble.conversion.plan import make_plan
from mlx_nibble.conversion.quantizer import quantize_model
from mlx_nibble.conversion.source import Source, weights_of
from mlx_nibble.conversion.values import require_all_finite
from mlx_nibble.conversion.workspace import SOURCE, Workspace
from mlx_nibble.formats import Format
from mlx_nibble.io.checkpoint import save_weights
from mlx_nibble.io.config import with_quantization
from mlx_nibble.io.folder import Reserved, filling, reserved
from mlx_nibble.io.gguf.reader import is_gguf
from mlx_nibble.layerwise.matrices import parameters
from mlx_nibble.layerwise.trace import trace
from mlx_nibble.progress import Progress, Tell, silent, untold
from mlx_nibble.quantize.recipes import Plan


@dataclass(frozen=True)
class Converted:
    """Facts of the folder that `convert` wrote.

    Attributes:
        path: The folder.
        parameters: Number of weights of the full-precision model.
        nbytes: Bytes of all tensors.
        plan: The format of each quantized matrix.
        losses: With a target: the measured loss of each matrix in 4 bits, in nats a
            token.
    """

    path: Path
    parameters: int
    nbytes: int
    plan: Plan
    losses: Mapping[str, float]

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight, with scales, biases and all plain tensors counted."""
        return 8 * self.nbytes / self.parameters


def convert(
    source: str,
    out: str | Path,
    options: Options,
    progress: Progress = silent,
    tell: Tell = untold,
    trust_remote_code: bool = False,
    weights: Source | None = None,
) -> Converted:
    """Quantize a model that mlx-lm loads, a GGUF file, or another tool's packed folder.

    A killed conversion continues when it is called again with the same arguments:
    measurements and finished layers are kept beside `out`. They are used only if the
    content of the source, the options, the text and all versions are the same.

    Args:
        source: A model folder, a GGUF file, or a repository of the Hugging Face Hub.
        out: The folder to make; it must not exist.
        options: How to quantize.
        progress: Function of the current work, steps done and all steps.
        tell: Function that is told what else the user should know, in one line.
        trust_remote_code: Whether the Python code of the source may run.
        weights: The files of a model folder, if the caller has their digest.

    Raises:
        ValueError: If an option or the source is wrong, `out` exists, or another
            process makes it.
        OSError: If files cannot be read or written.
    """
    with (
        reserved(out, "convert") as place,
        source_folder(source, place, tell, trust_remote_code) as folder,
    ):
        hub_name = None if Path(source).exists() else source
        files = weights or weights_of(folder, progress)
        return _convert(
            folder, hub_name, place, options, files, progress, tell, trust_remote_code
        )


@contextmanager
def source_folder(
    source: str, place: Reserved, tell: Tell, trust_remote_code: bool
) -> Iterator[Path]:
    """Yield the folder of a source; import a GGUF file or a packed folder first.

    Args:
        source: A model folder, a GGUF file, or a repository of the Hugging Face Hub.
        place: The output folder, beside which an imported one lies.
        tell: Function that is told of an import.
        trust_remote_code: Whether the Python code of the source may run.

    Raises:
        ValueError: If the source is wrong.
        OSError: If files cannot be read or written.
    """
    with _imported(place) as imported:
        if is_gguf(source):
            tell(f"Importing {source}")
            yield import_gguf(source, imported, keep="values").path
            return
        folder = lm.model_folder(source)
        if is_packed(folder):
            tell(f"Importing {source}, whose rounding adds to that of -q")
            folder = import_packed(
                folder, imported, trust_remote_code=trust_remote_code, keep="values"
            ).path
        yield folder


@contextmanager
def _imported(place: Reserved) -> Iterator[Path]:
    """Yield the path of a folder to import to, which is removed afterwards."""
    path = place.work / SOURCE
    shutil.rmtree(path, ignore_errors=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):  # not empty: it has finished layers
            place.work.rmdir()


def _convert(
    source: Path,
    hub_name: str | None,
    place: Reserved,
    options: Options,
    files: Source,
    progress: Progress,
    tell: Tell,
    trust: bool,
) -> Converted:
    model, config = lm.load_full_precision(source, options.dtype, trust)
    count = sum(v.size for v in parameters(model).values())
    tokens: list[mx.array] = []
    if options.method.calibrated or options.target_bpw is not None:
        tokens = calibration_batches(
            options.calibration, source, files.digest, config, progress, trust
        )
        trace(model, tokens[0])  # refuse a model that cannot be calibrated

    @cache
    def open_workspace() -> Workspace:
        require_values(source, options.dtype, progress, trust)
        settings = _settings(files.digest, options, tokens)
        return Workspace(place.path, settings, tell)

    plan, losses = make_plan(model, options, tokens, open_workspace, progress)
    workspace = open_workspace()
    workspace.keep_plan({path: asdict(form) for path, form in plan.items()})
    arrays = quantize_model(
        model, plan, options.method, tokens, workspace, progress, tell
    )
    nbytes = sum(a.nbytes for a in arrays.values())
    with filling(place) as folder:
        save_weights(folder, arrays)
        usual = Format(options.bits, options.group_size)
        config = with_quantization(config, usual, plan)
        lm.save_companions(folder, source, config)
        write_card(folder, place.path.name, source, hub_name)
        lm.require_loadable(folder, trust)
        files.require_unchanged()
    return Converted(place.path, count, nbytes, plan, losses)


def require_values(
    source: Path, dtype: str | None, progress: Progress, trust: bool
) -> None:
    """Check the values of a second, lazy model, whose tensors are freed one by one."""
    model, _ = lm.load_full_precision(source, trust_remote_code=trust)
    values = parameters(model)
    del model
    require_all_finite(values, dtype, progress)


def _settings(
    source: str, options: Options, tokens: Sequence[mx.array]
) -> dict[str, Any]:
    """Return all that measurements and finished layers depend on."""
    return {
        "source": source,
        "options": {k: v for k, v in asdict(options).items() if k != "calibration"},
        "text": text_digest(tokens),
        "version": [version(name) for name in ("mlx-nibble", "mlx", "mlx-lm", "numpy")],
    }
