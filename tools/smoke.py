"""Shows that an installed mlx-nibble works, with only its requirements."""

from __future__ import annotations

import platform
import warnings

# To users, an extension that cannot be loaded is only a warning.
warnings.simplefilter("error")

import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402

import mlx_nibble  # noqa: E402
from mlx_nibble.formats import GROUP_SIZES  # noqa: E402


def main() -> None:
    """Compare an accelerated layer of each format with the dequantized product."""
    mx.random.seed(0)
    for bits in (4, 8):
        for group_size in GROUP_SIZES:
            layer = nn.Linear(512, 96).to_quantized(group_size, bits)
            # MLX computes, per group: w_hat = scale * code + bias.
            w_hat = mx.dequantize(
                layer.weight, layer.scales, layer.biases, group_size, bits
            )
            report = mlx_nibble.accelerate(layer)
            assert len(report.swapped) == 1, report
            for rows in (1, 7):
                x = mx.random.normal((rows, 512))
                exact = x @ w_hat.T + layer.bias
                error = mx.abs(layer(x) - exact).max().item()
                # The bound covers a few float32 roundings of sums of 512 terms below 1.
                assert error < 1e-4, (bits, group_size, rows, error)
    print(
        f"mlx-nibble {mlx_nibble.__version__} works on CPython "
        f"{platform.python_version()} with mlx {mx.__version__}"
    )


if __name__ == "__main__":
    main()
