"""Mutants: arithmetic, addends and types."""

from __future__ import annotations

from tests.simt.mutants.mutant import HALF, QVM, multi, of, qmm, qmv, quad, skinny

MUTANTS = [
    # Arithmetic.
    qmv("bias dropped", "fma(affine.y, x_sum, fma", "fma(0.0f, x_sum, fma"),
    qmm(
        "bias dropped by value()",
        "codes.first + i), affine.y)",
        "codes.first + i), 0.0f)",
    ),
    qmv("bias of the wrong row", "arrays.biases[group]", "arrays.biases[0]"),
    qmv("sum misses a value", "sum += value;", "sum += j == 3 ? 0.0f : value;"),
    qmv("x not scaled", "value * Q::unshift(i + j)", "value"),
    qmv("half accumulation", "float dot = 0.0f;", "half dot = half(0.0f);", "f32_f16"),
    qmv("part of K missed", "k += lanes * kCodes", "k += 2 * lanes * kCodes"),
    qmv(
        "four lanes summed",
        "lanes == 4 ? quad_sum(value) : simd_sum(value)",
        "quad_sum(value)",
    ),
    quad(
        "all quads summed",
        "lanes == 4 ? quad_sum(value) : simd_sum(value)",
        "simd_sum(value)",
    ),
    of(
        "qmv_f16_f16_b4_g64_sym",
        "sign of the zero point",
        "scale * -float(1 << (bits - 1))",
        "scale * float(1 << (bits - 1))",
    ),
    of(
        "qmv_f16_f16_b4_g64_sym",
        "zero point off by one",
        "-float(1 << (bits - 1))",
        "-float((1 << (bits - 1)) - 1)",
    ),
    of(
        "qmv_f16_f16_b4_g64_sym",
        "biases read that are not there",
        "scale * -float(1 << (bits - 1))",
        "float(arrays.biases[group])",
    ),
    of(
        "swiglu_f16_f16_b4_g64",
        "gate and up swapped",
        "ups[r] *= gates[r] / (1.0f + exp(-gates[r]));",
        "ups[r] = gates[r] * ups[r] / (1.0f + exp(-ups[r]));",
    ),
    of(
        "swiglu_f16_f16_b4_g64",
        "sign of the exponent",
        "exp(-gates[r])",
        "exp(gates[r])",
    ),
    qmm("w not transposed", "from[stride]", "from[1]"),
    qmm("layout of a fragment", "((lane >> 1) & 3)", "(lane & 3)"),
    of(QVM, "the other half's sum", "ushort(NIBBLE_QVM_LANES)", "ushort(8)"),
    # Addends.
    qmv("bias of the first column", "bias[column]", "bias[0]"),
    qmv("residual of the first batch", "residual_ + offset", "residual_"),
    quad("bias left out", "parts & NIBBLE_BIAS", "false"),
    multi("residual left out", "parts & NIBBLE_RESIDUAL", "false"),
    skinny("bias that is not there", "parts & NIBBLE_BIAS", "true"),
    qmm("residual of the column before", "residual[offset]", "residual[offset - 1]"),
    multi(
        "rounded twice", "sum += float(residual", "sum = float(T(sum)) + float(residual"
    ),
    of(HALF, "overflow of half", "largest <= kMost", "largest <= 1.0e30f"),
    of(HALF, "underflow of half", "largest >= kLeast", "largest >= 0.0f"),
    of(HALF, "x not watched", "x_loader.fit_half() && w_loader.fit", "w_loader.fit"),
    of(
        HALF,
        "w not watched",
        "x_loader.fit_half() && w_loader.fit",
        "x_loader.fit_half()",
    ),
    of(
        HALF,
        "the trial stored in any case",
        "} else {\n      tile.store",
        "}\n    {\n      tile.store",
    ),
    of(HALF, "one bfloat twice", "= half(low);", "= half(high);"),
    # Language.
    qmv("missing qualifier", "T* x, thread float* scaled", "T* x, float* scaled"),
    skinny("wrong address space", "threadgroup float2* mine", "device float2* mine"),
    qmv("double", "float dot = 0.0f;", "double dot = 0.0;"),
    qmv("implicit bfloat", "return T(sum);", "return sum;", "bf16_bf16"),
]
