#include "csrc/cpu/rows.h"

#include "csrc/core/cpu_planner.h"
#include "csrc/cpu/packed.h"

namespace nibble::cpu {
namespace {

// The planner's units are those of the kernels.
static_assert(kBlockRows <= kMaxRows);
static_assert(kSlowlyDecodedRows <= kMostPackedRows);
static_assert(kDepth % kBlockK == 0);
static_assert(kMinColumns % kColumnBlockK == 0);

// Steps of integers are below this. A sum of a group is below 2^22
// steps, so it is finite.
constexpr float kMostStep = 0x1p100f;

// x @ w_hat broadcasts single activations, which stay in natural order.
int bits_of_order(const Form& form) {
  return form.transpose ? form.format.bits : 8;
}

// A tile of rows may go beyond the last.
constexpr size_t kTileBytes = 1024;

// Memory that a thread gives to the kernels: kScratchFloats.
float* thread_scratch() {
  thread_local Floats scratch = make_floats(kScratchFloats);
  return scratch.get();
}

// The same matrix from row `row` on, without its packed copy.
Weights from_row(const Weights& w, size_t row) {
  size_t groups = row * w.format.groups_per_row(w.K) * size_of(w.scale_dtype);
  Weights part = w;
  part.codes =
      w.codes ? w.codes + row * w.format.words_per_row(w.K) * 4 : nullptr;
  part.scales = w.scales ? w.scales + groups : nullptr;
  part.biases = w.biases ? w.biases + groups : nullptr;
  part.packed = nullptr;
  return part;
}

}  // namespace

Weights as_weights(const QuantizedOperands& o,
                   int N,
                   int K,
                   QuantFormat format,
                   Dtype scale_dtype) {
  return {reinterpret_cast<const uint8_t*>(o.w),
          static_cast<const uint8_t*>(o.scales),
          static_cast<const uint8_t*>(o.biases),
          N,
          K,
          format,
          scale_dtype};
}

Weights Form::matrix(const QuantizedOperands& o, int index) const {
  Weights w =
      from_row(as_weights(o, N, K, format, scale_dtype), size_t(index) * N);
  if (o.packed && transpose) w.packed = o.packed->matrix(index);
  return w;
}

Weights rows_of(const Weights& w, Range rows) {
  Weights part = from_row(w, rows.begin);
  if (w.packed) {
    part.packed = w.packed + rows.begin * isa().kernels.packed_row_bytes(
                                              w.format, w.scale_dtype, w.K);
  }
  part.N = rows.end - rows.begin;
  return part;
}

Rows::Rows(const Form& form, int capacity) : form_(form), isa_(isa()) {
  size_t values = size_t(capacity) * form.in();
  if (form.plan.exact()) {
    memory_ = make_floats(values);
    floats_ = memory_.get();
    return;
  }
  switch (form.plan.activations) {
    case Activations::kBfloat16:
      bfloat_kernels_ = isa_.bfloat16;
      break;
    case Activations::kBfloat16ByPair:
      bfloat_kernels_ = isa_.bfloat16_by_pair;
      break;
    case Activations::kBfloat16Pair:
      bfloat_kernels_ = isa_.bfloat16_pair;
      break;
    case Activations::kInt8:
      integer_kernels_ = &isa_.int8;
      break;
    default:
      integer_kernels_ = isa_.int16;
  }
  size_t groups = size_t(capacity) * form.format.groups_per_row(form.K);
  int run = bfloat_kernels_ ? kBfloatRun : kRunCodes;
  int planes = bfloat_kernels_ ? bfloat_kernels_->planes : 1;
  row_bytes_ = form.plan.activations == Activations::kInt8 ? run : 2 * run;
  size_t runs = (form.K + run - 1) / run;
  size_t bytes = runs * planes * capacity * row_bytes_;
  memory_ = make_floats(2 * groups + (bytes + kTileBytes) / sizeof(float));
  integers_.rows = capacity;
  integers_.scales = memory_.get();
  integers_.sums = integers_.scales + groups;
  integers_.codes = integers_.sums + groups;
  exact_.resize(capacity);
  sources_.resize(capacity);
}

QuantizedRows Rows::integers(int first) const {
  return {static_cast<uint8_t*>(integers_.codes) + size_t(first) * row_bytes_,
          integers_.scales + first,
          integers_.sums + first,
          integers_.rows};
}

void Rows::fill(const void* x, int count) {
  bool ready = form_.plan.exact() && form_.dtype == Dtype::kFloat32 &&
               isa_.kernels.natural_order(bits_of_order(form_));
  if (ready) {
    floats_ = static_cast<const float*>(x);
    return;
  }
  int step = form_.plan.prepared_rows;
  parallel_for((count + step - 1) / step, [&](int i) {
    int first = i * step;
    put(first,
        at(x, size_t(first) * form_.in(), form_.dtype),
        std::min(step, count - first));
  });
}

void Rows::put(int first, const void* x, int count) {
  size_t begin = size_t(first) * form_.in();
  if (form_.plan.exact()) {
    isa_.kernels.arrange(form_.dtype,
                         bits_of_order(form_),
                         x,
                         size_t(count) * form_.in(),
                         memory_.get() + begin);
    return;
  }
  auto round =
      bfloat_kernels_ ? bfloat_kernels_->split : integer_kernels_->quantize;
  round(form_.dtype, form_.format, x, count, form_.K, integers(first));
  put_exactly(first, x, count);
}

// Keeps those of the `count` rows at x whose steps are too large, infinite or
// NaN.
void Rows::put_exactly(int first, const void* x, int count) {
  int groups = bfloat_kernels_ ? 1 : form_.format.groups_per_row(form_.K);
  QuantizedRows rows = integers(first);
  for (int r = 0; r < count; ++r) {
    bool fit = true;
    sources_[first + r] = at(x, size_t(r) * form_.in(), form_.dtype);
    for (int g = 0; g < groups; ++g) {
      fit &= rows.scales[rows.group(r, g)] < kMostStep;
    }
    Floats& exact = exact_[first + r];
    exact.reset();
    if (fit) continue;
    exact = make_floats(form_.in());
    isa_.kernels.arrange(form_.dtype,
                         bits_of_order(form_),
                         sources_[first + r],
                         form_.in(),
                         exact.get());
  }
}

void Rows::multiply(const Weights& w,
                    int first,
                    int count,
                    Range range,
                    Dtype dtype,
                    void* y) const {
  size_t begin = size_t(first) * form_.in();
  Reading reading{count <= form_.plan.few_rows,
                  count <= form_.plan.whole_rows,
                  count <= form_.plan.packed_rows};
  if (form_.plan.exact()) {
    return multiply_exactly(
        w, floats_ + begin, count, reading, range, dtype, y);
  }
  if (bfloat_kernels_) {
    multiply_bfloats(w, first, count, range, dtype, y);
  } else {
    integer_kernels_->multiply(
        w, integers(first), count, reading, range, dtype, y, thread_scratch());
  }
  bool as_packed = form_.format.multiplies_integers();
  for (int r = 0; r < count; ++r) {
    if (const float* x = exact_[first + r].get()) {
      void* row = at(y, size_t(r) * w.N, dtype);
      multiply_exactly(w, x, 1, {true, true, as_packed}, range, dtype, row);
    }
  }
}

// Weight rows that bfloat16 cannot express are multiplied exactly: which they
// are depends on the weights alone.
void Rows::multiply_bfloats(const Weights& w,
                            int first,
                            int count,
                            Range range,
                            Dtype dtype,
                            void* y) const {
  Floats exact;
  for (int n = range.begin; n < range.end;) {
    n = bfloat_kernels_->multiply(
        w, integers(first), count, {n, range.end}, dtype, y, thread_scratch());
    if (n == range.end) return;
    if (!exact) {
      exact = make_floats(size_t(count) * form_.in());
      for (int r = 0; r < count; ++r) {
        isa_.kernels.arrange(form_.dtype,
                             bits_of_order(form_),
                             sources_[first + r],
                             form_.in(),
                             exact.get() + size_t(r) * form_.in());
      }
    }
    Range block{n, std::min(n + kBfloatRows, range.end)};
    Reading reading{count <= form_.plan.few_rows, false, false};
    multiply_exactly(w, exact.get(), count, reading, block, dtype, y);
    n = block.end;
  }
}

void Rows::multiply_exactly(const Weights& w,
                            const float* x,
                            int count,
                            Reading reading,
                            Range range,
                            Dtype dtype,
                            void* y) const {
  float* scratch = thread_scratch();
  if (form_.transpose) {
    isa_.kernels.multiply(w, x, count, reading, range, dtype, y, scratch);
  } else {
    isa_.kernels.multiply_columns(w, x, count, range, dtype, y, scratch);
  }
}

}  // namespace nibble::cpu
