"""Published measurements of MLX's kernels, beside what the model of time predicts.

Each was made by the author of the thread that it names. None is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from bench import time_model
from bench.time_model import CHIPS, Chip, Work
from tests import simt

_CHIP = {chip.name: chip for chip in CHIPS}
# For the one published measurement of several rows before M3.
_CHIP["M2 Ultra"] = Chip("M2 Ultra", 14, "d", 76, 1.398e9, 800e9)
_MLX = "https://github.com/ml-explore/mlx/"


@dataclass(frozen=True)
class Published:
    """One measurement, and the prediction for it.

    Attributes:
        what: Kernel or model, and shape.
        chip: Name of the chip.
        measured: Milliseconds, or tokens per second of a whole model.
        predicted: The same, predicted.
        unit: "ms" or "tokens/s".
        link: Where it was published.
        fitted: True if a constant of the model was fitted to it.
        whole: True if it has more in it than matrix products.
    """

    what: str
    chip: str
    measured: float
    predicted: float
    unit: str
    link: str
    fitted: bool = False
    whole: bool = False

    @property
    def error(self) -> float:
        """Predicted time over measured time, less 1."""
        ratio = self.predicted / self.measured
        return (ratio if self.unit == "ms" else 1 / ratio) - 1


def _milliseconds(launches: list[Work], chip: str) -> float:
    return 1e3 * time_model.seconds(launches, _CHIP[chip])


def _tiles(M: int, N: int, K: int, parts: int = 1) -> list[Work]:
    """Return qmm_t, whatever the dispatch of a version was."""
    data = -(-M // 32) * time_model.matrix_bytes(N, K, 4)
    groups = -(-N // 32) * -(-M // 32) * parts
    return [Work("mlx affine_qmm_t_b4", groups, K // parts, data)]


def _kernels() -> list[Published]:
    rows = []
    # One matrix of 17408 x 5120, cold.
    max_ms = {1: 0.129, 2: 0.129, 4: 0.165, 6: 0.263, 8: 0.323, 9: 0.405}
    pro_ms = {1: 0.198, 2: 0.196, 3: 0.224, 4: 0.283, 5: 0.347, 8: 0.562}
    for chip, found, link in (
        ("M3 Max", max_ms, "pull/3863"),
        ("M4 Pro", pro_ms, "issues/3852"),
    ):
        for M, measured in found.items():
            p = simt.Problem(M=M, N=17408, K=5120)
            # With groups of 128 a matrix is smaller.
            works = time_model.mlx(p, _CHIP[chip])
            if chip == "M4 Pro":
                less = time_model.matrix_bytes(p.N, p.K, 4) * 17 / 18
                works = [replace(w, bytes=less) for w in works]
            what = f"{works[0].kernel.split()[1][:-3]}, {M} × 17408 × 5120"
            rows.append(
                Published(
                    what,
                    chip,
                    measured,
                    _milliseconds(works, chip),
                    "ms",
                    _MLX + link,
                    chip == "M3 Max" and M > 1,
                )
            )
    for chip, M, N, K, measured, link in (
        ("M3 Max", 16, 17408, 5120, 0.509, "pull/3863"),
        ("M3 Max", 33, 17408, 5120, 1.002, "pull/3863"),
        ("M3 Max", 16, 16384, 16384, 1.960, "pull/3791"),
        ("M3 Max", 16, 28672, 16384, 3.160, "pull/3791"),
        ("M4 Pro", 32, 17408, 5120, 0.891, "issues/3852"),
        ("M1 Max", 512, 19968, 6656, 17.2, "pull/4216"),
    ):
        what = f"affine_qmm_t, {M} × {N} × {K}"
        predicted = _milliseconds(_tiles(M, N, K), chip)
        rows.append(Published(what, chip, measured, predicted, "ms", _MLX + link))
    return rows


@dataclass(frozen=True)
class Model:
    """The matrices [N, K] of a decoder layer, its layers, and its last matrix."""

    name: str
    layers: int
    matrices: tuple[tuple[int, int], ...]
    head: tuple[int, int]


LLAMA_8B = Model(
    "Llama 3.1 8B",
    32,
    (
        (4096, 4096),
        (1024, 4096),
        (1024, 4096),
        (4096, 4096),
        (14336, 4096),
        (14336, 4096),
        (4096, 14336),
    ),
    (128256, 4096),
)
MISTRAL_7B = Model("Mistral 7B", 32, LLAMA_8B.matrices, (32768, 4096))
LLAMA_70B = Model(
    "Llama 3.3 70B",
    80,
    (
        (8192, 8192),
        (1024, 8192),
        (1024, 8192),
        (8192, 8192),
        (28672, 8192),
        (28672, 8192),
        (8192, 28672),
    ),
    (128256, 8192),
)
QWEN_4B = Model(
    "Qwen3 4B",
    36,
    (
        (4096, 2560),
        (1024, 2560),
        (1024, 2560),
        (2560, 4096),
        (9728, 2560),
        (9728, 2560),
        (2560, 9728),
    ),
    (151936, 2560),
)

Choice = Callable[[simt.Problem, Chip], list[Work]]


def model_seconds(
    model: Model, chip: Chip, M: int, bits: int = 4, choice: Choice = time_model.mlx
) -> float:
    """Return the time of the matrix products of M tokens; the head sees one row."""

    def product(rows: int, N: int, K: int) -> float:
        p = simt.Problem(M=rows, N=N, K=K, bits=bits)
        return time_model.seconds(choice(p, chip), chip)

    layer = sum(product(M, N, K) for N, K in model.matrices)
    return model.layers * layer + product(1, *model.head)


def _models() -> list[Published]:
    rows = []
    lm, examples = (
        "https://github.com/ml-explore/mlx-lm/",
        "https://github.com/ml-explore/mlx-examples/",
    )
    for model, chip, bits, prompt, measured, link in (
        (
            LLAMA_8B,
            "M2 Pro",
            4,
            1,
            36.2,
            "https://github.com/AlexsJones/llmfit/pull/1031",
        ),
        (QWEN_4B, "M3 Pro", 4, 1, 44.6, lm + "pull/1569"),
        (LLAMA_70B, "M3 Max", 4, 1, 9.37, examples + "issues/1029"),
        (QWEN_4B, "M4 Max", 4, 1, 138.2, _MLX + "pull/2946"),
        (QWEN_4B, "M4 Max", 8, 1, 87.5, _MLX + "pull/2946"),
        (QWEN_4B, "M3 Pro", 4, 2048, 615.0, lm + "pull/1569"),
        (LLAMA_70B, "M3 Max", 4, 1171, 83.8, examples + "issues/1029"),
        (QWEN_4B, "M4 Max", 4, 2048, 1620.0, _MLX + "pull/2946"),
        (QWEN_4B, "M4 Max", 8, 2048, 1607.0, _MLX + "pull/2946"),
    ):
        what = f"{model.name}, {bits} bits, " + (
            "decode" if prompt == 1 else f"prompt of {prompt}"
        )
        predicted = prompt / model_seconds(model, _CHIP[chip], prompt, bits)
        rows.append(
            Published(what, chip, measured, predicted, "tokens/s", link, whole=True)
        )
    # A batch of short sequences: one row each through every matrix, head included.
    for M, kernel, measured in ((6, "qmv", 19.4), (8, "qmv", 25.4), (10, "qmm", 31.3)):
        choice = _rows_one_by_one if kernel == "qmv" else _in_tiles
        chip = _CHIP["M2 Ultra"]
        predicted = 1e3 * model_seconds(MISTRAL_7B, chip, M, choice=choice)
        what = f"{MISTRAL_7B.name}, bfloat16, batch of {M}, affine_{kernel}"
        link = _MLX + "pull/2031"
        rows.append(
            Published(what, chip.name, measured, predicted, "ms", link, whole=True)
        )
    return rows


def _rows_one_by_one(p: simt.Problem, chip: Chip) -> list[Work]:
    one = time_model.mlx(replace(p, M=1), chip)
    return [replace(work, groups=p.M * work.groups) for work in one]


def _in_tiles(p: simt.Problem, chip: Chip) -> list[Work]:
    return _tiles(p.M, p.N, p.K)


def every() -> list[Published]:
    """Return every measurement, kernels first."""
    return _kernels() + _models()


def table() -> str:
    """Return each measurement beside its prediction."""
    lines = [
        "| chip | MLX's kernel or model | measured | predicted | predicted time |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for row in every():
        digits = 3 if row.unit == "ms" and row.measured < 1 else 1
        note = " (fitted)" if row.fitted else ""
        lines.append(
            f"| {row.chip} | {row.what} | [{row.measured:.{digits}f} {row.unit}]"
            f"({row.link}) | {row.predicted:.{digits}f} | {row.error:+.0%}{note} |"
        )
    return "\n".join(lines)
