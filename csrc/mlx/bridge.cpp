#include "csrc/mlx/bridge.h"

#include <algorithm>
#include <cstring>

#include "csrc/cpu/thread_pool.h"
#include "mlx/allocator.h"

namespace nibble::bridge {
namespace {

// out [count] = elements of `size` bytes that are `stride` elements apart.
template <typename Word>
void copy_apart(const std::byte* from, int64_t stride, int count, void* out) {
  const Word* words = reinterpret_cast<const Word*>(from);
  for (int i = 0; i < count; ++i) {
    static_cast<Word*>(out)[i] = words[i * stride];
  }
}

void copy_apart(const std::byte* from,
                int64_t stride,
                int count,
                size_t size,
                std::byte* out) {
  switch (size) {
    case 1:
      return copy_apart<uint8_t>(from, stride, count, out);
    case 2:
      return copy_apart<uint16_t>(from, stride, count, out);
    case 4:
      return copy_apart<uint32_t>(from, stride, count, out);
    default:
      return copy_apart<uint64_t>(from, stride, count, out);
  }
}

// Copies `a`, of any strides, in row-major order: run by run, where a run is
// contiguous, or has one stride.
void copy_strided(const mx::array& a, std::byte* out) {
  if (a.size() == 0) {
    return;
  }
  int64_t size = static_cast<int64_t>(a.itemsize());
  int outer = static_cast<int>(a.ndim());
  int64_t run = 1, stride = 1;  // elements
  for (; outer > 0 && (a.shape(outer - 1) == 1 || a.strides(outer - 1) == run);
       --outer) {
    run *= a.shape(outer - 1);
  }
  bool contiguous = run > 1 || outer == 0;
  if (!contiguous) {
    --outer;
    run = a.shape(outer);
    stride = a.strides(outer);
  }
  int64_t runs = static_cast<int64_t>(a.size()) / run;
  const auto* base = a.data<std::byte>();
  auto copy = [&](int64_t i) {
    int64_t offset = 0, rest = i;
    for (int d = outer - 1; d >= 0; --d) {
      offset += rest % a.shape(d) * a.strides(d);
      rest /= a.shape(d);
    }
    const std::byte* from = base + offset * size;
    std::byte* to = out + i * run * size;
    if (contiguous) {
      std::memcpy(to, from, run * size);
    } else {
      copy_apart(from, stride, static_cast<int>(run), size, to);
    }
  };
  // A chunk has this number of bytes: a copy of fewer takes less time than a
  // hand-over to another thread.
  constexpr int64_t kChunkBytes = 128 * 1024;
  int64_t step = std::max<int64_t>(1, kChunkBytes / (run * size));
  cpu::parallel_for(static_cast<int>((runs + step - 1) / step), [&](int chunk) {
    int64_t end = std::min(runs, (chunk + 1) * step);
    for (int64_t i = chunk * step; i < end; ++i) {
      copy(i);
    }
  });
}

}  // namespace

std::optional<Dtype> to_dtype(mx::Dtype dtype) {
  if (dtype == mx::float32) return Dtype::kFloat32;
  if (dtype == mx::float16) return Dtype::kFloat16;
  if (dtype == mx::bfloat16) return Dtype::kBFloat16;
  return std::nullopt;
}

std::optional<Dtype> scale_dtype(mx::Dtype dtype, const ModeInfo& mode) {
  if (is_byte(mode.scale_dtypes[0])) {
    return dtype == mx::uint8 ? std::optional(mode.scale_dtypes[0])
                              : std::nullopt;
  }
  return to_dtype(dtype);
}

mx::Dtype to_mlx(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32:
      return mx::float32;
    case Dtype::kFloat16:
      return mx::float16;
    case Dtype::kBFloat16:
      return mx::bfloat16;
    case Dtype::kE8m0:
    case Dtype::kE4m3:
      return mx::uint8;
  }
  return mx::float32;
}

mx::Shape batch_shape(const mx::Shape& shape, int inner) {
  int dims = int(shape.size()) - inner;
  return dims > 0 ? mx::Shape(shape.begin(), shape.begin() + dims)
                  : mx::Shape{};
}

std::optional<Batch> match_batch(const mx::Shape& x, const mx::Shape& w) {
  Batch batch;
  for (int d : x) {
    batch.size *= d;
  }
  int lead = int(x.size()) - int(w.size());
  auto weight_dim = [&](int d) { return d < lead ? 1 : w[d - lead]; };
  // From the innermost dimension out: broadcast, then real, then broadcast.
  int d = int(x.size()) - 1;
  for (; d >= 0 && weight_dim(d) == 1; --d) {
    batch.repeat *= x[d];
  }
  for (; d >= 0 && weight_dim(d) == x[d]; --d) {
    batch.count *= x[d];
  }
  for (; d >= 0; --d) {
    if (weight_dim(d) != 1) {
      return std::nullopt;
    }
  }
  return batch;
}

void give_head_memory(mx::array& a) {
  int64_t heads = a.shape(1), L = a.shape(2), D = a.shape(3);
  mx::array::Flags flags{};
  flags.contiguous = true;
  flags.row_contiguous = L == 1 || heads == 1;
  flags.col_contiguous = false;
  a.set_data(mx::allocator::malloc(a.nbytes()),
             a.size(),
             {L * heads * D, D, heads * D, 1},
             flags);
}

mx::array view(const mx::array& memory,
               size_t offset,
               mx::Shape shape,
               mx::Dtype dtype) {
  mx::array a(std::move(shape), dtype, nullptr, {});
  mx::array::Flags flags{};
  flags.contiguous = true;
  flags.row_contiguous = true;
  flags.col_contiguous = a.size() <= 1 || a.shape(-1) == int(a.size());
  a.copy_shared_buffer(memory,
                       a.strides(),
                       flags,
                       a.size(),
                       static_cast<int64_t>(offset / a.itemsize()));
  return a;
}

MatmulProblem matmul_problem(const mx::array& x,
                             const mx::array& w,
                             const mx::array& scales,
                             QuantFormat format,
                             bool transpose) {
  MatmulProblem p;
  p.N = w.shape(-2);
  p.K = scales.shape(-1) * format.group_size;
  p.dtype = *to_dtype(x.dtype());
  p.scale_dtype = *scale_dtype(scales.dtype(), format.info());
  p.format = format;
  p.transpose = transpose;
  if (w.ndim() == 2) {
    p.M = int(x.size() / x.shape(-1));
  } else {
    p.M = x.shape(-2);
    p.batch = *match_batch(batch_shape(x.shape()), batch_shape(w.shape()));
  }
  return p;
}

GatherProblem gather_problem(const mx::array& x,
                             const mx::array& w,
                             const mx::array& scales,
                             const mx::array& lhs,
                             QuantFormat format,
                             bool transpose,
                             bool sorted,
                             bool batch_invariant) {
  GatherProblem p;
  p.B = static_cast<int>(lhs.size());
  p.M = x.shape(-2);
  p.N = w.shape(-2);
  p.K = scales.shape(-1) * format.group_size;
  p.experts = static_cast<int>(w.size() / w.shape(-1) / w.shape(-2));
  p.rows = static_cast<int>(x.size() / x.shape(-1) / x.shape(-2));
  p.dtype = *to_dtype(x.dtype());
  p.scale_dtype = *scale_dtype(scales.dtype(), format.info());
  p.format = format;
  p.sorted = sorted;
  p.transpose = transpose;
  p.batch_invariant = batch_invariant;
  return p;
}

DequantizeProblem dequantize_problem(const mx::array& w,
                                     const mx::array& scales,
                                     QuantFormat format,
                                     mx::Dtype dtype) {
  DequantizeProblem p;
  p.rows = static_cast<int>(w.size() / w.shape(-1));
  p.K = scales.shape(-1) * format.group_size;
  p.dtype = *to_dtype(dtype);
  p.scale_dtype = *scale_dtype(scales.dtype(), format.info());
  p.format = format;
  return p;
}

RowContiguous::RowContiguous(const mx::array& a) {
  if (a.flags().row_contiguous) {
    data_ = a.data<void>();
  } else {
    scattered_ = mx::array::unsafe_weak_copy(a);
  }
}

const void* RowContiguous::data() {
  if (scattered_ && copy_.empty()) {
    copy_.resize(scattered_->nbytes());
    copy_strided(*scattered_, copy_.data());
    data_ = copy_.data();
  }
  return data_;
}

StridedRows::StridedRows(const mx::array& a) {
  int n = static_cast<int>(a.ndim());
  int D = a.shape(-1);
  grid_.shape[0] = n > 2 ? a.shape(0) : 1;
  grid_.shape[2] = n > 1 ? a.shape(-2) : 1;
  int64_t outside = int64_t{grid_.shape[0]} * grid_.shape[2] * D;
  grid_.shape[1] = static_cast<int>(static_cast<int64_t>(a.size()) / outside);
  if (n <= 4 && (D == 1 || a.strides(-1) == 1)) {
    grid_.data = a.data<void>();
    grid_.strides[0] = n > 2 ? a.strides(0) : 0;
    grid_.strides[1] = n > 3 ? a.strides(1) : 0;
    grid_.strides[2] = n > 1 ? a.strides(-2) : 0;
    return;
  }
  copy_.emplace(a);
  grid_.strides[2] = D;
  grid_.strides[1] = int64_t{D} * grid_.shape[2];
  grid_.strides[0] = grid_.strides[1] * grid_.shape[1];
}

const cpu::RowGrid& StridedRows::grid() {
  if (copy_) {
    grid_.data = copy_->data();
  }
  return grid_;
}

}  // namespace nibble::bridge
