"""Try the kernels that common checkpoints need on this machine.

Each result is compared with the dequantized product in float64. A kernel that fails is
not used: MLX's own operation takes its place.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from mlx_nibble import _native
from mlx_nibble.cli.commands import parser as command_parser
from mlx_nibble.cli.console import err, filled, out, run_progress
from mlx_nibble.io.atomic import write_text
from mlx_nibble.machine import gpu
from mlx_nibble.machine.diagnosis import Diagnosis, diagnose
from mlx_nibble.machine.verdicts import Machine

REPORT = "nibble-report.json"


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("doctor")
    parser.add_argument(
        "--all",
        action="store_true",
        help="try every Metal kernel: thousands, which may take hours; each verdict is "
        "kept at once, so that Ctrl-C loses none",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--report",
        nargs="?",
        const=REPORT,
        metavar="FILE",
        help=f"also write the result to FILE (default: {REPORT}): versions, names of "
        "GPU and CPU, and verdicts; nothing else",
    )
    return parser


def main(arguments: Sequence[str]) -> None:
    """Parse, try, print; the exit status is 1 if a kernel is off."""
    args = _parser().parse_args(arguments)
    if _native.ext is None:
        raise RuntimeError("[doctor] an active mlx-nibble was required.")
    machine = Machine.here()
    with run_progress() as progress:
        diagnosis = diagnose(
            _native.ext,
            machine,
            bool(machine.gpu) and gpu.has_our_kernels(),
            args.all,
            progress,
        )
    text = json.dumps(diagnosis.as_json(), indent=2)
    if args.json:
        print(text)
    else:
        _print(diagnosis, len(_native.ext.kernels()))
    if args.report:
        _write_report(args.report, text + "\n")
    if not diagnosis.ok:
        sys.exit(1)


def _write_report(path: str, text: str) -> None:
    try:
        write_text(path, text)
    except OSError as error:
        raise OSError(
            f"[doctor] a file that can be written was required but got "
            f"{path!r}: {error.strerror}."
        ) from error
    err.print(f"wrote {path}; please attach it to an issue", soft_wrap=True)


def _print(diagnosis: Diagnosis, kernels: int) -> None:
    machine = diagnosis.machine
    device = f"{machine.gpu or 'no Metal GPU'}, CPU {diagnosis.cpu_isa}"
    out.print(
        f"{device}, {machine.system}, mlx {machine.mlx}, "
        f"mlx-nibble {machine.mlx_nibble}",
        soft_wrap=True,
    )
    header, *rows = diagnosis.table()
    out.print(filled(header, rows))
    if not diagnosis.gpu:
        out.print(f"{kernels} Metal kernels not tried: there is no Metal GPU")
    for verdict in diagnosis.gpu + diagnosis.cpu:
        if not verdict.ok:
            out.print(f"OFF  {verdict.kernel}: {verdict.failure}", soft_wrap=True)
