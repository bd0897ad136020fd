"""The command line of `nibble convert`."""

from __future__ import annotations

import argparse

from mlx_nibble.cli import consent
from mlx_nibble.cli.commands import parser as command_parser
from mlx_nibble.cli.convert_options import GROUP_CHOICES, METHODS
from mlx_nibble.conversion.options import KEEP
from mlx_nibble.formats import BITS, SCALE_DTYPES
from mlx_nibble.io.config import MODES
from mlx_nibble.quantize.recipes import RECIPES


def make() -> argparse.ArgumentParser:
    """Return the parser; an option that is not given is None or false."""
    parser = command_parser("convert")
    add = parser.add_argument
    add("source", nargs="?", metavar="SOURCE", help="GGUF, model folder or Hub name")
    add("out", nargs="?", metavar="OUT", help="folder to make (default: mlx_model)")
    add("--hf-path", "--model", metavar="SOURCE", help="mlx-lm's name for SOURCE")
    add("--mlx-path", metavar="OUT", help="mlx-lm's name for OUT")
    add(
        "--dtype",
        choices=SCALE_DTYPES,
        help="round scales, offsets and all tensors that are not quantized to this "
        "type (default: the smallest that holds them exactly, or the model's)",
    )
    add(
        "--keep",
        choices=KEEP,
        help="of an imported matrix that no form of MLX holds exactly (Q2_K, Q3_K, "
        "Q6_K, FP8, nf4): its quality, in few bits that lose little (default), or its "
        "values, in full precision",
    )
    add("--dequantize", "-d", action="store_true", help="store no quantized matrix")
    consent.add_option(parser, unless_given=None)
    add(
        "--upload-repo",
        metavar="OWNER/NAME",
        help="also send the folder to this repository of the Hub",
    )
    add("--json", action="store_true", help="print the result for machines")
    how = parser.add_argument_group("quantizing")
    add = how.add_argument
    add("-q", "--quantize", action="store_true", help="quantize")
    add("--q-bits", type=int, choices=BITS, help="default: 4")
    add("--q-group-size", type=int, choices=GROUP_CHOICES, help="default: 64")
    add(
        "--q-mode",
        choices=MODES,
        help="mxfp4, mxfp8, nvfp4: MLX's formats of these names, rounded by MLX, with "
        "one width and group size each (default: affine)",
    )
    add(
        "--method",
        choices=METHODS,
        help="rtn: mlx-lm's rounding, bit for bit; search: the best grid of each "
        "group; awq: scaled inputs and clipping, on calibration text; gptq: on "
        "calibration text, with search and coordinate descent (default); awq+gptq: "
        "both",
    )
    add(
        "--recipe",
        "--quant-predicate",
        choices=RECIPES,
        help="which matrices get how many bits (default: uniform)",
    )
    add(
        "--target-bpw",
        type=float,
        metavar="B",
        help="bits per weight at most, everything counted, spent where a measurement "
        "on the calibration text says they matter; without --q-bits and --recipe",
    )
    add(
        "--plot",
        metavar="FILE",
        help="with --target-bpw: draw each matrix's loss in 4 bits (.png, .svg)",
    )
    add(
        "--distill",
        action="store_const",
        const=True,
        help="then train the result, by default on text of its own: nibble distill",
    )
    add("--symmetric", action="store_const", const=True, help="weights without biases")
    add(
        "--calibration",
        metavar="TEXT",
        help="a text, .jsonl or .parquet file, hub:OWNER/DATASET/PATH, self: text that "
        "the model writes, or builtin: Python's documentation (default)",
    )
    add("--samples", type=int, help="calibration sequences; default: 64")
    add("--sequence-length", type=int, help="their tokens; default: 256")
    return parser
