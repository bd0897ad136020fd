"""The formats without Metal kernels: on a GPU, MLX computes them."""

import mlx.core as mx
import pytest

from mlx_nibble.formats import FLOAT_MODES, MODES
from tests.support.graph import node_names

FORMATS = [(m, MODES[m].default_bits, MODES[m].default_group_size) for m in FLOAT_MODES]
FORMATS += [("affine", 1, 32)]


@pytest.mark.parametrize(("mode", "bits", "group_size"), FORMATS)
def test_every_operation_is_mlx_own(recorder, mode, bits, group_size):
    def matrix():
        made = mx.quantize(mx.zeros((3, 64, 128)), group_size, bits, mode)
        return (*made, None) if len(made) == 2 else tuple(made)

    form = {"group_size": group_size, "bits": bits, "mode": mode}
    x, rhs = mx.zeros((3, 1, 128)), mx.array([2, 0, 1], mx.uint32)
    gate, up = matrix(), matrix()
    mx.eval([a for a in (*gate, *up) if a is not None], x, rhs)
    ext, stream = recorder.module, recorder.stream
    results = [
        ext.quantized_matmul(x, *gate, **form, stream=stream),
        ext.gather_qmm(x, *gate, rhs_indices=rhs, **form, stream=stream),
        ext.swiglu_matmul(x, gate, up, **form, stream=stream),
        ext.gather_swiglu(x, gate, up, rhs_indices=rhs, **form, stream=stream),
        ext.dequantize(*gate, **form, stream=stream),
    ]
    ours = {"NibbleQuantizedMatmul", "NibbleGatherQmm", "NibbleSwigluMatmul"}
    for y in results:
        assert not node_names(y).keys() & (ours | {"NibbleDequantize"})
