"""The memory of an evaluation beside weights and results."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlx_nibble import fast, ops

ROWS, WIDTH, DEPTH = 1024, 512, 60
ACTIVATIONS = 4 * ROWS * WIDTH


def chain_of_products(x: mx.array) -> mx.array:
    w = mx.quantize(mx.random.normal((WIDTH, WIDTH)) / WIDTH**0.5)
    mx.eval(w)
    for _ in range(DEPTH):
        x = ops.quantized_matmul(x, *w)
    return x


def chain_of_norms(x: mx.array) -> mx.array:
    for _ in range(DEPTH):
        x = fast.rms_norm(x, None, 1e-5)
    return x


@pytest.mark.parametrize("chain", [chain_of_products, chain_of_norms])
def test_a_long_graph_needs_the_activations_of_a_few_nodes(chain):
    """MLX would allocate those of some fifty nodes before it computes the first."""
    with mx.stream(mx.cpu):
        x = mx.random.normal((ROWS, WIDTH))
        mx.eval(x)
        y = chain(x)
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(y)
    # Two nodes ahead, one being handed over and one being read. Twice as many, for a
    # machine that pauses longer than evaluation waits.
    assert mx.get_peak_memory() - before <= 8 * ACTIVATIONS
