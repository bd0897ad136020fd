#include "csrc/cpu/packed.h"

#include <algorithm>
#include <new>

#include "csrc/core/cpu_planner.h"
#include "csrc/core/problem.h"
#include "csrc/cpu/isa.h"
#include "csrc/cpu/rows.h"
#include "csrc/cpu/thread_pool.h"

namespace nibble::cpu {
namespace {

// A vector of the widest instruction set.
constexpr std::align_val_t kAlignment{64};

int whole_strips(int N, int strip_rows) {
  return (N + strip_rows - 1) / strip_rows * strip_rows;
}

}  // namespace

void Packed::Free::operator()(uint8_t* p) const {
  ::operator delete[](p, kAlignment);
}

size_t Packed::bytes(const PackedForm& form) {
  const Kernels& kernels = isa().kernels;
  return size_t(whole_strips(form.N, kernels.strip_rows)) *
         kernels.packed_row_bytes(form.format, form.scale_dtype, form.K);
}

Packed::Packed(const PackedForm& form,
               int count,
               const QuantizedOperands& operands)
    : form_(form),
      count_(count),
      strip_rows_(isa().kernels.strip_rows),
      matrix_bytes_(bytes(form)),
      data_(static_cast<uint8_t*>(
          ::operator new[](count* matrix_bytes_, kAlignment))) {
  MatmulProblem problem;
  problem.N = form.N;
  problem.K = form.K;
  problem.format = form.format;
  problem.scale_dtype = form.scale_dtype;
  Form matrices(problem, CpuKernelPlan{});
  size_t row_bytes = matrix_bytes_ / whole_strips(form.N, strip_rows_);
  int chunks = (form.N + kMinRows - 1) / kMinRows;
  parallel_for(count * chunks, [&](int i) {
    int begin = i % chunks * kMinRows;
    isa().kernels.pack(
        matrices.matrix(operands, i / chunks),
        {begin, std::min(form.N, begin + kMinRows)},
        data_.get() + i / chunks * matrix_bytes_ + begin * row_bytes);
  });
}

const uint8_t* Packed::matrix(const PackedForm& form, int index) const {
  bool fits = form == form_ && index < count_ &&
              strip_rows_ == isa().kernels.strip_rows;
  return fits ? data_.get() + index * matrix_bytes_ : nullptr;
}

}  // namespace nibble::cpu
