"""The parts that the layouts of packed checkpoints share.

A layout finds the matrices of a checkpoint and reads them. It is made from, and checks,
the `quantization_config`. The shapes of tensors must say the same as the configuration:
nothing is guessed where they differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
import numpy as np

from mlx_nibble.conversion.packed_settings import Scheme
from mlx_nibble.io.packed import Unpacked
from mlx_nibble.io.packed_floats import Floats, Table, Values


@dataclass(frozen=True)
class Parts:
    """The tensors of one packed matrix.

    Attributes:
        tensors: All tensors of the checkpoint.
        path: Path of the matrix.
    """

    tensors: Mapping[str, mx.array]
    path: str

    def has(self, name: str) -> bool:
        """Tell whether the checkpoint has a tensor of the matrix."""
        return f"{self.path}.{name}" in self.tensors

    def integers(self, name: str, *ranks: int) -> np.ndarray:
        """Return a tensor of integers; `ranks` default to 2, a matrix."""
        return np.array(self._need(name, ranks or (2,), mx.integer, "integers"))

    def values(self, name: str, *ranks: int) -> np.ndarray:
        """Return a tensor of floating-point numbers, as float32."""
        part = self._need(name, ranks or (2,), mx.floating, "floating-point numbers")
        return np.array(part.astype(mx.float32))

    def number(self, name: str) -> float:
        """Return a tensor of one floating-point number."""
        found = self.values(name, 0, 1)
        if found.size != 1:
            raise ValueError(f"must have one {name} but has {found.size}")
        return float(found.reshape(()))

    def _need(
        self, name: str, ranks: tuple[int, ...], kind: mx.DtypeCategory, what: str
    ) -> mx.array:
        part = self.tensors.get(f"{self.path}.{name}")
        if part is None:
            raise ValueError(f"must have a tensor {name} but it is missing")
        if part.ndim not in ranks or not mx.issubdtype(part.dtype, kind):
            raise ValueError(
                f"must have a {name} of {ranks[-1]} dimensions and {what} but it is "
                f"{part.dtype} of {part.shape}"
            )
        return part


class Layout(Protocol):
    """How a checkpoint stores its matrices."""

    def paths(self, tensors: Mapping[str, mx.array]) -> list[str]:
        """Return the paths of all packed matrices."""
        ...

    def parts(self, path: str) -> tuple[str, ...]:
        """Return the names of all tensors that a matrix may have."""
        ...

    def scales(self, path: str) -> str | None:
        """Return the name of the tensor of scales; None if the form is not affine."""
        ...

    def read(self, parts: Parts) -> Unpacked | Floats | Table | Values:
        """Return a matrix.

        Raises:
            ValueError: If it is malformed. The message lacks the name of the matrix.
        """
        ...


def require_shape(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raise unless a tensor has the shape that the configuration gives it."""
    if array.shape != shape:
        raise ValueError(
            f"must have {name} of shape {shape} by its configuration but it has "
            f"{array.shape}"
        )


def group_map(
    parts: Parts, name: str, inputs: int, scheme: Scheme, groups: int
) -> np.ndarray:
    """Return the group of each input, from a tensor or from the group size.

    A tensor whose values are all -1 stands for groups in order.
    """
    if parts.has(name):
        index = parts.integers(name, 1)
        require_shape(name, index, (inputs,))
        if not (index == -1).all():
            if not ((0 <= index) & (index < groups)).all():
                raise ValueError(
                    f"must have {name} from 0 to {groups - 1} but has "
                    f"{index.min()} to {index.max()}"
                )
            return index.astype(np.int64)
    if groups != scheme.groups(inputs):
        raise ValueError(
            f"must have {scheme.groups(inputs)} groups by its configuration but has "
            f"{groups}"
        )
    size = inputs if scheme.group_size == -1 else scheme.group_size
    return np.arange(inputs) // size


class QWeight:
    """The part that layouts share whose codes are named qweight."""

    def paths(self, tensors: Mapping[str, mx.array]) -> list[str]:
        """Return the paths of all packed matrices."""
        end = ".qweight"
        return [name.removesuffix(end) for name in tensors if name.endswith(end)]

    def parts(self, path: str) -> tuple[str, ...]:
        """Return the names of all tensors that a matrix may have."""
        return ("qweight", "qzeros", "scales", "g_idx")

    def scales(self, path: str) -> str:
        """Return the name of the tensor of scales."""
        return "scales"
