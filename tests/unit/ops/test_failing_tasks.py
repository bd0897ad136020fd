"""A task that throws leaves no wait, no wrong result and no dead process."""

import subprocess
import sys
from pathlib import Path

import pytest

from mlx_nibble import _native

OUT_OF_MEMORY = """
import mlx.core as mx, resource
from mlx_nibble import ops
mx.set_default_device(mx.cpu)
q = mx.quantize(mx.random.normal((64, 1024)), 64, 4)
x, wide = mx.random.normal((4, 1024)), mx.ones((1024, 60000))
want = ops.quantized_matmul(x, *q)
mx.eval(want, wide)
used = int(open("/proc/self/statm").read().split()[0]) * 4096
limits = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + (120 << 20), limits[1]))
errors = 0
for _ in range(3):
    try:
        mx.eval(ops.quantized_matmul(wide.T, *q))
    except (RuntimeError, MemoryError):
        errors += 1
resource.setrlimit(resource.RLIMIT_AS, limits)
assert errors == 3, errors
for _ in range(20):
    assert mx.array_equal(ops.quantized_matmul(x, *q), want)
"""


@pytest.mark.parametrize("name", ["pool_test", "task_test"])
def test_programs_whose_tasks_throw(name):
    assert _native.ext is not None and _native.ext.__file__ is not None
    program = Path(_native.ext.__file__).parents[1] / name
    if not program.exists():
        pytest.skip("only an editable installation has the programs of tests/cpu")
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_products_are_right_after_running_out_of_memory():
    subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], check=True)
