"""Fusion while a graph is built: fewer nodes, the same values."""

from collections import Counter

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models.cache import BatchKVCache, KVCache, make_prompt_cache

import mlx_nibble
from mlx_nibble import fast, ops
from tests.support import tiny_models
from tests.support.arrays import to_numpy
from tests.support.blocks import by_code
from tests.support.graph import node_names
from tests.support.tolerance import relative_rms

B, L, HEADS, KV_HEADS, D, K = 2, 5, 4, 2, 16, 64
ROPE = dict(traditional=False, base=1e4, scale=1.0, offset=3)


def matrix(rows: int, seed: int) -> tuple[mx.array, mx.array, mx.array]:
    w = mx.random.normal((rows, K), key=mx.random.key(seed))
    parts = mx.quantize(w, group_size=32, bits=4)
    mx.eval(parts)
    return parts


def activations() -> mx.array:
    x = mx.random.normal((B, L, K), key=mx.random.key(9))
    mx.eval(x)
    return x


def product(x: mx.array, w: tuple) -> mx.array:
    return ops.quantized_matmul(x, *w, group_size=32, bits=4)


def heads(y: mx.array, count: int) -> mx.array:
    return y.reshape(B, L, count, D).transpose(0, 2, 1, 3)


MATRICES = [matrix(rows * D, i) for i, rows in enumerate((HEADS, KV_HEADS, KV_HEADS))]


def attention(x: mx.array, held: list[mx.array], norm=None) -> mx.array:
    """Compute attention as models do; append the intermediate arrays to `held`."""
    q, k, v = (product(x, w) for w in MATRICES)
    held += [q, k, v]
    q, k, v = heads(q, HEADS), heads(k, KV_HEADS), heads(v, KV_HEADS)
    if norm is not None:
        q, k = (fast.rms_norm(a, norm, 1e-5) for a in (q, k))
    q, k = (fast.rope(a, D, **ROPE) for a in (q, k))
    y = fast.scaled_dot_product_attention(q, k, v, scale=0.25, mask="causal")
    y = y.transpose(0, 2, 1, 3).reshape(B, L, -1)
    held += [q, k, v, y]
    return product(y, matrix(K, 7))


def apart(x: mx.array, **kwargs) -> list[mx.array]:
    """Compute the same, and evaluate each step before the next: nothing can fuse."""
    held: list[mx.array] = []

    def step(function):
        def run(*args, **kw):
            y = function(*args, **kw)
            mx.eval(y)
            return y

        return run

    patched = pytest.MonkeyPatch()
    for name in ("rope", "rms_norm", "scaled_dot_product_attention"):
        patched.setattr(fast, name, step(getattr(fast, name)))
    patched.setattr(ops, "quantized_matmul", step(ops.quantized_matmul))
    with patched.context():
        y = attention(x, held, **kwargs)
    patched.undo()
    mx.eval(held, y)
    return [*held, y]


@pytest.mark.parametrize("norm", [None, mx.arange(1, D + 1) / D])
def test_queries_keys_and_values_are_one_node_of_the_same_bits(norm):
    x = activations()
    want = apart(x, norm=norm)
    held: list[mx.array] = []
    y = attention(x, held, norm=norm)
    assert node_names(y) == {
        "NibbleProjectedHeads": 1,
        "NibbleAttention": 1,
        "NibbleQuantizedMatmul": 1,
    }
    assert mx.array_equal(y, want[-1])
    # A fused array is still available to whoever references it.
    for ours, theirs in zip(held, want, strict=False):
        assert ours.shape == theirs.shape
        assert mx.array_equal(ours, theirs)


@pytest.mark.parametrize("which", range(7))
def test_any_array_on_the_way_can_be_computed_first(which):
    x = activations()
    want = apart(x)
    held: list[mx.array] = []
    y = attention(x, held)
    assert mx.array_equal(held[which], want[which])
    assert mx.array_equal(y, want[-1])


@pytest.mark.parametrize("rows", [1, 7, 300])
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("bits", [(4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 4, 8)])
def test_products_of_one_x_have_the_bits_of_each(bits, int8, rows):
    """Compare products that are shared out together with each by itself."""
    x = mx.random.normal((1, rows, K))
    counts = (HEADS, KV_HEADS, KV_HEADS)
    biases = [mx.random.normal((count * D,)) for count in counts]
    matrices = [
        mx.quantize(mx.random.normal((count * D, K)), group_size=32, bits=b)
        for count, b in zip(counts, bits, strict=True)
    ]
    mx.eval(x, biases, matrices)

    def products() -> list[mx.array]:
        return [
            ops.quantized_matmul(
                x,
                *matrix,
                group_size=32,
                bits=b,
                activations="int8" if int8 else None,
                bias=bias if b == 4 else None,
            )
            for matrix, b, bias in zip(matrices, bits, biases, strict=True)
        ]

    want = products()
    mx.eval(want)
    found = products()
    q, k, v = (
        y.reshape(1, rows, count, D).transpose(0, 2, 1, 3)
        for y, count in zip(found, counts, strict=True)
    )
    y = fast.scaled_dot_product_attention(q, k, v, scale=0.25)
    assert node_names(y) == {"NibbleProjectedHeads": 1, "NibbleAttention": 1}
    mx.eval(y)
    for ours, theirs in zip((q, k, v), want, strict=True):
        assert mx.array_equal(ours.transpose(0, 2, 1, 3).reshape(theirs.shape), theirs)


def test_an_order_that_is_not_ours_joins_the_products_alone():
    x = activations()

    def run(joined: bool) -> mx.array:
        q, k, v = (heads(product(x, w), w[0].shape[0] // D) for w in MATRICES)
        q, k = (fast.rms_norm(fast.rope(a, D, **ROPE), None, 1e-5) for a in (q, k))
        if not joined:
            mx.eval(q, k, v)
        y = fast.scaled_dot_product_attention(q, k, v, scale=0.25)
        if joined:
            names = node_names(y)
            assert names["NibbleProjectedHeads"] == 1
            assert names["NibbleQuantizedMatmul"] == 0
            assert names["NibbleRoPE"] == 2
        return y

    assert mx.array_equal(run(True), run(False))


def test_what_cannot_be_joined_is_left_alone():
    x, other = activations(), activations()
    lazy = (mx.array(MATRICES[1][0]) + 0, *MATRICES[1][1:])

    def names(xs, matrices) -> Counter:
        q, k, v = (
            heads(product(a, w), w[0].shape[0] // D)
            for a, w in zip(xs, matrices, strict=True)
        )
        return node_names(fast.scaled_dot_product_attention(q, k, v, scale=0.25))

    same_matrix = [MATRICES[0], MATRICES[1], MATRICES[1]]
    not_computed = [MATRICES[0], lazy, MATRICES[2]]
    assert "NibbleProjectedHeads" in names([x, x, x], MATRICES)
    assert "NibbleProjectedHeads" not in names([x, x, x], same_matrix)
    assert "NibbleProjectedHeads" not in names([x, x, x], not_computed)
    assert "NibbleProjectedHeads" not in names([x, x, other], MATRICES)


def decoded(model, caches, count: int):
    """Return the logits of one token after a prompt, and the nodes of its graph."""
    ids = mx.random.randint(0, 160, (count, 9), key=mx.random.key(1))
    model(ids[:, :8], cache=caches)
    mx.eval([cache.state for cache in caches])
    y = model(ids[:, 8:], cache=caches)
    return y, node_names(y)


def half(dtype):
    def cache():
        made = KVCache()
        made.update_and_fetch(*mx.zeros((2, 1, 2, 1, 16), dtype))
        return made

    return cache


CACHES = {
    "float32": (KVCache, 1),
    "float16": (half(mx.float16), 1),
    "bfloat16": (half(mx.bfloat16), 1),
    "padded": (lambda: BatchKVCache([0, 3]), 2),
}


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_token_needs_as_many_nodes_with_each_cache(family, name):
    model = tiny_models.build(family)
    nn.quantize(model, 32, 4)
    mx.eval(model.parameters())
    make, count = CACHES[name]

    def run():
        return decoded(model, [make() for _ in model.layers], count)

    stock, _ = run()
    mx.eval(stock)
    mlx_nibble.accelerate(model)
    by_code(model)
    y, names = run()
    layers = len(model.layers)
    assert names["NibbleProjectedHeads"] == names["NibbleAttention"] == layers
    assert names["SliceUpdate"] == 2 * layers
    assert names["NibbleRoPE"] == names["AsType"] == names["Transpose"] == 0
    assert relative_rms(to_numpy(y), to_numpy(stock)) < 1e-3


def test_heads_stored_in_16_bits_are_those_of_a_cast():
    x = activations()
    for dtype in (mx.float16, mx.bfloat16):

        def stored(fused, dtype=dtype):
            q, k, v = (heads(product(x, w), w[0].shape[0] // D) for w in MATRICES)
            q, k = (fast.rope(a, D, **ROPE) for a in (q, k))
            if not fused:
                mx.eval(q, k, v)
            k, v = (a.astype(dtype) for a in (k, v))
            y = fast.scaled_dot_product_attention(q, k, v, scale=0.25)
            assert node_names(y)["NibbleProjectedHeads"] == fused
            assert not fused or node_names(y)["AsType"] == 0
            return k, v, y

        for a, b in zip(stored(True), stored(False), strict=True):
            assert a.dtype == b.dtype and mx.array_equal(a, b)


def test_positions_that_wait_for_the_heads_are_not_their_input():
    """A node must not become its own input."""
    x = activations()
    q, k, v = (heads(product(x, w), w[0].shape[0] // D) for w in MATRICES)
    form = dict(ROPE, offset=mx.argmax(v[:, 0, 0], axis=-1))
    q, k = (fast.rope(a, D, **form) for a in (q, k))
    y = fast.scaled_dot_product_attention(q, k, v, scale=0.25)
    assert node_names(y)["NibbleProjectedHeads"] == 0
    assert mx.isfinite(y).all()


def test_transformations_see_each_operation():
    x = activations()

    def ours(x: mx.array) -> mx.array:
        return attention(x, []).sum()

    def mlx(x: mx.array) -> mx.array:
        q, k, v = (mx.quantized_matmul(x, *w, group_size=32, bits=4) for w in MATRICES)
        q, k, v = heads(q, HEADS), heads(k, KV_HEADS), heads(v, KV_HEADS)
        q, k = (mx.fast.rope(a, D, **ROPE) for a in (q, k))
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.25, mask="causal")
        y = y.transpose(0, 2, 1, 3).reshape(B, L, -1)
        return mx.quantized_matmul(y, *matrix(K, 7), group_size=32, bits=4).sum()

    want = to_numpy(mx.grad(mlx)(x))
    assert relative_rms(to_numpy(mx.grad(ours)(x)), want) < 1e-5
    assert relative_rms(to_numpy(mx.compile(mx.grad(ours))(x)), want) < 1e-5
    mapped = mx.vmap(lambda x: attention(x[None] * mx.ones((B, 1, 1)), []))(x)
    assert mx.allclose(mapped[0, 0], attention(x, [])[0], rtol=1e-4, atol=1e-4)
    assert mx.allclose(mx.compile(ours)(x), ours(x), rtol=1e-4)


@pytest.mark.parametrize("bias", [None, mx.arange(K) / 8])
@pytest.mark.parametrize("weight", [None, 1 + mx.arange(K) / K])
@pytest.mark.parametrize("product_first", [False, True])
def test_a_sum_and_its_norm_are_one_node_of_the_same_bits(bias, weight, product_first):
    x, residual = activations(), mx.random.normal((B, L, K))
    mx.eval(residual, *(a for a in (bias, weight) if a is not None))

    def run(joined: bool) -> list[mx.array]:
        y = ops.quantized_matmul(x, *matrix(K, 3), group_size=32, bits=4, bias=bias)
        if not joined:
            mx.eval(y)
        h = y + residual if product_first else residual + y
        if not joined:
            mx.eval(h)
        later = 2 * h  # built before h is fused
        normed = fast.rms_norm(h, weight, 1e-5)
        if joined:
            assert node_names(normed, later, h)["NibbleResidualNorm"] == 1
            assert node_names(normed, later, h)["NibbleQuantizedMatmul"] == 0
        return [normed, later, h + 1, h, y]

    for ours, theirs in zip(run(True), run(False), strict=True):
        assert ours.dtype == theirs.dtype and mx.array_equal(ours, theirs)


def test_a_weight_that_waits_changes_no_bit():
    """The first call after loading a model gives what all others give."""
    x = activations().astype(mx.bfloat16)
    residual = mx.random.normal((B, L, K)).astype(mx.bfloat16)

    def run(weight: mx.array) -> mx.array:
        h = residual + product(x, matrix(K, 3))
        return mx.concatenate([fast.rms_norm(h, weight, 1e-5), h])

    ready, waits = ((1 + mx.arange(K) / K).astype(mx.bfloat16) for _ in range(2))
    mx.eval(ready, residual, x)
    assert mx.array_equal(run(waits), run(ready))


def test_a_sum_that_is_not_of_a_product_is_left_alone():
    x = activations()
    y = product(x, matrix(K, 3))
    lazy = mx.ones(K) + 0
    sums = [x + x, x + y[0], (y + x.astype(mx.float16)).astype(mx.float16), y + x]
    for h, weight in zip(sums, (None, None, None, lazy), strict=True):
        assert "NibbleResidualNorm" not in node_names(fast.rms_norm(h, weight, 1e-5))


@pytest.mark.parametrize("int8", [None, "int8"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_gate_up_and_swiglu_are_one_node(int8, dtype):
    x = activations().astype(dtype)
    gate, up = (
        ops.quantized_matmul(x, *matrix(96, i), group_size=32, bits=4, activations=int8)
        for i in (4, 5)
    )
    y = fast.swiglu(gate, up)
    assert node_names(y)["NibbleSwigluMatmul"] == 1
    assert node_names(y)["NibbleActivation"] == 0
    mx.eval(gate, up)
    apart = fast.swiglu(gate, up)
    assert node_names(apart)["NibbleActivation"] == 1
    # One rounding in place of three.
    assert relative_rms(to_numpy(y), to_numpy(apart)) < 4 * mx.finfo(dtype).eps


def test_gate_and_up_of_other_shapes_inputs_or_settings_stay_apart():
    x, other = activations(), activations()

    def names(a, b, **kwargs):
        gate = ops.quantized_matmul(a, *matrix(96, 4), group_size=32, bits=4)
        up = ops.quantized_matmul(b, *matrix(96, 5), group_size=32, bits=4, **kwargs)
        return node_names(fast.swiglu(gate, up))

    assert "NibbleSwigluMatmul" in names(x, x)
    assert "NibbleSwigluMatmul" not in names(x, other)
    assert "NibbleSwigluMatmul" not in names(x, x, activations="int8")
    assert "NibbleSwigluMatmul" not in names(x, x, bias=mx.zeros(96))


def test_a_graph_that_is_never_computed_is_freed():
    x = mx.random.normal((B, 512, K))
    mx.eval(x)
    before = mx.get_active_memory()
    y = x + 1
    mx.eval(y)
    q, k, v = (
        product(y, w).reshape(B, 512, -1, D).transpose(0, 2, 1, 3) for w in MATRICES
    )
    z = fast.scaled_dot_product_attention(q, k, v, scale=0.25)
    assert node_names(z)["NibbleProjectedHeads"] == 1
    del y, q, k, v, z
    assert mx.get_active_memory() == before


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3_text"])
def test_a_models_steps_with_a_cache(family):
    model = tiny_models.build(family)
    nn.quantize(model, group_size=32, bits=4)
    mx.eval(model.parameters())
    ids = tiny_models.tokens(1, 30)[0]

    def run(in_advance: bool) -> mx.array:
        cache = make_prompt_cache(model)
        parts = [model(ids[:, :20], cache=cache)]
        for i in range(20, 30):
            parts.append(model(ids[:, i : i + 1], cache=cache))
            (mx.async_eval if in_advance else mx.eval)(parts[-1])
        return mx.concatenate(parts, axis=1)

    stock = to_numpy(run(False))
    report = mlx_nibble.accelerate(model)
    # MLX's own float32 products differ from each other as much.
    assert relative_rms(to_numpy(run(False)), stock) < 1e-5
    assert mx.array_equal(run(False), run(True))
    cache = make_prompt_cache(model)
    mx.eval(model(ids[:, :20], cache=cache))
    by_code(model)
    assert node_names(model(ids[:, 20:21], cache=cache))["NibbleProjectedHeads"] == 3
    report.undo()
    assert "NibbleProjectedHeads" not in node_names(model(ids))
