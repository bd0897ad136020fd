"""Import a GGUF file, or quantize a model.

A GGUF file becomes a folder that mlx-lm loads. Types that MLX can hold keep their codes
and scales; Q2_K, Q3_K and Q6_K get the nearest form. Folders that other tools packed
are imported likewise: AutoAWQ, GPTQ, compressed-tensors, FP8, ModelOpt, bitsandbytes
and HQQ. With -q, quantize any model that mlx-lm loads; a killed run continues when it
is started again.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mlx_nibble.cli import convert_parser
from mlx_nibble.cli.console import byte_progress, err, out, step_progress
from mlx_nibble.cli.convert_options import (
    GGUF,
    MODE,
    PACKED,
    REWRITE,
    fill_defaults,
    method,
    quantizing_path,
    require_used,
    unused_text,
)
from mlx_nibble.cli.hub import hub_errors
from mlx_nibble.cli.models import require_model
from mlx_nibble.conversion.options import KEEP, OWN_TEXT
from mlx_nibble.io.gguf.reader import is_gguf
from mlx_nibble.io.packing import IMPORTED
from mlx_nibble.io.stranger import local_path
from mlx_nibble.progress import Progress

if TYPE_CHECKING:
    from mlx_nibble.conversion.options import Calibration, Options
    from mlx_nibble.conversion.packed_import import PackedReport
    from mlx_nibble.distill.options import Training


class _Report(Protocol):
    """The part that the reports of all conversions share."""

    @property
    def path(self) -> Path: ...
    @property
    def parameters(self) -> int: ...
    @property
    def nbytes(self) -> int: ...


def main(arguments: Sequence[str]) -> None:
    """Parse, convert, print the result."""
    parser = convert_parser.make()
    args = parser.parse_args(arguments)
    if (args.source is None) == (args.hf_path is None):
        parser.error("name one GGUF file, model folder or Hub repository")
    if args.out is not None and args.mlx_path is not None:
        parser.error("name one output folder")
    source = local_path(args.source or args.hf_path)
    folder = local_path(args.out or args.mlx_path or "mlx_model")
    if args.quantize and args.dequantize:
        parser.error("--quantize and --dequantize exclude each other")
    if args.upload_repo is not None:
        from mlx_nibble.lm import require_upload

        require_upload(args.upload_repo)
    made = _convert(args, parser, source, folder)
    if args.upload_repo is not None:
        from mlx_nibble.lm import upload

        with hub_errors("convert", f"the repository {args.upload_repo!r}"):
            upload(made, args.upload_repo)


def _convert(
    args: argparse.Namespace, parser: argparse.ArgumentParser, source: str, folder: str
) -> Path:
    """Convert by the path that the command line asks for; return the folder."""
    if args.quantize:
        path = quantizing_path(args)
        require_used(args, path)
        if path == MODE:
            return _rewrite(args, source, folder)
        unused = unused_text(args, path)
        if unused is not None:
            _tell(
                f"{unused} is checked, and has no effect: {args.method} needs no text"
            )
        return _quantize(args, source, folder, check_text=unused == "--calibration")
    if args.dequantize:
        require_used(args, REWRITE)
        return _rewrite(args, source, folder)
    if is_gguf(source):
        require_used(args, GGUF)
        return _import_gguf(args, source, folder)
    if args.dtype is not None and not _is_packed(source):
        require_used(args, REWRITE)
        return _rewrite(args, source, folder)
    require_used(args, PACKED)
    return _import_packed(args, parser, source, folder)


def _is_packed(source: str) -> bool:
    from mlx_nibble.conversion.packed_import import is_packed

    return is_packed(Path(source))


def _rewrite(args: argparse.Namespace, source: str, folder: str) -> Path:
    from mlx_nibble.conversion.rewrite import rewrite

    if not Path(source).is_file() and not _is_packed(source):
        require_model("convert", "SOURCE", source)
    mode = args.q_mode if args.quantize else None
    trust = bool(args.trust_remote_code)
    with step_progress() as progress, hub_errors("convert"):
        report = rewrite(
            source, folder, args.dtype, args.dequantize, mode, progress, _tell, trust
        )
    return _print_report(args, report, report.bits)


def _import_gguf(args: argparse.Namespace, source: str, folder: str) -> Path:
    from mlx_nibble.conversion.card import write_card
    from mlx_nibble.conversion.gguf_import import import_gguf

    if not Path(source).exists():
        require_model("convert", "SOURCE", source)
    with byte_progress() as progress:
        report = import_gguf(source, folder, args.dtype, progress, args.keep or KEEP[0])
    write_card(report.path, report.path.name)
    kinds = {name: asdict(kind) for name, kind in report.kinds.items()}
    facts = {"dtype": report.dtype, "types": kinds, "errors": report.errors}
    more = f"; the rest in {report.dtype}"
    path = _print_report(args, report, report.bits, more, facts)
    if args.json:
        return path
    for name, kind in report.kinds.items():
        form = "full precision" if kind.bits is None else f"{kind.bits} bits"
        lost = f"{kind.error:.1e} of the values lost at most" if kind.error else "exact"
        out.print(f"{name}: {kind.count} in {form}, {lost}", soft_wrap=True)
    return path


def _import_packed(
    args: argparse.Namespace,
    parser: argparse.ArgumentParser,
    source: str,
    folder: str,
) -> Path:
    from mlx_nibble.conversion.packed_import import import_packed

    if not _is_packed(source):
        require_model("convert", "SOURCE", source)
        here = Path(source).is_dir()
        found = "is no GGUF file, and no folder of" if here else "is not here as a"
        tools = ", ".join(IMPORTED.values())
        what = tools if here else f"GGUF file or as a folder of {tools}"
        parser.error(
            f"{source} {found} {what}: say -q to quantize it, or --dtype to store it "
            "in another type"
        )
    with step_progress() as progress:
        trust = bool(args.trust_remote_code)
        paths, keep = (Path(source), Path(folder)), args.keep or KEEP[0]
        report = import_packed(*paths, progress, args.dtype, trust, keep)
    facts = {"errors": report.errors, "dropped": report.dropped}
    return _print_report(args, report, report.bits, _packed_facts(report), facts)


def _packed_facts(report: PackedReport) -> str:
    """Return what became of matrices that could not stay as they are."""
    facts = ""
    if report.permuted or report.rounded_again:
        again = f"{report.rounded_again} rounded again to 8 bits"
        facts += f"; act-order: {report.permuted} permuted, {again}"
    if report.errors:
        most = max(report.errors.values())
        facts += f"; {len(report.errors)} in the nearest form, {most:.1e} of the "
        facts += "values lost at most"
    if report.dropped:
        facts += f"; activations are not rounded: {report.dropped} scales left out"
    return facts


def _quantize(
    args: argparse.Namespace, source: str, folder: str, check_text: bool
) -> Path:
    from mlx_nibble.conversion.convert import convert
    from mlx_nibble.conversion.options import Calibration, Options
    from mlx_nibble.evaluation.calibration_text import read_text
    from mlx_nibble.pictures.path import require_picture

    picture = None if args.plot is None else require_picture(args.plot)
    training = _training(args) if args.distill else None
    fill_defaults(args)
    options = Options(
        bits=args.q_bits,
        group_size=args.q_group_size,
        recipe=args.recipe,
        target_bpw=args.target_bpw,
        method=method(args),
        calibration=Calibration(args.calibration, args.samples, args.sequence_length),
        symmetric=bool(args.symmetric),
        dtype=args.dtype,
    )
    if not Path(source).is_file() and not _is_packed(source):
        require_model("convert", "SOURCE", source)
    if check_text and args.calibration != OWN_TEXT:
        read_text(args.calibration)
    trust = bool(args.trust_remote_code)
    with step_progress() as progress, hub_errors("convert"):
        if training is not None:
            return _distill(args, source, folder, options, training, progress)
        report = convert(source, folder, options, progress, _tell, trust)
    if picture is not None:
        from mlx_nibble.pictures import losses, style

        style.save(losses.by_layer(report.losses), picture)
    widths = Counter(form.bits for form in report.plan.values())
    return _print_report(args, report, widths)


def _training(args: argparse.Namespace) -> tuple[Training, Calibration]:
    """Return how to train, and the text, which quantization then shares."""
    from mlx_nibble import lm
    from mlx_nibble.distill.options import Training

    training = Training()
    text = training.text(
        not lm.on_cpu(), args.calibration, args.samples, args.sequence_length
    )
    args.calibration = text.text
    return training, text


def _distill(
    args: argparse.Namespace,
    source: str,
    folder: str,
    options: Options,
    training: tuple[Training, Calibration],
    progress: Progress,
) -> Path:
    from mlx_nibble.distill.pipeline import quantize_and_distill
    from mlx_nibble.evaluation.inventory import read_inventory

    trust = bool(args.trust_remote_code)
    report = quantize_and_distill(
        source, folder, options, *training, progress, _tell, trust
    )
    rows = read_inventory(report.path).rows
    widths = Counter(row.bits for row in rows if row.bits is not None)
    before, after = report.losses[0], min(report.losses)
    more = f"; divergence {before:.5f} before training, {after:.5f} after"
    facts = {"losses": report.losses, "changes": report.changes}
    return _print_report(args, report, widths, more, facts)


def _tell(fact: str) -> None:
    err.print(fact, soft_wrap=True)


def _print_report(
    args: argparse.Namespace,
    report: _Report,
    widths: Mapping[int, int],
    more: str = "",
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Print the result of a conversion; return its folder.

    Args:
        args: The command line.
        report: The result.
        widths: Number of quantized matrices of each width.
        more: Text that only one kind of conversion has.
        facts: Facts of --json that only one kind has.
    """
    bits_per_weight = 8 * report.nbytes / report.parameters
    if args.json:
        result = {
            "path": str(report.path),
            "parameters": report.parameters,
            "nbytes": report.nbytes,
            "bits_per_weight": bits_per_weight,
            "matrices_by_bits": widths,
            **(facts or {}),
        }
        print(json.dumps(result))
        return report.path
    stated = ", ".join(f"{n} of {bits} bits" for bits, n in sorted(widths.items()))
    out.print(
        f"{report.path}: {report.parameters / 1e6:.1f} M weights, "
        f"{report.nbytes / 1e6:.1f} MB, {bits_per_weight:.3f} bits per weight; "
        f"quantized matrices: {stated or 'none'}{more}",
        soft_wrap=True,
    )
    return report.path
