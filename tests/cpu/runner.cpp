// Reads requests from standard input, writes results to standard output: a
// Request, then the arrays it announces; back come the bytes of the result.
// Prints the names of the instruction sets first, on a line.
#include <cstdint>
#include <cstdio>
#include <exception>
#include <vector>

#include "csrc/cpu/isa.h"
#include "csrc/cpu/matmul.h"
#include "csrc/cpu/thread_pool.h"

namespace {

enum Operation : int32_t { kMatmul, kInt8Matmul, kDequantize };

// As tests/cpu/runner.py packs it. For kDequantize, M is 1 and N the rows.
struct Request {
  int32_t operation;
  int32_t M, N, K;
  int32_t batch_size, batch_count, batch_repeat;
  int32_t dtype, scale_dtype;
  int32_t bits, group_size, symmetric, transpose;
  int32_t bytes[5];  // of w, scales, biases, x, y
};

bool read(void* to, size_t size) {
  return size == 0 || std::fread(to, size, 1, stdin) == 1;
}

void answer(const Request& r, std::vector<uint8_t> (&array)[5]) {
  using namespace nibble;
  auto* w = reinterpret_cast<const uint32_t*>(array[0].data());
  auto dtype = static_cast<Dtype>(r.dtype);
  auto scale_dtype = static_cast<Dtype>(r.scale_dtype);
  QuantFormat format{r.bits, r.group_size, r.symmetric != 0};
  if (r.operation == kDequantize) {
    DequantizeProblem problem{r.N, r.K, dtype, scale_dtype, format};
    cpu::dequantize(
        problem, w, array[1].data(), array[2].data(), array[4].data());
    return;
  }
  MatmulProblem problem{r.M,
                        r.N,
                        r.K,
                        {r.batch_size, r.batch_count, r.batch_repeat},
                        dtype,
                        scale_dtype,
                        format,
                        r.transpose != 0};
  cpu::matmul(
      problem,
      {w, array[1].data(), array[2].data(), array[3].data(), array[4].data()},
      r.operation == kInt8Matmul ? cpu::Activations::kInt8
                                 : cpu::Activations::kExact);
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
    std::vector<uint8_t> arrays[5];
    for (int i = 0; i < 5; ++i) {
      arrays[i].resize(request.bytes[i]);
      if (i < 4 && !read(arrays[i].data(), arrays[i].size())) {
        return 1;
      }
    }
    answer(request, arrays);
    std::fwrite(arrays[4].data(), arrays[4].size(), 1, stdout);
    std::fflush(stdout);
  }
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 2;
}
