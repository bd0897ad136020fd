"""What the sub-commands print with: progress on a terminal, plain text in a pipe."""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

# Progress and remarks go to stderr: stdout holds answers and tables only.
err = Console(stderr=True, highlight=False)
# A pipe has no width; a table that wraps there is hard to read, and to parse.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 200)

# Beside a cell, beside all, and of text that is folded at least.
_PADDING, _EDGES, _FOLDED = 3, 2, 8


def table(header: Sequence[str], text_columns: int = 1, title: str = "") -> Table:
    """A table as all commands show it: ruled on a terminal, plain in a pipe.

    Args:
        header: Headings; numbers below them are aligned at the right.
        text_columns: The first ones, which hold text.
        title: What it shows.
    """
    made = Table(
        box=SIMPLE_HEAD if out.is_terminal else None,
        title=title or None,
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
    """A :func:`table` with its rows; where room is short, text is folded first."""
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


@contextmanager
def byte_progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar for a number of bytes; it appears with the first call.

    Yields:
        To be called with the bytes done so far, and all of them.
    """
    if not err.is_terminal:
        yield lambda done, total: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err) as bar:
        task: TaskID | None = None

        def update(done: int, total: int) -> None:
            nonlocal task
            if task is None:
                task = bar.add_task(label, total=total)
            bar.update(task, completed=done, total=total)

        yield update


@contextmanager
def countdown() -> Iterator[Callable[[str, float], None]]:
    """A line that says what is being done, and how long it will still take.

    Yields:
        To be called with a description and the seconds left (infinite: unknown).
    """
    with err.status("") as status:
        lock = threading.Lock()
        label, deadline = "", math.inf
        done = threading.Event()

        def set_line(new_label: str, seconds: float) -> None:
            nonlocal label, deadline
            with lock:
                label, deadline = new_label, time.monotonic() + seconds
            if not err.is_terminal:
                return
            draw()

        def draw() -> None:
            with lock:
                left = deadline - time.monotonic()
                text = label
            if left != math.inf:
                text += f", about {max(left, 0):.0f} s left"
            status.update(text)

        def keep_drawing() -> None:
            while not done.wait(0.5):
                draw()

        if err.is_terminal:
            threading.Thread(target=keep_drawing, daemon=True).start()
        try:
            yield set_line
        finally:
            done.set()


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
        waiting.join()  # It has the signal, too, and ends the process.
        raise
    finally:
        signal.set_wakeup_fd(previous)
        send.close()


@contextmanager
def step_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for each stage of a long run, with the time left.

    Yields:
        To be called with what is being done, the steps done and all of them.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal) as bar:
        stages: dict[str, TaskID] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in stages:
                # The first report of a resumed run starts where it was.
                stages[what] = bar.add_task(what, total=total)
            bar.update(stages[what], completed=done, total=total)

        yield update


@contextmanager
def run_progress() -> Iterator[Callable[[str, float, float], None]]:
    """One progress bar, with what is being done and the time left.

    Yields:
        To be called with what is being done, the steps (or seconds) done and all.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=err, disable=not err.is_terminal, transient=True
    ) as bar:
        task = bar.add_task("", total=None)

        def update(what: str, done: float, total: float) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield update
