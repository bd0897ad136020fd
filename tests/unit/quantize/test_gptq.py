"""GPTQ and its helpers, against brute force and against the definition."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mlx_nibble.formats import Format, Quantized
from mlx_nibble.quantize import awq, hessian, rules
from mlx_nibble.quantize.gptq import gptq
from mlx_nibble.quantize.hessian import damped, output_error
from mlx_nibble.quantize.method import Method, quantize
from mlx_nibble.quantize.refine import refine
from mlx_nibble.quantize.search import search

FORM = Format(4, 32, "float32")


def layer(rng, rows=24, inputs=96, tokens=600):
    """Return a weight, and correlated inputs of unequal size."""
    x = rng.normal(size=(tokens, inputs)) @ rng.normal(size=(inputs, inputs)) * 0.1
    x = (x * np.exp(rng.normal(size=inputs))).astype(np.float32)
    return rng.normal(size=(rows, inputs)).astype(np.float32), x


def error(w, q: Quantized, h) -> float:
    return output_error(w, q.dequantize(), h)


def test_output_error_is_that_of_the_outputs(rng):
    w, x = layer(rng)
    q = rules.minmax(w, FORM)
    direct = ((x @ (w - q.dequantize()).T).astype(np.float64) ** 2).sum()
    assert error(w, q, x.T @ x) == pytest.approx(direct, rel=1e-3)


@pytest.mark.parametrize("size", [1, 5, 128, 300])
def test_inverse_factor(rng, size):
    a = rng.normal(size=(size, 2 * size))
    h = a @ a.T + np.eye(size)
    u = hessian.inverse_factor(h)
    np.testing.assert_array_equal(u, np.triu(u))
    np.testing.assert_allclose(u.T @ u @ h, np.eye(size), atol=1e-9)


def test_dead_inputs_are_harmless(rng):
    w, x = layer(rng)
    x[:, [3, 40, 41]] = 0
    q = quantize(w, FORM, Method(), x.T @ x)
    assert np.isfinite(q.dequantize()).all()
    q = quantize(w, FORM, Method(), np.zeros((96, 96), np.float32))
    assert abs(w - q.dequantize()).max() <= abs(q.scales).max()


def test_uncorrelated_inputs_make_gptq_round_to_nearest(rng):
    w, _ = layer(rng)
    h = np.diag(rng.uniform(1, 2, 96)).astype(np.float32)
    grid = rules.minmax(w, FORM)
    np.testing.assert_array_equal(gptq(w, h, FORM, grid=grid).codes, grid.codes)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("bits", [2, 4])
def test_gptq_lowers_the_error_of_rounding(rng, act_order, bits):
    w, x = layer(rng)
    form, h = Format(bits, 32, "float32"), x.T @ x
    rounded = rules.minmax(w, form)
    q = gptq(w, h, form, grid=rounded, act_order=act_order)
    assert error(w, q, h) < error(w, rounded, h) * (0.5 if act_order else 0.9)


def test_gptq_by_blocks_is_gptq_by_the_definition(rng):
    """The definition is Frantar et al., equations 2 and 3, one input at a time."""
    w, x = layer(rng, rows=4)
    h, grid = x.T @ x, rules.minmax(w, FORM)
    left, codes = w.astype(np.float64), np.zeros(w.shape, np.uint8)
    inverse = np.linalg.inv(damped(h, 0.01))
    for j in range(96):
        scale, bias = grid.scales[:, j // 32], grid.biases[:, j // 32]
        codes[:, j] = np.clip(np.rint((left[:, j] - bias) / scale), 0, 15)
        delta = (left[:, j] - (codes[:, j] * scale + bias)) / inverse[j, j]
        left -= np.outer(delta, inverse[j])
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    q = gptq(w, h, FORM, grid=grid, act_order=False)
    # float32 may round a tie differently, which changes the following codes.
    assert (q.codes == codes).mean() > 0.98
    exact = Quantized(codes, grid.scales, grid.biases, 4)
    assert error(w, q, h) == pytest.approx(error(w, exact, h), rel=0.02)


def test_refine_reaches_the_brute_force_optimum_of_small_problems(rng):
    """Two inputs matter: brute force tries every pair of their codes."""
    reached = 0
    for _ in range(20):
        w = rng.normal(size=(1, 32)).astype(np.float32)
        h = np.diag(np.full(32, 1e-6)).astype(np.float32)
        a = rng.normal(size=(2, 2))
        h[:2, :2] += (a @ a.T).astype(np.float32)
        form = Format(2, 32, "float32")
        grid = rules.minmax(w, form)
        best = np.inf
        for pair in itertools.product(range(4), repeat=2):
            codes = grid.codes.copy()
            codes[0, :2] = pair
            tried = Quantized(codes, grid.scales, grid.biases, 2)
            best = min(best, error(w, tried, h))
        q = refine(w, gptq(w, h, form, grid=grid), h, form, damping=1e-9)
        reached += error(w, q, h) <= best * 1.001 + 1e-9
    # Refinement moves the grid too, so it can beat brute force. As a descent it can
    # also stop at another minimum.
    assert reached >= 18


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("scale_dtype", ["float16", "bfloat16"])
def test_no_sweep_of_refinement_raises_the_error(rng, symmetric, scale_dtype):
    w, x = layer(rng)
    h = x.T @ x
    mode = "symmetric" if symmetric else "affine"
    form = Format(3, 32, scale_dtype, mode)
    q = search(w, form)
    full = damped(h, 0.01).astype(np.float32)
    errors = [error(w, q, full)]
    for _ in range(4):
        q = refine(w, q, h, form, sweeps=1)
        errors.append(error(w, q, full))
    # 1e-4: the gradient is float32.
    assert all(b <= a * (1 + 1e-4) for a, b in itertools.pairwise(errors))
    assert errors[-1] < errors[0] / 2
    if symmetric:
        np.testing.assert_array_equal(q.biases, -4 * q.scales)


def test_each_step_of_the_method_lowers_the_error(rng):
    w, x = layer(rng, rows=64, inputs=192, tokens=2000)
    h = x.T @ x
    form = Format(4, 64)
    steps = [
        Method("affine", gptq=False, sweeps=0),
        Method("affine", sweeps=0),
        Method(sweeps=4),
    ]
    errors = [error(w, quantize(w, form, m, h), h) for m in steps]
    assert errors == sorted(errors, reverse=True)


def test_a_lossless_grid_is_left_alone(rng):
    codes = rng.integers(0, 16, (8, 64)).astype(np.uint8)
    codes[:, ::32], codes[:, 1::32] = 0, 15
    scales = rng.uniform(1, 2, (8, 2)).astype(np.float16).astype(np.float32)
    exact = Quantized(codes, scales, -8 * scales, 4)
    w = exact.dequantize()
    x = rng.normal(size=(100, 64)).astype(np.float32)
    q = quantize(w, Format(4, 32), Method(), x.T @ x)
    np.testing.assert_array_equal(q.dequantize(), w)


def test_experts_are_quantized_one_by_one(rng):
    pairs = [layer(rng) for _ in range(3)]
    w = np.stack([w for w, _ in pairs])
    h = np.stack([x.T @ x for _, x in pairs])
    q = quantize(w, FORM, Method(), h)
    alone = quantize(w[1], FORM, Method(), h[1])
    np.testing.assert_array_equal(q.codes[1], alone.codes)
    assert q.dequantize().shape == w.shape


def test_awq_scales_never_lose_and_win_where_inputs_are_unequal(rng):
    w, x = layer(rng)
    x[:, :4] *= 30
    h = x.T @ x
    s = awq.scales([w[:8], w[8:]], h, FORM)

    def scaled_error(s) -> float:
        return output_error(w, rules.affine(w * s, FORM).dequantize() / s, h)

    assert scaled_error(s) < scaled_error(np.ones(96, np.float32))


def test_bad_input_is_refused(rng):
    w, x = layer(rng)
    with pytest.raises(ValueError, match=r"weight \[N, K\] and hessian \[K, K\]"):
        gptq(w, np.eye(95), FORM)
    with pytest.raises(ValueError, match="Hessian must be finite"):
        gptq(w, np.full((96, 96), np.inf, np.float32), FORM)
    with pytest.raises(ValueError, match="damping must be above 0"):
        gptq(w, x.T @ x, FORM, damping=0)
    with pytest.raises(ValueError, match="rule must be one of"):
        Method("gguf")
