"""``nibble convert``: a GGUF file to an MLX model folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mlx_nibble.cli.console import byte_progress, out
from mlx_nibble.io.gguf_import import DTYPES, import_gguf


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nibble convert",
        description="Import a GGUF file (llama architecture; Q4_0, Q4_1, Q8_0, F16, "
        "BF16, F32 tensors) as a folder that mlx-lm loads. Quantized tensors keep "
        "their codes and scales: nothing is lost.",
    )
    parser.add_argument("gguf", nargs="?", metavar="GGUF", help="the file to import")
    parser.add_argument(
        "out", nargs="?", metavar="OUT", help="the folder to make (default: mlx_model)"
    )
    parser.add_argument(
        "--hf-path", "--model", metavar="GGUF", help="mlx-lm's name for GGUF"
    )
    parser.add_argument("--mlx-path", metavar="OUT", help="mlx-lm's name for OUT")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="round scales, offsets and all that is not quantized to this type "
        "(default: the smallest that holds them exactly)",
    )
    return parser


def main(arguments: Sequence[str]) -> None:
    """Parse, import, print what was written."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if (args.gguf is None) == (args.hf_path is None):
        parser.error("name one GGUF file")
    if args.out is not None and args.mlx_path is not None:
        parser.error("name one output folder")
    source = args.gguf or args.hf_path
    folder = args.out or args.mlx_path or "mlx_model"
    with byte_progress("Converting") as progress:
        report = import_gguf(source, folder, args.dtype, progress)
    widths = ", ".join(f"{n} of {bits} bits" for bits, n in report.bits.items())
    out.print(
        f"{report.path}: {report.parameters / 1e6:.1f} M weights, "
        f"{report.nbytes / 1e6:.1f} MB, {report.bits_per_weight:.2f} bits a weight; "
        f"quantized matrices: {widths or 'none'}; the rest in {report.dtype}",
        soft_wrap=True,
    )
