"""One process of a tensor-parallel run: a tiny accelerated model, sharded.

    mlx.launch -n 2 --backend ring -- \\
        python -m tests.distributed.rank FAMILY [DIES FOLDER]

Rank 0 prints its result as JSON. The rank DIES is killed during generation. FOLDER gets
a file for each process, named by its id.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import generate_step

import mlx_nibble
from tests.support import tiny_models

PROMPT = [(7 * i * i + 3) % 160 for i in range(21)]
# Numbers of heads and widths that divide among four processes in groups of 32.
SIZES = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "intermediate_size": 256,
    "moe_intermediate_size": 128,
}


def model(family: str) -> nn.Module:
    made = tiny_models.build(family, **SIZES)
    nn.quantize(made, 32, 4)
    mx.eval(made.parameters())
    return made


def tokens(model: nn.Module, count: int = 12, dies: bool = False) -> list[int]:
    made = []
    for token, _ in generate_step(mx.array(PROMPT), model, max_tokens=count):
        made.append(token)
        if dies and len(made) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
    return made


def main(family: str, dies: int = -1, folder: str | None = None) -> None:
    if folder is not None:
        Path(folder, str(os.getpid())).touch()
    group = mx.distributed.init(strict=True, backend="ring")
    sharded = model(family)
    sharded.shard(group)
    report = mlx_nibble.accelerate(sharded)
    made = tokens(sharded, dies=group.rank() == dies)
    if group.rank() == 0:
        kinds = sorted({swap.original.__name__ for swap in report.swapped})
        left = [kept.path for kept in report.kept]
        result = {"tokens": made, "ranks": group.size(), "kinds": kinds, "kept": left}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]), *sys.argv[3:])
