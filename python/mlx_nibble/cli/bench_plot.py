"""``nibble bench plot``: pictures of a run that is done."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mlx_nibble.bench import capsule
from mlx_nibble.bench.capsule import Capsule
from mlx_nibble.io.text import write_text
from mlx_nibble.plot import require_picture

PARTS = ("overview", "speed", "roofline", "ratios")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nibble bench plot",
        description="Draw a run of nibble bench kernels: speed over rows, roofline "
        "and a map of ratios; as .html, one page with all of it and the numbers.",
    )
    parser.add_argument("run", metavar="RUN.json", help="what the run left")
    parser.add_argument("picture", metavar="FILE", help="a .png, .svg or .html file")
    parser.add_argument(
        "--part", choices=PARTS, default=PARTS[0], help="one picture, not all"
    )
    return parser


def main(arguments: Sequence[str]) -> None:
    """Parse, read, draw."""
    args = _parser().parse_args(arguments)
    path = require_file(args.picture)
    draw(capsule.read(args.run), path, args.part)


def require_file(path: str) -> Path:
    """Check that a picture can be drawn and written, before any work is done.

    Raises:
        ValueError: If it cannot.
    """
    page = Path(path).suffix == ".html"
    require_picture(str(Path(path).with_suffix(".svg")) if page else path)
    return capsule.require_writable(path)


def draw(made: Capsule, path: Path, part: str = PARTS[0]) -> None:
    """Draw a run of kernels.

    Raises:
        ValueError: If there is nothing to draw.
    """
    from mlx_nibble.bench import html, pictures

    if made["kind"] != "kernels" or not made["results"] or not made["peaks"]:
        raise ValueError(
            "[plot] a run of nibble bench kernels with results is required."
        )
    if path.suffix == ".html":
        write_text(path, html.report(made))
        return
    figure = getattr(pictures, part)(made)
    if figure is None:
        raise ValueError("[plot] ratios need a run that measured MLX, too.")
    pictures.save(figure, path)
