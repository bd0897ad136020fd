"""Other tools' layouts, against the definition of each: scale * (code - zero)."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_nibble.conversion.packed_forms import formed
from mlx_nibble.conversion.packed_layouts import Parts
from mlx_nibble.conversion.packed_run import METHODS
from mlx_nibble.conversion.packed_settings import matches
from mlx_nibble.formats import Quantized, round_to
from mlx_nibble.io.packed_floats import Floats
from tests.support import packers

N = 32  # rows; with all zeros of 8 bits in 8 groups


def read(settings: dict, parts: dict[str, np.ndarray], dtype: str = "float32"):
    """Import one matrix; return its weights with the inputs in order, and its form."""
    layout = METHODS[settings["quant_method"]](settings)
    tensors = {f"a.b.{name}": mx.array(part) for name, part in parts.items()}
    assert layout.paths(tensors) == ["a.b"]
    assert {f"a.b.{name}" for name in layout.parts("a.b")} >= tensors.keys()
    made = formed("a.b", layout.read(Parts(tensors, "a.b")), dtype, "values")
    weights = dense(made.matrix)
    if made.order is not None:
        weights[:, made.order] = weights.copy()
    return weights, made.matrix, made.order


def dense(matrix: Quantized | Floats | np.ndarray) -> np.ndarray:
    """Return the values of a matrix in MLX's form."""
    if isinstance(matrix, Quantized):
        return matrix.dequantize()
    return matrix.values() if isinstance(matrix, Floats) else matrix


def gptq_settings(bits, group_size, form="gptq", **more):
    return {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group_size,
        "checkpoint_format": form,
        **more,
    }


def compressed_settings(bits, group_size, symmetric, form="pack-quantized", **more):
    strategy = "channel" if group_size == -1 else "group"
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": strategy,
        "group_size": None if group_size == -1 else group_size,
    }
    group = {"targets": ["Linear"], "weights": weights}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        **more,
    }


def matrix(rng, bits, inputs, groups):
    """Return codes, float16 scales and zeros. All zeros occur if there is room."""
    codes = rng.integers(0, 1 << bits, (N, inputs))
    scales = rng.uniform(0.01, 0.02, (N, groups)).astype(np.float16)
    zeros = (np.arange(N * groups) % (1 << bits)).reshape(N, groups)
    return codes, scales, rng.permuted(zeros, axis=1)


def exact(codes, scales, zeros, groups):
    return scales.astype(np.float64)[:, groups] * (codes - zeros[:, groups])


GROUPS = [(32, 256), (128, 256), (256, 512), (96, 192), (-1, 96), (128, 288)]


@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("group_size", "inputs"), GROUPS)
def test_gptq(rng, form, bits, group_size, inputs):
    groups = np.arange(inputs) // (inputs if group_size == -1 else group_size)
    codes, scales, zeros = matrix(rng, bits, inputs, groups[-1] + 1)
    parts = packers.gptq(codes, scales, zeros, bits, form)
    settings = gptq_settings(bits, group_size, form)
    weights, quantized, order = read(settings, parts)
    assert order is None and quantized.bits == bits
    np.testing.assert_array_equal(weights, exact(codes, scales, zeros, groups))
    # With scales in float16, one bias is rounded once.
    half, _, _ = read(settings, parts, "float16")
    step = np.abs(scales * zeros).astype(np.float64)[:, groups] * 2.0**-11
    assert (np.abs(half - weights) <= step + 1e-7).all()


@pytest.mark.parametrize("word", [8, 16, 32, 64])
@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
def test_gptq_of_other_words(rng, form, word):
    codes, scales, zeros = matrix(rng, 4, 128, 4)
    parts = packers.gptq(codes, scales, zeros, 4, form, word=word)
    weights, _, _ = read(gptq_settings(4, 32, form), parts)
    expected = exact(codes, scales, zeros, np.arange(128) // 32)
    np.testing.assert_array_equal(weights, expected)


@pytest.mark.parametrize(
    ("bits", "widths"), [(3, (2, 1)), (5, (4, 1)), (6, (4, 2)), (7, (4, 2, 1))]
)
def test_gptq_in_planes(rng, bits, widths):
    codes, scales, zeros = matrix(rng, bits, 128, 4)
    parts = {
        "qweight": np.ascontiguousarray(packers.planes(codes, widths).T),
        "qzeros": packers.planes(np.ascontiguousarray(zeros.T), widths),
        "scales": np.ascontiguousarray(scales.T),
    }
    weights, quantized, _ = read(gptq_settings(bits, 32, "gptq_p"), parts)
    expected = exact(codes, scales, zeros, np.arange(128) // 32)
    np.testing.assert_array_equal(weights, expected)
    assert quantized.bits == (8 if bits == 7 else bits)


@given(st.lists(st.integers(0, 15), min_size=8, max_size=8))
def test_any_zeros_of_a_word_come_back(zeros):
    codes, scales = np.zeros((8, 32), int), np.ones((8, 1), np.float16)
    column = np.array(zeros)[:, None]
    weights, _, _ = read(
        gptq_settings(4, 32), packers.gptq(codes, scales, column, 4, "gptq")
    )
    np.testing.assert_array_equal(weights, np.broadcast_to(-column, (8, 32)))


def test_act_order_is_a_permutation_of_the_inputs(rng):
    codes, scales, zeros = matrix(rng, 4, 128, 4)
    g_idx = rng.permutation(np.arange(128) // 32)
    parts = packers.gptq(codes, scales, zeros, 4, "gptq", g_idx)
    weights, _, order = read(gptq_settings(4, 32, desc_act=True), parts)
    assert order is not None
    np.testing.assert_array_equal(weights, exact(codes, scales, zeros, g_idx))


def test_groups_in_another_order_need_no_permutation(rng):
    codes, scales, zeros = matrix(rng, 4, 128, 4)
    g_idx = np.repeat([2, 0, 3, 1], 32)
    parts = packers.gptq(codes, scales, zeros, 4, "gptq", g_idx)
    weights, _, order = read(gptq_settings(4, 32), parts)
    assert order is None
    np.testing.assert_array_equal(weights, exact(codes, scales, zeros, g_idx))


def test_gptq_by_rules(rng):
    dynamic = {"-:c.*": {}, "+:a\\.b": {"bits": 8, "group_size": 64}, "a.*": {}}
    codes, scales, zeros = matrix(rng, 8, 128, 2)
    parts = packers.gptq(codes, scales, zeros, 8)
    weights, quantized, _ = read(gptq_settings(4, 32, dynamic=dynamic), parts)
    assert (quantized.bits, quantized.group_size) == (8, 64)
    expected = exact(codes, scales, zeros, np.arange(128) // 64)
    np.testing.assert_array_equal(weights, expected)


@pytest.mark.parametrize(("group_size", "inputs"), GROUPS[:3] + GROUPS[4:5])
def test_awq(rng, group_size, inputs):
    groups = np.arange(inputs) // (inputs if group_size == -1 else group_size)
    codes, scales, zeros = matrix(rng, 4, inputs, groups[-1] + 1)
    settings = {"quant_method": "awq", "bits": 4, "group_size": group_size}
    parts = packers.awq(codes, scales, zeros)
    weights, _, _ = read({**settings, "version": "GEMM"}, parts)
    np.testing.assert_array_equal(weights, exact(codes, scales, zeros, groups))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("pack", [packers.stream, packers.whole_words])
@pytest.mark.parametrize(("group_size", "inputs"), [(32, 96), (-1, 96), (256, 512)])
def test_pack_quantized(rng, bits, symmetric, pack, group_size, inputs):
    groups = np.arange(inputs) // (inputs if group_size == -1 else group_size)
    codes, scales, zeros = matrix(rng, bits, inputs, groups[-1] + 1)
    if symmetric:
        zeros = np.full(zeros.shape, 1 << (bits - 1))
    stored = None if symmetric else zeros
    parts = packers.compressed(codes, scales, stored, bits, pack)
    settings = compressed_settings(bits, group_size, symmetric)
    weights, _, _ = read(settings, parts)
    np.testing.assert_array_equal(weights, exact(codes, scales, zeros, groups))


@pytest.mark.parametrize("form", ["int-quantized", "naive-quantized"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("scale_shape", [(N, 1), (N, 4), (1,), (1, 1)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_int_quantized(rng, form, bits, scale_shape, symmetric):
    half = 1 << (bits - 1)
    signed = rng.integers(-half, half, (N, 128))
    scales = rng.uniform(0.01, 0.02, scale_shape).astype(np.float16)
    zeros = rng.integers(-half, half, scale_shape)
    parts = {"weight": signed.astype(np.int8), "weight_scale": scales}
    if symmetric:
        zeros = np.zeros(scale_shape)
    else:
        parts["weight_zero_point"] = zeros.astype(np.int8)
    size = 32 if scale_shape == (N, 4) else -1
    weights, _, _ = read(compressed_settings(bits, size, symmetric, form), parts)
    wide = np.broadcast_to(
        np.repeat(scales, 32, -1) if size == 32 else scales, (N, 128)
    )
    shift = np.broadcast_to(np.repeat(zeros, 32, -1) if size == 32 else zeros, (N, 128))
    np.testing.assert_array_equal(weights, wide.astype(np.float64) * (signed - shift))


def test_compressed_tensors_with_act_order(rng):
    codes, scales, zeros = matrix(rng, 4, 128, 4)
    g_idx = rng.permutation(np.arange(128) // 32)
    parts = packers.compressed(codes, scales, zeros, 4)
    parts["weight_g_idx"] = g_idx.astype(np.int32)
    weights, _, order = read(compressed_settings(4, 32, False), parts)
    assert order is not None
    np.testing.assert_array_equal(weights, exact(codes, scales, zeros, g_idx))


def test_the_group_of_a_matrix_is_the_one_that_names_it(rng):
    settings = compressed_settings(4, 32, True)
    more = compressed_settings(8, 64, True)["config_groups"]["group_0"]
    by_name = {**more, "targets": ["a.b"]}
    by_pattern = compressed_settings(2, 32, True)["config_groups"]["group_0"]
    settings["config_groups"] |= {
        "group_1": {**by_pattern, "targets": ["re:a.*"]},
        "group_2": by_name,
    }
    codes, scales, _ = matrix(rng, 8, 128, 2)
    _, quantized, _ = read(settings, packers.compressed(codes, scales, None, 8))
    assert (quantized.bits, quantized.group_size) == (8, 64)


def one(**changed):
    """Return GPTQ's tensors of a matrix in which some are changed."""
    rng = np.random.default_rng(0)
    parts = packers.gptq(*matrix(rng, 4, 64, 2), 4, "gptq", np.arange(64) // 32)
    return {k: v for k, v in (parts | changed).items() if v is not None}


HUGE = 10**5000
HOSTILE = {
    "g_idx out of range": (gptq_settings(4, 32), {"g_idx": np.full(64, 2, "i4")}),
    "g_idx negative": (gptq_settings(4, 32), {"g_idx": np.full(64, -7, "i4")}),
    "g_idx of floats": (gptq_settings(4, 32), {"g_idx": np.zeros(64, "f4")}),
    "g_idx too short": (gptq_settings(4, 32), {"g_idx": np.zeros(3, "i4")}),
    "no zeros": (gptq_settings(4, 32), {"qzeros": None}),
    "no scales": (gptq_settings(4, 32), {"scales": None}),
    "codes of floats": (gptq_settings(4, 32), {"qweight": np.ones((8, N), "f4")}),
    "codes of one dimension": (gptq_settings(4, 32), {"qweight": np.ones(8, "i4")}),
    "narrow zeros": (gptq_settings(4, 32), {"qzeros": np.ones((2, 1), "i4")}),
    "infinite scales": (
        gptq_settings(4, 32),
        {"scales": np.full((2, N), np.inf, "f2")},
    ),
    "another width": (gptq_settings(8, 32), {}),
    "another group": (gptq_settings(4, 16), {"g_idx": None}),
    "groups of 16": (
        gptq_settings(4, 16),
        {
            "g_idx": None,
            "qzeros": np.ones((4, N // 8), "i4"),
            "scales": np.ones((4, N), "f2"),
        },
    ),
    "a rule against it": (gptq_settings(4, 32, dynamic={"-:a": {}}), {}),
    "a malformed rule": (gptq_settings(4, 32, dynamic={"(": {}}), {}),
}
HOSTILE_SETTINGS = {
    "huge bits": gptq_settings(HUGE, 32),
    "bits as text": gptq_settings("4", 32),
    "no bits": {"quant_method": "gptq", "group_size": 32},
    "true bits": gptq_settings(True, 32),
    "group of 0": gptq_settings(4, 0),
    "negative group": gptq_settings(4, -2),
    "fractional group": gptq_settings(4, 32.5),
    "group as list": gptq_settings(4, [32]),
    "no group": {"quant_method": "gptq", "bits": 4},
    "rules as list": gptq_settings(4, 32, dynamic=["a"]),
    "marlin": gptq_settings(4, 32, "marlin"),
    "marlin by a switch": gptq_settings(4, 32, is_marlin_format=True),
    "rotation": gptq_settings(4, 32, rotation="hadamard"),
    "format as list": gptq_settings(4, 32, [4]),
    "awq of 8 bits": {"quant_method": "awq", "bits": 8, "group_size": 32},
    "awq marlin": {"quant_method": "awq", "bits": 4, "version": "marlin"},
    "integers as floats": compressed_settings(8, -1, True, "float-quantized"),
    "huge num_bits": compressed_settings(HUGE, 32, True),
    "num_bits of 0": compressed_settings(0, 32, True),
    "a KV cache": compressed_settings(4, 32, True, kv_cache_scheme={"num_bits": 8}),
    "transforms": compressed_settings(4, 32, True, transform_config={"R1": {}}),
    "sparsity": compressed_settings(4, 32, True, sparsity_config={"format": "sparse"}),
    "groups as list": {"quant_method": "compressed-tensors", "config_groups": [1]},
}


@pytest.mark.parametrize(("settings", "changed"), HOSTILE.values(), ids=HOSTILE.keys())
def test_malformed_matrices_are_refused(settings, changed):
    with pytest.raises(ValueError) as caught:
        read(settings, one(**changed))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "settings", HOSTILE_SETTINGS.values(), ids=HOSTILE_SETTINGS.keys()
)
def test_malformed_settings_are_refused(settings):
    with pytest.raises(ValueError, match=r"^\[import\] ") as caught:
        METHODS[settings["quant_method"]](settings)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_pattern_without_end_is_refused():
    with pytest.raises(ValueError, match="a regular expression that ends"):
        matches("(?:a|aa)+$", "a" * 60 + "b")


def test_a_bias_beyond_float16_is_refused():
    codes, scales = np.zeros((N, 32), int), np.full((N, 1), 6e4, np.float16)
    parts = packers.gptq(codes, scales, np.full((N, 1), 8), 4)
    with pytest.raises(ValueError, match="float32 has room"):
        read(gptq_settings(4, 32), parts, "float16")
    weights, _, _ = read(gptq_settings(4, 32), parts)
    assert (weights == -8 * float(scales[0, 0])).all()


def test_zeros_of_3_bits_that_old_gptqmodel_misplaced(rng):
    parts = packers.gptq(*matrix(rng, 3, 64, 2), 3)
    old = gptq_settings(3, 32, meta={"quantizer": ["gptqmodel:5.8.0"]})
    with pytest.raises(ValueError, match=r"before 6\.1"):
        read(old, parts)
    read(gptq_settings(3, 32, meta={"quantizer": ["gptqmodel:7.7.0"]}), parts)


def test_rounding_of_a_scale_to_bfloat16(rng):
    codes, scales, zeros = matrix(rng, 4, 64, 2)
    _, quantized, _ = read(
        gptq_settings(4, 32), packers.gptq(codes, scales, zeros, 4), "bfloat16"
    )
    np.testing.assert_array_equal(
        quantized.scales, round_to(scales.astype(np.float32), "bfloat16")
    )


def test_autoround_has_schemes_by_name_and_by_pattern():
    settings = {
        "packing_format": "auto_round:auto_gptq",
        "bits": 4,
        "group_size": 128,
        "extra_config": {
            "lm_head": {"bits": 8},
            "model.layers.0.mlp.gate": {"bits": 16},
            "model.layers.1.mlp.up_proj": {"bits": 2, "group_size": 32},
            r".*down_proj.*": {"bits": 3},
        },
    }
    layout = METHODS["auto-round"](settings)
    found = {
        path: (scheme.bits, scheme.group_size)
        for path in (
            *("lm_head", "model.layers.0.mlp.gate_proj", "model.layers.1.mlp.up_proj"),
            *("model.layers.11.mlp.up_proj", "model.layers.3.mlp.down_proj"),
        )
        for scheme in [layout.scheme_of(path)]
    }
    assert list(found.values()) == [(8, 128), (4, 128), (2, 32), (4, 128), (3, 128)]


@pytest.mark.parametrize(
    "changed",
    [
        {"data_type": "mx_fp"},
        {"rotation_config": {"hadamard": True}},
        {"bits": 9},
        {"extra_config": {"lm_head": {"bits": "8"}}},
        {"packing_format": "auto_round:auto_awq", "bits": 3},
    ],
)
def test_other_autoround_checkpoints_are_refused(changed):
    settings = {"packing_format": "auto_round", "bits": 4, "group_size": 32}
    with pytest.raises(ValueError, match=r"^\[import\] "):
        METHODS["auto-round"](settings | changed)
