"""Calls of the layers between the products that MLX computes, and transformations."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_nibble import _native, fast
from tests.support.arrays import to_mlx

# MLX answers or refuses each of these calls.
NOT_HELD = {
    "rms_norm of integers": lambda f: f.rms_norm(mx.arange(8), None, 1e-5),
    "rms_norm in float64": lambda f: f.rms_norm(
        mx.ones((2, 8), dtype=mx.float64), None, 1e-5
    ),
    "rms_norm, wrong weight": lambda f: f.rms_norm(mx.ones((2, 8)), mx.ones(7), 1e-5),
    "rope of two dimensions": lambda f: f.rope(
        mx.ones((2, 8)), 8, traditional=False, base=1e4, scale=1.0, offset=0
    ),
    "rope with base and freqs": lambda f: f.rope(
        mx.ones((1, 2, 8)),
        8,
        traditional=False,
        base=1e4,
        scale=1.0,
        offset=0,
        freqs=mx.ones(4),
    ),
    "rope, offset of two dimensions": lambda f: f.rope(
        mx.ones((1, 2, 8)),
        8,
        traditional=False,
        base=1e4,
        scale=1.0,
        offset=mx.array([[1]]),
    ),
    "attention, sinks of a wider type": lambda f: f.scaled_dot_product_attention(
        *[mx.ones((1, 1, 2, 32)).astype(mx.float16)] * 3, scale=1.0, sinks=mx.ones(1)
    ),
    "attention, an empty mask's name": lambda f: f.scaled_dot_product_attention(
        *[mx.ones((1, 1, 2, 32))] * 3, scale=1.0, mask=""
    ),
    "attention of three dimensions": lambda f: f.scaled_dot_product_attention(
        *[mx.ones((1, 2, 32))] * 3, scale=1.0
    ),
    "attention, unknown mask": lambda f: f.scaled_dot_product_attention(
        *[mx.ones((1, 1, 2, 32))] * 3, scale=1.0, mask="diagonal"
    ),
    "attention, heads that do not divide": lambda f: f.scaled_dot_product_attention(
        mx.ones((1, 3, 2, 32)), *[mx.ones((1, 2, 2, 32))] * 2, scale=1.0
    ),
}


def outcome(call, module):
    try:
        return np.array(call(module)).tolist()
    except ValueError:
        return "refused"


def test_attention_without_a_head_for_keys_is_an_error():
    q, kv = mx.ones((1, 2, 2, 32)), mx.ones((1, 0, 2, 32))
    with pytest.raises(ValueError, match=r"one head or more .* \(1,0,2,32\)"):
        fast.scaled_dot_product_attention(q, kv, kv, scale=1.0)


@pytest.mark.parametrize("name", NOT_HELD)
def test_what_we_do_not_hold_is_mlx_own(name):
    call = NOT_HELD[name]
    assert outcome(call, fast) == outcome(call, mx.fast)


def some_calls(rng):
    """Return the result of each operation of a module for the same float32 arrays."""
    x = to_mlx(rng.standard_normal((2, 6, 5, 64)), "float32")
    k = to_mlx(rng.standard_normal((2, 2, 9, 64)), "float32")
    w = to_mlx(rng.standard_normal(64), "float32")
    added = to_mlx(rng.standard_normal((2, 1, 5, 9)), "float32")
    sinks = to_mlx(rng.standard_normal(6), "float32")
    freqs = to_mlx(rng.uniform(1, 100, 32), "float32")
    kwargs = dict(traditional=False, base=None, scale=1.0)
    return {
        "rms_norm": (lambda f: lambda x, w: f.rms_norm(x, w, 1e-5), (x, w)),
        "rope": (
            lambda f: lambda x: f.rope(x, 64, offset=7, freqs=freqs, **kwargs),
            (x,),
        ),
        "rope freqs": (
            lambda f: lambda x, p: f.rope(x, 64, offset=7, freqs=p, **kwargs),
            (x, freqs),
        ),
        "attention": (
            lambda f: (
                lambda q, k, v, m, s: f.scaled_dot_product_attention(
                    q, k, v, scale=0.125, mask=m, sinks=s
                )
            ),
            (x, k, k[..., ::-1], added, sinks),
        ),
    }


@pytest.mark.parametrize("name", ["rms_norm", "rope", "rope freqs", "attention"])
def test_gradients_and_tangents_are_mlx_own(rng, name):
    make, arrays = some_calls(rng)[name]
    arrays = list(arrays)
    cotangent = mx.random.normal(arrays[0].shape)
    tangents = [mx.random.normal(a.shape) for a in arrays]

    def run(module):
        gradients = mx.vjp(make(module), arrays, [cotangent])[1]
        try:
            return gradients + mx.jvp(make(module), arrays, tangents)[1]
        except ValueError as error:  # MLX has no tangent for some
            return [*gradients, str(error)]

    for ours, theirs in zip(run(fast), run(mx.fast), strict=True):
        if isinstance(ours, str):
            assert ours == theirs
        else:
            assert mx.array_equal(ours, theirs)


@pytest.mark.parametrize("name", ["rms_norm", "rope", "attention"])
def test_vmap_is_mlx_own(rng, name):
    make, arrays = some_calls(rng)[name]
    axes = (0, *[None] * (len(arrays) - 1))
    many = [mx.stack([arrays[0], 2 * arrays[0]]), *arrays[1:]]
    assert mx.array_equal(
        mx.vmap(make(fast), in_axes=axes)(*many),
        mx.vmap(make(mx.fast), in_axes=axes)(*many),
    )


def test_swiglu_gradients():
    gate, up = mx.random.normal((3, 50)), mx.random.normal((3, 50))

    def plain(g, u):
        return g * mx.sigmoid(g) * u

    cotangent = mx.random.normal(gate.shape)
    for ours, theirs in zip(
        mx.vjp(fast.swiglu, [gate, up], [cotangent])[1],
        mx.vjp(plain, [gate, up], [cotangent])[1],
        strict=True,
    ):
        assert mx.array_equal(ours, theirs)


@pytest.mark.parametrize("shapeless", [False, True])
@pytest.mark.parametrize("name", ["rms_norm", "rope", "attention"])
def test_compile(rng, name, shapeless):
    make, arrays = some_calls(rng)[name]
    function = make(fast)
    compiled = mx.compile(function, shapeless=shapeless)
    assert mx.array_equal(compiled(*arrays), function(*arrays))


def test_several_streams_at_once(rng):
    streams = [mx.new_stream(mx.cpu) for _ in range(4)]
    make, arrays = some_calls(rng)["attention"]
    want = make(fast)(*arrays)
    results = []
    for i in range(40):
        with mx.stream(streams[i % 4]):
            results.append(make(fast)(*arrays))
    mx.eval(results)
    assert all(mx.array_equal(y, want) for y in results)


def test_without_the_extension_every_op_is_mlx_own(rng, monkeypatch):
    monkeypatch.setattr(_native, "ext", None)
    for make, arrays in some_calls(rng).values():
        assert mx.array_equal(make(fast)(*arrays), make(mx.fast)(*arrays))
    x = mx.random.normal((3, 5))
    assert mx.array_equal(fast.swiglu(x, x), x * mx.sigmoid(x) * x)
