"""Accelerated models: compiled, exported, on other streams, and in threads."""

from __future__ import annotations

import threading

import mlx.core as mx
import mlx.nn as nn
import pytest

import mlx_nibble
from mlx_nibble.numerics import UNIT_ROUNDOFF


class Block(nn.Module):
    """Replace one of mlx-lm's compiled functions, so that no compiler is needed."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(64)
        self.up = nn.Linear(64, 128, bias=False)
        self.down = nn.Linear(128, 64)

    def __call__(self, x):
        return x + self.down(self.up(self.norm(x)))


@pytest.fixture
def block():
    made = Block()
    nn.quantize(made, 32, 4)
    mx.eval(made.parameters())
    return made


def close(a: mx.array, b: mx.array) -> bool:
    return bool(mx.abs(a - b).max() <= 64 * UNIT_ROUNDOFF["float32"] * mx.abs(b).max())


@pytest.mark.parametrize("shapeless", [False, True])
def test_compiled(block, shapeless):
    mlx_nibble.accelerate(block)
    compiled = mx.compile(block, shapeless=shapeless)
    for rows in (1, 3, 40):
        x = mx.random.normal((rows, 64))
        assert close(compiled(x), block(x))


@pytest.mark.cpu
def test_what_was_compiled_before_keeps_what_it_was_traced_with(block):
    x = mx.random.normal((3, 64))
    compiled = mx.compile(block)
    before = compiled(x)
    mx.eval(before)
    mlx_nibble.accelerate(block)
    assert mx.array_equal(compiled(x), before)
    assert not mx.array_equal(block(x), before)


@pytest.mark.cpu
def test_export_is_a_clear_error_and_undo_makes_it_possible(block, tmp_path):
    x = mx.random.normal((3, 64))
    before = block(x)
    report = mlx_nibble.accelerate(block)
    path = str(tmp_path / "block.mlxfn")
    with pytest.raises(ValueError, match="Unable to serialize primitive Nibble"):
        mx.export_function(path, block, x)
    report.undo()
    mx.export_function(path, block, x)
    (exported,) = mx.import_function(path)(x)
    assert close(exported, before)


@pytest.mark.cpu
def test_streams_and_threads(block):
    mlx_nibble.accelerate(block)
    x = mx.random.normal((5, 64))
    want = block(x)
    mx.eval(want, block.parameters())
    found: dict[int, bool] = {}

    def run(which: int) -> None:
        with mx.stream(mx.new_stream(mx.cpu)):
            results = [block(x) for _ in range(20)]
            mx.eval(results)
            found[which] = all(mx.array_equal(y, want) for y in results)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(4), True)
