"""Draw a run as pictures, or as one HTML page.

A run of kernels gives speed over rows, a roofline and a map of ratios. A run of a model
gives tokens per second over batch and context. A FILE that ends in .html is one page
with all pictures and numbers.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mlx_nibble.bench import capsule
from mlx_nibble.bench.capsule import Capsule
from mlx_nibble.cli.commands import parser as command_parser
from mlx_nibble.io.atomic import write_text
from mlx_nibble.pictures.path import require_picture

# Parts of the picture, by the kind of the run.
PARTS = {
    "kernels": ("overview", "speed", "roofline", "ratios"),
    "model": ("overview", "over_batch", "over_context"),
}


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("bench plot")
    parser.add_argument("run", metavar="RUN.json", help="file of the run")
    parser.add_argument("picture", metavar="FILE", help="a .png, .svg or .html file")
    parser.add_argument(
        "--part",
        choices=list(dict.fromkeys(part for parts in PARTS.values() for part in parts)),
        default="overview",
        help="draw one picture only; the last two need a run of a model",
    )
    return parser


def main(arguments: Sequence[str]) -> None:
    """Parse, read, draw."""
    args = _parser().parse_args(arguments)
    path = require_file(args.picture)
    draw(capsule.read(args.run), path, args.part)


def require_file(path: str) -> Path:
    """Check before any work that a picture can be drawn and written.

    Raises:
        ValueError: If it cannot.
    """
    page = Path(path).suffix == ".html"
    require_picture(str(Path(path).with_suffix(".svg")) if page else path)
    return capsule.require_writable(path)


def draw(made: Capsule, path: Path, part: str = "overview") -> None:
    """Draw a run.

    Raises:
        ValueError: If there is nothing to draw.
    """
    from mlx_nibble.pictures import generation, page, products, style

    if not made["results"] or not made.get("peaks"):
        raise ValueError(
            "[plot] a run of nibble bench with results is required but got none."
        )
    if part not in PARTS[made["kind"]]:
        raise ValueError(
            f"[plot] the parts of a run of the kind {made['kind']!r} are "
            f"{', '.join(PARTS[made['kind']])} but got {part!r}."
        )
    if path.suffix == ".html":
        write_text(path, page.report(made))
        return
    drawn = products if made["kind"] == "kernels" else generation
    figure = getattr(drawn, part)(made)
    if figure is None:
        needs = {
            "ratios": "a run that also measured MLX",
            "over_batch": "a run of more than one batch",
            "over_context": "a run of more than one context",
        }
        raise ValueError(f"[plot] {needs[part]} is required but got another.")
    style.save(figure, path)
