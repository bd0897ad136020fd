"""Conversions that measure nothing: another type, no quantization, one of MLX's modes.

They are those of ``mlx_lm.convert``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlx_nibble import lm
from mlx_nibble.conversion.card import write_card
from mlx_nibble.conversion.convert import require_values, source_folder
from mlx_nibble.conversion.source import weights_of
from mlx_nibble.evaluation.inventory import read_inventory
from mlx_nibble.io.checkpoint import save_weights
from mlx_nibble.io.folder import filling, reserved
from mlx_nibble.layerwise.matrices import parameters
from mlx_nibble.progress import Progress, Tell, silent, untold


@dataclass(frozen=True)
class Rewritten:
    """Facts of the folder that `rewrite` wrote.

    Attributes:
        path: The folder.
        parameters: Number of the model's weights.
        nbytes: Bytes of all tensors.
        bits: Width of codes to the number of matrices with this width.
    """

    path: Path
    parameters: int
    nbytes: int
    bits: Mapping[int, int]


def rewrite(
    source: str,
    out: str | Path,
    dtype: str | None = None,
    dequantize: bool = False,
    mode: str | None = None,
    progress: Progress = silent,
    tell: Tell = untold,
    trust_remote_code: bool = False,
) -> Rewritten:
    """Write a model in another type, dequantized, or quantized in a mode of MLX.

    Args:
        source: A model folder, a GGUF file, or a repository of the Hugging Face Hub.
        out: The folder to make; it must not exist.
        dtype: Type of all that is not quantized. Default: the source's types.
        dequantize: Whether a quantized model is dequantized.
        mode: Mode to quantize in: ``"mxfp4"``, ``"mxfp8"`` or ``"nvfp4"``. It first
            dequantizes what is quantized.
        progress: Function of the current work, steps done and all steps.
        tell: Function that is told what else the user should know, in one line.
        trust_remote_code: Whether the Python code of the source may run.

    Raises:
        ValueError: If the source is wrong, `out` exists, or another process makes it.
        OSError: If files cannot be read or written.
    """
    dense = dequantize or mode is not None
    with (
        reserved(out, "convert") as place,
        source_folder(source, place, tell, trust_remote_code) as folder,
    ):
        files = weights_of(folder, progress)
        model, config = lm.load_full_precision(folder, dtype, trust_remote_code, dense)
        require_values(folder, dtype, progress, trust_remote_code)
        if mode is not None:
            model, config = lm.quantize_in_mode(model, config, mode)
        arrays = parameters(model)
        progress("Writing", 0, 1)
        with filling(place) as made:
            save_weights(made, arrays)
            lm.save_companions(made, folder, config)
            hub_name = None if Path(source).exists() else source
            write_card(made, place.path.name, folder, hub_name)
            lm.require_loadable(made, trust_remote_code)
            files.require_unchanged()
            found = read_inventory(made)
        progress("Writing", 1, 1)
    widths = Counter(row.bits for row in found.rows if row.bits is not None)
    return Rewritten(place.path, found.parameters, found.nbytes, widths)
