"""The settings that a user chooses for a model."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_nibble._arguments import activation_bits


@dataclass(frozen=True)
class Settings:
    """How an accelerated model computes.

    The fields are keyword arguments of :func:`mlx_nibble.accelerate`,
    :func:`mlx_nibble.lm.load` and :func:`mlx_nibble.lm.sharded_load`:
    ``accelerate(model, **vars(settings))``.

    Attributes:
        activations: ``"int16"`` rounds activations of products to 16-bit integers
            where that is faster, ``"int8"`` to 8 bits, at a small loss; see
            :func:`mlx_nibble.ops.quantized_matmul`. None multiplies float32 exactly.
        batch_invariant: Each row's result does not depend on the number of rows.
            Greedy speculative decoding then gives exactly the tokens of plain decoding.
        repack: On a CPU, put the weights in the order that the processor reads
            fastest. Few rows are then up to twice as fast, and results have the same
            bits. The layers get lazy arrays: whoever evaluates them, as by saving, gets
            the checkpoint's weights back, and with them its speed. False leaves all
            arrays as they are.
        tuned: Follow the choices that ``nibble tune`` has measured on this machine, if
            there are any (docs/guide/tune.md).
        duel: On a GPU, use a kernel only where it was timed on this machine and is
            faster than MLX's operation. What is not timed yet is timed now, in up to 5
            seconds, and kept (docs/guide/tune.md). Otherwise a kernel that is right is
            used.

    Raises:
        ValueError: If ``activations`` is neither None, ``"int16"`` nor ``"int8"``.
    """

    activations: str | None = None
    batch_invariant: bool = False
    repack: bool = True
    tuned: bool = True
    duel: bool = True

    def __post_init__(self) -> None:
        """Check the values."""
        activation_bits("accelerate", self.activations)


DEFAULTS = Settings()
