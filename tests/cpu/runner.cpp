// Reads requests from standard input and writes results to standard output.
// A request is a Request and the arrays that it announces; a result is the
// bytes of y. First it prints a line with the names of the instruction sets.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <initializer_list>
#include <optional>
#include <vector>

#include "csrc/core/cpu_planner.h"
#include "csrc/cpu/attention.h"
#include "csrc/cpu/gather.h"
#include "csrc/cpu/gradient.h"
#include "csrc/cpu/isa.h"
#include "csrc/cpu/layers.h"
#include "csrc/cpu/matmul.h"
#include "csrc/cpu/packed.h"
#include "csrc/cpu/profile.h"
#include "csrc/cpu/thread_pool.h"

namespace {

enum Operation : int32_t {
  kMatmul,
  kDequantize,
  kSwiglu,
  kGather,
  kGatherSwiglu,
  kPlan,
  kPlanGather,
  kPlanAttention,
  kRmsNorm,
  kLayerSwiglu,
  kLogSumExp,
  kArgMax,
  kAttention,
  kGroupGradients,
};

enum Array {
  kW,
  kScales,
  kBiases,
  kUpW,
  kUpScales,
  kUpBiases,
  kX,
  kBias,
  kResidual,
  kLhs,
  kRhs,
  kY,
  kArrays,
};

// As tests/cpu/runner.py packs it. For kDequantize, N is the number of rows.
// For gathered products, batch_size is the number of products, batch_count that
// of experts and batch_repeat that of matrices in x. For plans, lhs is a
// CpuProfile and y receives integers; rhs is a CpuWave or an AttentionShape.
// Layers have M rows x of K elements. bias is the weight of a norm, up, or the
// N keys of each of batch_size heads; residual holds the values of the keys.
// Quantized keys and values are w and up.
// For gradients, residual is dy, and lhs is empty unless the product is
// gathered.
struct Request {
  int32_t operation, activations;
  int32_t M, N, K;
  int32_t batch_size, batch_count, batch_repeat;
  int32_t dtype, scale_dtype;
  int32_t bits, group_size, mode, transpose, packed, invariant;
  int32_t bytes[kArrays];
};

bool read(void* to, size_t size) {
  return size == 0 || std::fread(to, size, 1, stdin) == 1;
}

// y = the fields of a plan, in the order of tests/cpu/runner.py.
void answer_plan(const Request& r,
                 const nibble::MatmulProblem& dense,
                 const nibble::GatherProblem& gathered,
                 const int32_t* profile,
                 const int32_t* more,
                 int32_t* y) {
  using namespace nibble;
  CpuProfile cpu{profile[0],
                 profile[1],
                 profile[2],
                 profile[3],
                 profile[4],
                 profile[5],
                 profile[6] != 0,
                 profile[7] != 0};
  auto allowed = static_cast<Activations>(r.activations);
  auto put = [&](std::initializer_list<int> values) {
    y = std::copy(values.begin(), values.end(), y);
  };
  auto put_kernel = [&](const CpuKernelPlan& p) {
    put({static_cast<int>(p.activations)});
    put({p.few_rows, p.whole_rows, p.packed_rows, p.prepared_rows});
  };
  if (r.operation == kPlan) {
    CpuPlan p = plan_cpu(dense, cpu, allowed);
    std::vector<CpuPlan> all = candidates(dense, cpu, allowed);
    bool supported = std::all_of(all.begin(), all.end(), [&](const CpuPlan& c) {
      return supports(c, merge_rows(dense));
    });
    put_kernel(p);
    put({p.block_rows, p.columns, p.depth, supported, all.front() == p});
  } else if (r.operation == kPlanGather) {
    CpuGatherPlan p = plan_cpu(gathered, cpu, allowed);
    CpuWave wave{more[0], more[1], more[2], more[3]};
    put_kernel(p);
    put({p.block_rows, p.wave_rows, p.chunks});
    put({chunk_columns(gathered, p, wave)});
  } else {
    AttentionShape shape{more[0],
                         more[1],
                         more[2],
                         more[3],
                         more[4],
                         more[5],
                         more[6],
                         more[7] != 0};
    CpuAttentionPlan p = plan_cpu(shape, cpu);
    put({p.positions, p.blocks, p.split_keys, p.splits, p.chunks});
    put({p.parallel, p.few_queries});
  }
}

// Keys or values: N rows of K elements, or of codes if there are any.
nibble::cpu::CacheShape as_cache(const Request& r, bool quantized) {
  using namespace nibble;
  int64_t keys = r.N, heads = r.batch_size;
  auto strides = [&](int64_t row, int64_t (&out)[3]) {
    out[0] = heads * keys * row;
    out[1] = keys * row;
    out[2] = row;
  };
  cpu::CacheShape cache{};
  cache.dtype = static_cast<Dtype>(quantized ? r.scale_dtype : r.dtype);
  cache.bits = quantized ? r.bits : 0;
  cache.group_size = r.group_size;
  strides(quantized ? r.K * r.bits / 32 : r.K, cache.strides);
  strides(r.K / r.group_size, cache.scale_strides);
  strides(r.K / r.group_size, cache.bias_strides);
  return cache;
}

void answer_layer(const Request& r,
                  const void* x,
                  const void* second,
                  const void* third,
                  const nibble::cpu::QuantizedOperands& keys_of,
                  const nibble::cpu::QuantizedOperands& values_of,
                  void* y) {
  using namespace nibble;
  auto dtype = static_cast<Dtype>(r.dtype);
  int64_t rows = r.M, width = r.K;
  switch (r.operation) {
    case kRmsNorm: {
      cpu::RowGrid grid{x, {1, 1, r.M}, {rows * width, rows * width, width}};
      return cpu::rms_norm({r.K, 1e-5F, dtype, dtype, dtype}, grid, second, y);
    }
    case kLayerSwiglu:
      return cpu::activate(
          {cpu::Activation::kSilu}, dtype, x, second, rows * width, y);
    case kLogSumExp:
      return cpu::log_sum_exp(dtype, x, rows, width, y);
    case kArgMax:
      return cpu::arg_max(dtype, x, rows, width, static_cast<uint32_t*>(y));
    default: {
      int heads = r.batch_size;
      AttentionShape shape{1, heads, heads, r.M, r.N, r.K, r.K, true};
      cpu::Attention problem{shape};
      problem.dtype = dtype;
      problem.scale = 1 / std::sqrt(static_cast<float>(r.K));
      problem.causal = true;
      problem.mask = cpu::MaskKind::kNone;
      int64_t of_queries[] = {heads * rows * width, rows * width, width};
      std::copy_n(of_queries, 3, problem.q_strides);
      bool quantized = r.bytes[kW] > 0;
      cpu::CacheOperand of_keys{second}, of_values{third};
      problem.keys = problem.values = as_cache(r, quantized);
      if (quantized) {
        of_keys = {keys_of.w, keys_of.scales, keys_of.biases};
        of_values = {values_of.w, values_of.scales, values_of.biases};
      }
      return cpu::attention(problem,
                            plan_cpu(shape, cpu::profile()),
                            {x, of_keys, of_values, nullptr, nullptr, y});
    }
  }
}

void answer(const Request& r, std::vector<uint8_t> (&array)[kArrays]) {
  using namespace nibble;
  auto dtype = static_cast<Dtype>(r.dtype);
  auto scale_dtype = static_cast<Dtype>(r.scale_dtype);
  QuantFormat format{r.bits, r.group_size, static_cast<Mode>(r.mode)};
  auto words = [&](Array a) {
    return reinterpret_cast<const uint32_t*>(array[a].data());
  };
  cpu::QuantizedOperands weights{
      words(kW), array[kScales].data(), array[kBiases].data()};
  cpu::QuantizedOperands up{
      words(kUpW), array[kUpScales].data(), array[kUpBiases].data()};
  // Products get packed weights alone.
  std::optional<cpu::Packed> packed, packed_up;
  std::vector<uint8_t> memory, memory_up;
  auto pack = [&](cpu::QuantizedOperands& o,
                  std::optional<cpu::Packed>& to,
                  std::vector<uint8_t>& in) {
    cpu::PackedForm form{r.N, r.K, format, scale_dtype};
    size_t bytes = cpu::Packed::bytes(form) * r.batch_count;
    if (o.w && bytes > 0) {
      in.resize(bytes);
      to.emplace(form, r.batch_count, o, in.data());
      o = {nullptr, nullptr, nullptr, &*to};
    }
  };
  if (r.packed && r.transpose) {
    pack(weights, packed, memory);
    pack(up, packed_up, memory_up);
  }
  const void* x = array[kX].data();
  void* y = array[kY].data();

  Types types{dtype, scale_dtype, format};
  Product product{types, r.M, r.N, r.K, r.transpose != 0, r.invariant != 0};
  MatmulProblem dense{product, {r.batch_size, r.batch_count, r.batch_repeat}};
  dense.epilogue = {r.bytes[kBias] > 0, r.bytes[kResidual] > 0};
  GatherProblem gathered{product, r.batch_size, r.batch_count, r.batch_repeat};
  cpu::Indices indices{words(kLhs), words(kRhs)};

  DequantizeProblem whole{types, r.N, r.K};
  auto plan = [&](const auto& problem) {
    return plan_cpu(
        problem, cpu::profile(), static_cast<Activations>(r.activations));
  };
  switch (static_cast<Operation>(r.operation)) {
    case kMatmul:
      return cpu::matmul(
          dense,
          plan(dense),
          {weights, x, y, array[kBias].data(), array[kResidual].data()});
    case kDequantize:
      return cpu::dequantize(whole, plan_cpu(whole), weights, y);
    case kSwiglu:
      return cpu::swiglu_matmul(dense, plan(dense), {weights, up, x, y});
    case kGather:
      return cpu::gather_matmul(
          gathered, plan(gathered), {weights, x, y}, indices);
    case kGatherSwiglu:
      return cpu::gather_swiglu(
          gathered, plan(gathered), {weights, up, x, y}, indices);
    case kGroupGradients: {
      cpu::MatrixRows rows = r.bytes[kLhs] > 0
                                 ? cpu::rows_by_matrix(gathered, indices)
                                 : cpu::rows_by_matrix(dense);
      auto* scales = static_cast<float*>(y);
      float* biases = scales + array[kY].size() / sizeof(float) / 2;
      return cpu::group_gradients(
          product,
          rows,
          {weights.w, x, array[kResidual].data(), scales, biases});
    }
    case kPlan:
    case kPlanGather:
    case kPlanAttention:
      return answer_plan(r,
                         dense,
                         gathered,
                         reinterpret_cast<const int32_t*>(indices.lhs),
                         reinterpret_cast<const int32_t*>(indices.rhs),
                         static_cast<int32_t*>(y));
    case kRmsNorm:
    case kLayerSwiglu:
    case kLogSumExp:
    case kArgMax:
    case kAttention:
      return answer_layer(
          r, x, array[kBias].data(), array[kResidual].data(), weights, up, y);
  }
}

}  // namespace

int main() try {
  nibble::cpu::isa();
  nibble::cpu::thread_count();
  for (std::string_view name : nibble::cpu::available_isas()) {
    std::printf("%s ", name.data());
  }
  std::printf("\n");
  std::fflush(stdout);
  Request request;
  while (read(&request, sizeof(request))) {
    std::vector<uint8_t> arrays[kArrays];
    for (int i = 0; i < kArrays; ++i) {
      arrays[i].resize(request.bytes[i]);
      if (i != kY && !read(arrays[i].data(), arrays[i].size())) {
        return 1;
      }
    }
    answer(request, arrays);
    std::fwrite(arrays[kY].data(), arrays[kY].size(), 1, stdout);
    std::fflush(stdout);
  }
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 2;
}
