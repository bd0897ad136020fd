"""Adds the kernels of what limits one row to a folder: see bench.cuda_products.

A part is the text of a kernel in which one piece is replaced: it only reads, or reads
and multiplies without decoding, or decodes and multiplies without reading w. Beside
them, a kernel that reads as many bytes in the widest loads.
"""

from __future__ import annotations

from tests.simt import plans

# Tiles of one and of 16 rows (csrc/core/tiles.h): the planner's, and for 16 rows of
# 4096 x 4096 one with more warps.
TILES = (
    *("bm8_bn16_wk8_f4", "bm8_bn32_wk4_f4", "bm8_bn32_wk16_f2"),
    *("bm16_bn32_wk16_f2", "bm16_bn64_wk4_f2"),
)
USUAL = "cuda_qmm_skinny_bf16_bf16_b4_g64_"

READ = """
      uint32 all = held[i / 4][0];
      for (int row = 0; row < kRows; ++row) {
        all ^= held[i / 4][row];
        for (uint32 word : codes[i][row].words) {
          all ^= word;
        }
      }
      for (int column = 0; column < kColumns; ++column) {
        for (const uint4& eight : x[i][column]) {
          all ^= eight.x ^ eight.y ^ eight.z ^ eight.w;
        }
      }
      acc[0][0][i % 4] += __uint_as_float(all);
"""
# Each part: the pieces of the text that it replaces, from a beginning to an end.
PARTS: dict[str, list[tuple[str, str, str]]] = {
    "read": [("      Scaling scaling[kRows];", "codes[i], scaling, x[i], t);", READ)],
    "undecoded": [
        (
            "        In::unpack(pairs,",
            ";",
            "for (int i = 0; i < 4; ++i) pairs[i] = words[chunk] ^ i;",
        )
    ],
    "unread": [
        (
            "        const uint2 two = __ldg(",
            ";",
            "const uint2 two = make_uint2(uint32(size_t(p)), uint32(i));",
        ),
        ("      return __ldg(scales + i) | ", ";", "return uint32(i);"),
    ],
}

WIDE = """
extern "C" __global__ void __launch_bounds__(256)
    {name}(const uint4* from, unsigned long fours, unsigned* to) {{
  const unsigned long first = blockIdx.x * 256ul * {loads} + threadIdx.x;
  uint4 read[{loads}];
#pragma unroll
  for (int i = 0; i < {loads}; ++i) {{
    const unsigned long at = first + i * 256ul;
    read[i] = __ldg(from + (at < fours ? at : fours - 1));
  }}
  unsigned all = 0;
#pragma unroll
  for (int i = 0; i < {loads}; ++i) {{
    all ^= read[i].x ^ read[i].y ^ read[i].z ^ read[i].w;
  }}
  if (all == 0x12345678) {{
    *to = all;
  }}
}}
"""
WIDE_LOADS = (2, 4, 8, 16)


def replaced(text: str, begin: str, end: str, by: str) -> str:
    """Return the text with the one piece from `begin` to `end` replaced.

    Raises:
        ValueError: The text has no such piece, or several.
    """
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended or begin in after:
        raise ValueError(f"[cuda_parts] one {begin!r} was required but got another.")
    return before + by + after


def texts() -> dict[str, tuple[str, str]]:
    """Return the text and the kernel of each part, by the part's name."""
    found = {}
    for tile in TILES:
        kernel = next(
            k for k in plans.instances(cuda=True) if k.startswith(USUAL + tile)
        )
        for part, pieces in PARTS.items():
            text = plans.kernel_source(kernel)
            for piece in pieces:
                text = replaced(text, *piece)
            found[f"{part}.{kernel}"] = text, kernel
    return found


def wide_texts() -> dict[str, tuple[str, str]]:
    """Return the kernels of wide loads, as texts()."""
    names = {f"read_{loads}_wide": loads for loads in WIDE_LOADS}
    return {
        name: (WIDE.format(name=name, loads=loads), name)
        for name, loads in names.items()
    }
