#include "csrc/cpu/packed.h"

#include <algorithm>
#include <vector>

#include "csrc/core/cpu_planner.h"
#include "csrc/core/problem.h"
#include "csrc/cpu/isa.h"
#include "csrc/cpu/rows.h"
#include "csrc/cpu/thread_pool.h"

namespace nibble::cpu {
namespace {

int whole_strips(int N, int strip_rows) {
  return (N + strip_rows - 1) / strip_rows * strip_rows;
}

// The array of `out` that is wanted.
UnpackedRows only(PackedPart part, uint8_t* out) {
  return {part == PackedPart::kCodes ? out : nullptr,
          part == PackedPart::kScales ? out : nullptr,
          part == PackedPart::kBiases ? out : nullptr};
}

}  // namespace

// Exact products decode E4M3 faster as it lies: one row of 4096 x 4096 takes
// 3.8 ms of a core, and 4.9 packed (AVX2).
size_t Packed::bytes(const PackedForm& form) {
  if (!form.format.multiplies_integers() && !isa().bfloat16) return 0;
  const Kernels& kernels = isa().kernels;
  return size_t(whole_strips(form.N, kernels.strip_rows)) *
         kernels.packed_row_bytes(form.format, form.scale_dtype, form.K);
}

Packed::Packed(const PackedForm& form,
               int count,
               const QuantizedOperands& operands,
               uint8_t* memory)
    : form_(form),
      count_(count),
      kernels_(&isa().kernels),
      matrix_bytes_(bytes(form)),
      memory_(memory) {
  MatmulProblem problem;
  problem.N = form.N;
  problem.K = form.K;
  problem.format = form.format;
  problem.scale_dtype = form.scale_dtype;
  Form matrices(problem, CpuKernelPlan{});
  size_t row_bytes = matrix_bytes_ / whole_strips(form.N, kernels_->strip_rows);
  int chunks = (form.N + kMinRows - 1) / kMinRows;
  parallel_for(count * chunks, [&](int i) {
    int begin = i % chunks * kMinRows;
    kernels_->pack(matrices.matrix(operands, i / chunks),
                   {begin, std::min(form.N, begin + kMinRows)},
                   memory + i / chunks * matrix_bytes_ + begin * row_bytes);
  });
}

bool Packed::is_readable() const {
  return kernels_ == &isa().kernels;
}

size_t Packed::row_bytes(PackedPart part) const {
  return part == PackedPart::kCodes
             ? size_t{4} * form_.format.words_per_row(form_.K)
             : size_t(form_.format.groups_per_row(form_.K)) *
                   size_of(form_.scale_dtype);
}

Weights Packed::weights(int index) const {
  Weights w = as_weights({nullptr, nullptr, nullptr},
                         form_.N,
                         form_.K,
                         form_.format,
                         form_.scale_dtype);
  w.packed = matrix(index);
  return w;
}

void Packed::unpack(PackedPart part, uint8_t* out) const {
  int chunks = (form_.N + kMinRows - 1) / kMinRows;
  parallel_for(count_ * chunks, [&](int i) {
    int begin = i % chunks * kMinRows;
    size_t row = size_t(i / chunks) * form_.N + begin;
    kernels_->unpack(weights(i / chunks),
                     {begin, std::min(form_.N, begin + kMinRows)},
                     {0, form_.K},
                     only(part, out + row * row_bytes(part)));
  });
}

void Packed::unpack_rows(PackedPart part,
                         const int32_t* rows,
                         size_t count,
                         uint8_t* out) const {
  size_t size = row_bytes(part);
  int strip = kernels_->strip_rows;
  auto chunks = static_cast<int>((count + kMinRows - 1) / kMinRows);
  parallel_for(chunks, [&](int chunk) {
    std::vector<uint8_t> memory(strip * size);
    size_t end = std::min(count, size_t{kMinRows} * (chunk + 1));
    for (size_t i = size_t{kMinRows} * chunk; i < end; ++i) {
      int row = std::clamp(rows[i], 0, form_.N - 1);
      int begin = row / strip * strip;
      kernels_->unpack(weights(0),
                       {begin, std::min(form_.N, begin + strip)},
                       {0, form_.K},
                       only(part, memory.data()));
      std::copy_n(memory.data() + (row - begin) * size, size, out + i * size);
    }
  });
}

}  // namespace nibble::cpu
