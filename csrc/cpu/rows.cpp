#include "csrc/cpu/rows.h"

#include "csrc/cpu/packed.h"

namespace nibble::cpu {
namespace {

// Rows of x of a piece of their preparation: all, unless a hand-over pays.
int rows_apiece(int M, int in) {
  return int64_t(M) * in < kParallelProducts ? M : (M + 7) / 8;
}

// Most rows of 8 bits for which the packed layout is faster than panels, which
// are made once for all rows and hold scales and biases as floats already: 32
// rows of 4096 x 4096 take 0.95 ms against 1.05, 128 take 3.4 against 3.2.
constexpr int kPackedInt8Rows = 32;

// x @ w_hat broadcasts single activations: their order is their own.
int bits_of_order(const Form& form) {
  return form.transpose ? form.format.bits : 8;
}

}  // namespace

float* thread_scratch() {
  thread_local Floats scratch = make_floats(kScratchFloats);
  return scratch.get();
}

Form::Form(const MatmulProblem& p, Activations activations)
    : N(p.N),
      K(p.K),
      dtype(p.dtype),
      scale_dtype(p.scale_dtype),
      format(p.format),
      transpose(p.transpose) {
  CpuPlan plan = plan_cpu(p, profile(), activations == Activations::kInt8);
  int8 = plan.int8;
  few_rows = plan.few_rows;
  columns = plan.columns;
  depth = plan.depth;
}

Form::Form(const GatherProblem& p, Activations activations)
    : N(p.N),
      K(p.K),
      dtype(p.dtype),
      scale_dtype(p.scale_dtype),
      format(p.format),
      transpose(p.transpose),
      int8(activations == Activations::kInt8 && p.transpose),
      few_rows(isa().kernels.few_rows) {}

Weights Form::matrix(const QuantizedOperands& o, int index) const {
  size_t rows = size_t(index) * N;
  size_t groups = rows * format.groups_per_row(K);
  return {
      reinterpret_cast<const uint8_t*>(o.w + rows * format.words_per_row(K)),
      at(o.scales, groups, scale_dtype),
      at(o.biases, groups, scale_dtype),
      N,
      K,
      format,
      scale_dtype,
      o.packed ? o.packed->matrix({N, K, format, scale_dtype}, index)
               : nullptr};
}

Weights rows_of(const Weights& w, Range rows) {
  size_t groups = size_t(rows.begin) * w.format.groups_per_row(w.K);
  Weights part = w;
  part.codes += size_t(rows.begin) * w.format.words_per_row(w.K) * 4;
  part.scales += groups * size_of(w.scale_dtype);
  part.biases += groups * size_of(w.scale_dtype);
  if (w.packed) {
    part.packed += rows.begin *
                   isa().kernels.packed_row_bytes(w.format, w.scale_dtype, w.K);
  }
  part.N = rows.end - rows.begin;
  return part;
}

Rows::Rows(const Form& form, int capacity) : form_(form), isa_(isa()) {
  size_t values = size_t(capacity) * form.in();
  if (!form.int8) {
    memory_ = make_floats(values);
    floats_ = memory_.get();
    return;
  }
  size_t groups = size_t(capacity) * form.format.groups_per_row(form.K);
  memory_ = make_floats(2 * groups + values / sizeof(float));
  int8_.scales = memory_.get();
  int8_.sums = int8_.scales + groups;
  int8_.codes = reinterpret_cast<int8_t*>(int8_.sums + groups);
}

void Rows::fill(const void* x, int count) {
  bool as_they_are = !form_.int8 && form_.dtype == Dtype::kFloat32 &&
                     isa_.kernels.natural_order(bits_of_order(form_));
  if (as_they_are) {
    floats_ = static_cast<const float*>(x);
    return;
  }
  int step = rows_apiece(count, form_.in());
  parallel_for((count + step - 1) / step, [&](int i) {
    int first = i * step;
    put(first,
        at(x, size_t(first) * form_.in(), form_.dtype),
        std::min(step, count - first));
  });
}

void Rows::put(int first, const void* x, int count) {
  size_t begin = size_t(first) * form_.in();
  if (!form_.int8) {
    isa_.kernels.arrange(form_.dtype,
                         bits_of_order(form_),
                         x,
                         size_t(count) * form_.in(),
                         memory_.get() + begin);
    return;
  }
  size_t group = size_t(first) * form_.format.groups_per_row(form_.K);
  isa_.int8.quantize(
      form_.dtype,
      form_.format,
      x,
      count,
      form_.K,
      {int8_.codes + begin, int8_.scales + group, int8_.sums + group});
}

void Rows::multiply(const Weights& weights,
                    int first,
                    int count,
                    Range range,
                    Dtype dtype,
                    void* y) const {
  size_t begin = size_t(first) * form_.in();
  Weights w = weights;
  if (form_.int8) {
    if (count > kPackedInt8Rows) {
      w.packed = nullptr;
    }
    size_t group = size_t(first) * form_.format.groups_per_row(form_.K);
    isa_.int8.multiply(
        w,
        {int8_.codes + begin, int8_.scales + group, int8_.sums + group},
        count,
        range,
        dtype,
        y,
        thread_scratch());
    return;
  }
  const float* x = floats_ + begin;
  float* scratch = thread_scratch();
  if (form_.transpose) {
    isa_.kernels.multiply(
        w, x, count, form_.few_rows, range, dtype, y, scratch);
  } else {
    isa_.kernels.multiply_columns(w, x, count, range, dtype, y, scratch);
  }
}

}  // namespace nibble::cpu
