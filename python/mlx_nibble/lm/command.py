"""Run mlx-lm's commands on accelerated models."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import ModuleType

from mlx_nibble.acceleration.report import Report
from mlx_nibble.acceleration.settings import DEFAULTS, Settings
from mlx_nibble.lm.caches import CacheType, stored_as
from mlx_nibble.lm.load import sharded_load
from mlx_nibble.lm.patches import accelerated_generation, accelerated_loading
from mlx_nibble.lm.replaced import replaced


def run_command(
    name: str,
    prog: str,
    arguments: Sequence[str],
    settings: Settings = DEFAULTS,
    within: Callable[[ModuleType], AbstractContextManager] = nullcontext,
    seen: Callable[[Report], None] = lambda report: None,
) -> None:
    """Run one of mlx-lm's commands; accelerate every model that it loads.

    Args:
        name: Module of mlx-lm with a ``main``, such as ``generate``.
        prog: Name of the command in its help.
        arguments: Command line without the program's name.
        settings: Settings of the models.
        within: Function of the command's module; the command runs in its context.
        seen: Function of the report of each model.
    """
    command = importlib.import_module(f"mlx_lm.{name}")
    sys.argv = [prog, *arguments]
    cache_type = CacheType()

    def counted(report: Report) -> None:
        cache_type.add(report.checkpoint_dtype)
        seen(report)

    load = partial(sharded_load, **vars(settings), seen=counted)
    with (
        accelerated_loading(settings, counted),
        replaced(command, "sharded_load", load),
        accelerated_generation(),
        stored_as(cache_type),
        within(command),
    ):
        command.main()
