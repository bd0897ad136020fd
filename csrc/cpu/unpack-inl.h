// From the packed layout back to MLX's: whole matrices, and blocks of them for
// products of many rows.
#pragma once

#include "csrc/cpu/packed-inl.h"

namespace nibble::cpu {
namespace {

// The stored words of a strip from a group on: `count` of each lane.
// `group_words` lie together at p, and then at p + group_bytes.
template <class V>
struct StoredWords {
  const uint8_t* p;
  int count, group_words;
  size_t group_bytes;

  const uint8_t* vector(int word) const {
    return p + word / group_words * group_bytes +
           size_t{4} * V::kLanes * (word % group_words);
  }
};

// out [rows, count] = the words of the first `rows` lanes, in MLX's layout.
template <class V>
void unpack_words(const StoredWords<V>& words, int rows, uint8_t* out) {
  size_t stride = size_t{4} * words.count;
  for (int d = 0; d < words.count; d += V::kLanes) {
    int count = smaller(words.count - d, V::kLanes);
    const uint8_t* vectors[V::kLanes];
    for (int i = 0; i < count; ++i) vectors[i] = words.vector(d + i);
    uint8_t* to = out + size_t{4} * d;
    if (count == V::kLanes) {
      V::transpose(vectors, rows, reinterpret_cast<int32_t*>(to), words.count);
      continue;
    }
    for (int r = 0; r < rows; ++r) {
      for (int i = 0; i < count; ++i) {
        __builtin_memcpy(to + r * stride + 4 * i, vectors[i] + 4 * r, 4);
      }
    }
  }
}

// The same of words in planes: panel words are transposed, which gives codes in
// bytes. They are joined, unless out [rows, codes] is to have bytes.
template <class V, int kBits, bool kBytes>
void unpack_planes(const StoredWords<V>& words, int rows, uint8_t* out) {
  constexpr int kStored = kUnitStored<kBits>, kWords = kUnitWords<kBits>;
  constexpr int kUnits = V::kLanes / kWords;  // in a transposition
  alignas(64) int32_t panel[V::kLanes * V::kLanes] = {};
  alignas(64) int32_t codes[V::kLanes * V::kLanes];
  const uint8_t* vectors[V::kLanes];
  for (int i = 0; i < V::kLanes; ++i) {
    vectors[i] = reinterpret_cast<const uint8_t*>(panel + i * V::kLanes);
  }
  constexpr int kCodes = kUnitCodes<kBits>;
  constexpr int kUnitBytes = kBytes ? kCodes : 4 * kStored;
  size_t stride = size_t{kUnitBytes} * (words.count / kStored);
  for (int d = 0; d < words.count; d += kUnits * kStored) {
    int units = smaller((words.count - d) / kStored, kUnits);
    for (int i = 0; i < units; ++i) {
      const uint8_t* unit = words.vector(d + i * kStored);
      each_int<kWords>([&](auto at) {
        constexpr int kAt = decltype(at)::value;
        V::int_store(panel + (i * kWords + kAt) * V::kLanes,
                     packed_word<V, kBits, kAt>(unit));
      });
    }
    V::transpose(vectors, rows, codes, V::kLanes);
    for (int r = 0; r < rows; ++r) {
      auto from = reinterpret_cast<const uint8_t*>(codes + r * V::kLanes);
      uint8_t* to = out + r * stride + size_t{kUnitBytes} * (d / kStored);
      if constexpr (kBytes) {
        for (int i = 0; i < units; ++i) {
          __builtin_memcpy(to + i * kCodes, from + i * kCodes, kCodes);
        }
      } else {
        for (int i = 0; i < units * kCodes; i += 8, to += kBits) {
          join8<kBits>(from + i, to);
        }
      }
    }
  }
}

// out [rows, groups] = one parameter of each group. Those of a group lie
// together at p, and then at p + group_bytes.
template <int kSize>
void unpack_params(
    const uint8_t* p, int groups, size_t group_bytes, int rows, uint8_t* out) {
  for (int g = 0; g < groups; ++g, p += group_bytes) {
    for (int r = 0; r < rows; ++r) {
      __builtin_memcpy(
          out + (size_t{1} * r * groups + g) * kSize, p + r * kSize, kSize);
    }
  }
}

// Kernels::unpack.
template <class V>
void unpack(const Weights& w,
            Range rows,
            Range columns,
            const UnpackedRows& out) {
  int group_size = w.format.group_size, size = size_of(w.scale_dtype);
  int group_words = group_size * w.format.bits / 32;
  int groups = (columns.end - columns.begin) / group_size;
  size_t group_bytes =
      V::kLanes * size_t(packed_group_bytes(w.format, w.scale_dtype));
  size_t of_params = size_t{1} * groups * size;
  size_t of_codes = size_t{4} * groups * group_words;
  for (int n = rows.begin; n < rows.end; n += V::kLanes) {
    size_t row = n - rows.begin;
    int count = smaller(rows.end - n, V::kLanes);
    const uint8_t* p = packed_strip<V>(w, n, columns.begin);
    if (out.codes) {
      with_bits(w.format.bits, [&](auto bits) {
        constexpr int kBits = decltype(bits)::value;
        StoredWords<V> words{p, groups * group_words, group_words, group_bytes};
        if constexpr (stores_panel_words(kBits)) {
          unpack_words<V>(words, count, out.codes + row * of_codes);
        } else {
          unpack_planes<V, kBits, false>(
              words, count, out.codes + row * of_codes);
        }
      });
    }
    p += size_t{4} * V::kLanes * group_words;
    for (uint8_t* to : {out.scales, out.biases}) {
      if (to && size == 1) {
        unpack_params<1>(p, groups, group_bytes, count, to + row * of_params);
      } else if (to && size == 2) {
        unpack_params<2>(p, groups, group_bytes, count, to + row * of_params);
      } else if (to) {
        unpack_params<4>(p, groups, group_bytes, count, to + row * of_params);
      }
      p += size * V::kLanes;
    }
  }
}

// out = a block of weights in planes as codes of 8 bits, which the products of
// many rows decode fastest, and parameters as fp32.
template <class V, int kBits>
void unpack_bytes(const Weights& w,
                  Range rows,
                  Range columns,
                  uint8_t* codes,
                  float* scales,
                  float* biases) {
  int group_size = w.format.group_size;
  int group_words = group_size * kBits / 32;
  int width = columns.end - columns.begin, groups = width / group_size;
  size_t group_bytes =
      V::kLanes * size_t(packed_group_bytes(w.format, w.scale_dtype));
  for (int n = rows.begin; n < rows.end; n += V::kLanes) {
    int count = smaller(rows.end - n, V::kLanes);
    const uint8_t* p = packed_strip<V>(w, n, columns.begin);
    unpack_planes<V, kBits, true>(
        {p, groups * group_words, group_words, group_bytes}, count, codes);
    codes += size_t{1} * V::kLanes * width;
    p += size_t{4} * V::kLanes * group_words;
    for (int g = 0; g < groups; ++g, p += group_bytes) {
      PackedParams<V, IntegerCodes<kBits>> params(p, w.format, w.scale_dtype);
      alignas(64) float scale[V::kLanes], bias[V::kLanes];
      V::store(scale, params.scale);
      V::store(bias, params.bias);
      for (int r = 0; r < count; ++r) {
        scales[r * groups + g] = scale[r];
        biases[r * groups + g] = bias[r];
      }
    }
    scales += V::kLanes * groups;
    biases += V::kLanes * groups;
  }
}

// A block of packed weights as a matrix of its own in MLX's layout, in
// kUnpackedFloats of memory.
template <class V>
Weights unpacked_block(const Weights& w,
                       Range rows,
                       Range columns,
                       float* memory) {
  auto* codes = reinterpret_cast<uint8_t*>(memory);
  float* scales = memory + kBlockN * kBlockK / 4;
  float* biases = scales + kBlockN * (kBlockK / kSmallestGroup);
  Weights block = w;
  block.codes = codes;
  block.scales = reinterpret_cast<uint8_t*>(scales);
  block.biases = reinterpret_cast<uint8_t*>(biases);
  block.N = rows.end - rows.begin;
  block.K = columns.end - columns.begin;
  block.packed = nullptr;
  block.columns = {0, block.K};
  with_bits(w.format.bits, [&](auto bits) {
    constexpr int kBits = decltype(bits)::value;
    if constexpr (stores_panel_words(kBits)) {
      unpack<V>(w,
                rows,
                columns,
                {codes,
                 reinterpret_cast<uint8_t*>(scales),
                 w.format.has_biases() ? reinterpret_cast<uint8_t*>(biases)
                                       : nullptr});
    } else {
      unpack_bytes<V, kBits>(w, rows, columns, codes, scales, biases);
      block.format = {8, w.format.group_size, Mode::kAffine};
      block.scale_dtype = Dtype::kFloat32;
    }
  });
  return block;
}

}  // namespace
}  // namespace nibble::cpu
