"""Output of the commands: progress on a terminal, plain text in a pipe."""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from mlx_nibble.cli.printable import printable
from mlx_nibble.progress import Progress

if TYPE_CHECKING:
    from mlx_nibble.bench.statistics import Estimate


class _Plain(Console):
    """A console that prints text as it is: without markup and without escapes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Turn each text, of a line or of a cell, into what is shown."""
        return super().render_str(printable(text), **options)

    def on_broken_pipe(self) -> None:
        """Leave the end of a closed pipe to :func:`mlx_nibble.cli.main`.

        rich would exit with status 1.
        """
        raise BrokenPipeError


# Progress and remarks go to stderr: stdout holds answers and tables only.
err = _Plain(stderr=True)
# A pipe has no width; a table that wraps there is hard to read and to parse.
out = _Plain(width=None if sys.stdout.isatty() else 200)

# Characters between cells, at the edges, and the least width of folded text.
_PADDING, _EDGES, _FOLDED = 3, 2, 8


def table(header: Sequence[str], text_columns: int = 1, title: str = "") -> Table:
    """Return an empty table: ruled on a terminal, plain in a pipe.

    Args:
        header: Headings; numbers below them are aligned at the right.
        text_columns: Number of leading columns that hold text.
        title: Title above the table.
    """
    made = Table(
        box=SIMPLE_HEAD if out.is_terminal else None,
        title=Text(printable(title)) if title else None,
        title_justify="left",
        title_style="bold",
        header_style="bold" if out.is_terminal else "",
        pad_edge=False,
    )
    for index, heading in enumerate(header):
        left = index < text_columns
        made.add_column(heading, justify="left" if left else "right", overflow="fold")
    return made


def filled(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    text_columns: int = 1,
    title: str = "",
) -> Table:
    """Return a :func:`table` with its rows; if room is short, text is folded first."""
    made = table(header, text_columns, title)
    rows = list(rows)
    for row in rows:
        made.add_row(*row)
    # A heading may be folded between its words.
    heads = [max(map(len, heading.split()), default=0) for heading in header]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    widths = [*map(max, widths, heads)]
    numbers = sum(widths[text_columns:])
    room = out.width - numbers - _PADDING * len(header) - _EDGES
    if sum(widths[:text_columns]) > room >= _FOLDED * text_columns:
        for column in made.columns[:text_columns]:
            column.max_width = room // text_columns
        for column, width in zip(made.columns, widths, strict=False):
            column.min_width = min(width, column.max_width or width)
    return made


def milliseconds(seconds: float) -> str:
    """Return a time in milliseconds, with three digits."""
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{1e3 * seconds:.0f} ms"


def times(ratio: Estimate) -> list[str]:
    """Return the cells of a ratio and of its interval."""
    digits = 3 if abs(ratio.value - 1) < 0.2 else 2
    return [
        f"{ratio.value:.{digits}f}×",
        f"{ratio.low:.{digits}f}–{ratio.high:.{digits}f}",
    ]


def _description() -> TextColumn:
    return TextColumn("{task.description}", markup=False)


@contextmanager
def _stages(*columns: ProgressColumn) -> Iterator[Progress]:
    """Show a bar for each description, from its first report on."""
    with Bars(*columns, console=err, disable=not err.is_terminal) as bars:
        stages: dict[str, TaskID] = {}

        def update(what: str, done: float, total: float) -> None:
            if what not in stages:
                # The first report of a resumed run starts where it was.
                stages[what] = bars.add_task(printable(what), total=total)
            bars.update(stages[what], completed=done, total=total)

        yield update


def byte_progress() -> AbstractContextManager[Progress]:
    """Return a context with a progress bar for each stage, in bytes."""
    return _stages(
        _description(),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )


def step_progress() -> AbstractContextManager[Progress]:
    """Return a context with a progress bar for each stage, in steps."""
    return _stages(
        _description(),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )


@contextmanager
def run_progress() -> Iterator[Progress]:
    """Show one progress bar, with the current step and the time left."""
    columns = (
        _description(),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bars(
        *columns, console=err, disable=not err.is_terminal, transient=True
    ) as bar:
        task = bar.add_task("", total=None)

        def update(what: str, done: float, total: float) -> None:
            bar.update(task, description=printable(what), completed=done, total=total)

        yield update


@contextmanager
def countdown() -> Iterator[Progress]:
    """Show a line with the current step and the seconds left; reports are seconds."""
    with err.status("") as status:
        lock = threading.Lock()
        label, deadline = "", math.inf
        ended = threading.Event()

        def set_line(what: str, done: float, total: float) -> None:
            nonlocal label, deadline
            with lock:
                label, deadline = what, time.monotonic() + total - done
            if not err.is_terminal:
                return
            draw()

        def draw() -> None:
            with lock:
                left = deadline - time.monotonic()
                text = label
            if left != math.inf:
                text += f", about {max(left, 0):.0f} s left"
            status.update(Text(printable(text)))

        def keep_drawing() -> None:
            while not ended.wait(0.5):
                draw()

        if err.is_terminal:
            threading.Thread(target=keep_drawing, daemon=True).start()
        try:
            yield set_line
        finally:
            ended.set()


@contextmanager
def immediate_interrupt(
    before: Callable[[], None] | None = None,
) -> Iterator[None]:
    """Let Ctrl-C, or SIGTERM, end the process while MLX computes.

    Python sees a signal only when a call into MLX returns, and one evaluation can
    take half a minute. Only for sections that leave nothing half done.

    Args:
        before: Called by another thread before the process ends.
    """
    receive, send = socket.socketpair()
    send.setblocking(False)
    previous = signal.set_wakeup_fd(send.fileno(), warn_on_full_buffer=False)

    def wait_for_interrupt() -> None:
        while number := receive.recv(1):
            if number[0] in (signal.SIGINT, signal.SIGTERM):
                err.show_cursor()
                try:
                    if before is not None:
                        before()
                finally:
                    print("\nnibble: interrupted", file=sys.stderr, flush=True)
                os._exit(128 + number[0])

    waiting = threading.Thread(target=wait_for_interrupt, daemon=True)
    waiting.start()
    try:
        yield
    except KeyboardInterrupt:
        waiting.join()  # That thread has the signal, too, and ends the process.
        raise
    finally:
        signal.set_wakeup_fd(previous)
        send.close()
