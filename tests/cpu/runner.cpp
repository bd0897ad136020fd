// Reads requests from standard input, writes results to standard output: a
// Request, then the arrays it announces; back come the bytes of the result.
// Prints the names of the instruction sets first, on a line.
#include <cstdint>
#include <cstdio>
#include <exception>
#include <optional>
#include <vector>

#include "csrc/cpu/gather.h"
#include "csrc/cpu/isa.h"
#include "csrc/cpu/matmul.h"
#include "csrc/cpu/packed.h"
#include "csrc/cpu/thread_pool.h"

namespace {

enum Operation : int32_t {
  kMatmul,
  kDequantize,
  kSwiglu,
  kGather,
  kGatherSwiglu,
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

// As tests/cpu/runner.py packs it. For kDequantize, N is the number of rows;
// of gathered products there are batch_size of batch_count experts, and x has
// batch_repeat matrices.
struct Request {
  int32_t operation, int8;
  int32_t M, N, K;
  int32_t batch_size, batch_count, batch_repeat;
  int32_t dtype, scale_dtype;
  int32_t bits, group_size, symmetric, transpose, packed;
  int32_t bytes[kArrays];
};

bool read(void* to, size_t size) {
  return size == 0 || std::fread(to, size, 1, stdin) == 1;
}

void answer(const Request& r, std::vector<uint8_t> (&array)[kArrays]) {
  using namespace nibble;
  auto dtype = static_cast<Dtype>(r.dtype);
  auto scale_dtype = static_cast<Dtype>(r.scale_dtype);
  QuantFormat format{r.bits, r.group_size, affine_mode(r.symmetric != 0)};
  auto words = [&](Array a) {
    return reinterpret_cast<const uint32_t*>(array[a].data());
  };
  cpu::QuantizedOperands weights{
      words(kW), array[kScales].data(), array[kBiases].data()};
  cpu::QuantizedOperands up{
      words(kUpW), array[kUpScales].data(), array[kUpBiases].data()};
  std::optional<cpu::Packed> packed, packed_up;
  auto pack = [&](cpu::QuantizedOperands& o, std::optional<cpu::Packed>& to) {
    cpu::PackedForm form{r.N, r.K, format, scale_dtype};
    if (o.w && cpu::Packed::bytes(form) > 0) {
      o.packed = &to.emplace(form, r.batch_count, o);
    }
  };
  if (r.packed) {
    pack(weights, packed);
    pack(up, packed_up);
  }
  const void* x = array[kX].data();
  void* y = array[kY].data();

  Types types{dtype, scale_dtype, format};
  Product product{types, r.M, r.N, r.K, r.transpose != 0};
  MatmulProblem dense{product, {r.batch_size, r.batch_count, r.batch_repeat}};
  dense.epilogue = {r.bytes[kBias] > 0, r.bytes[kResidual] > 0};
  GatherProblem gathered{product, r.batch_size, r.batch_count, r.batch_repeat};
  cpu::Indices indices{words(kLhs), words(kRhs)};

  auto activations =
      r.int8 ? cpu::Activations::kInt8 : cpu::Activations::kExact;
  switch (static_cast<Operation>(r.operation)) {
    case kMatmul:
      return cpu::matmul(
          dense,
          {weights, x, y, array[kBias].data(), array[kResidual].data()},
          activations);
    case kDequantize:
      return cpu::dequantize({types, r.N, r.K}, weights, y);
    case kSwiglu:
      return cpu::swiglu_matmul(dense, {weights, up, x, y}, activations);
    case kGather:
      return cpu::gather_matmul(
          gathered, {weights, x, y}, indices, activations);
    case kGatherSwiglu:
      return cpu::gather_swiglu(
          gathered, {weights, up, x, y}, indices, activations);
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
