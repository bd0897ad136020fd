// The peak arithmetic throughput of a core, written against a SIMD facade.
#pragma once

#include <cstdint>

namespace nibble::cpu {
namespace {

// Independent sums: enough for two units with a latency of four cycles, and few
// enough for sixteen registers with the two factors.
constexpr int kPeakSums = 12;

// Multiplies and adds registers, `times` rounds. Returns the number of
// operations, two for each lane of each instruction. Adds a part of each sum to
// *sink, so that the compiler keeps all of them.
template <class V>
int64_t multiply_registers(int64_t times, float* sink) {
  // Read from memory: otherwise the compiler knows the factors and the result.
  float numbers[2 * V::kLanes];
  for (int i = 0; i < 2 * V::kLanes; ++i) numbers[i] = 0.5f + *sink;
  typename V::F a = V::load(numbers), b = V::load(numbers + V::kLanes);
  typename V::F sums[kPeakSums];
  for (auto& sum : sums) sum = a;
  for (int64_t i = 0; i < times; ++i) {
    for (auto& sum : sums) sum = V::fma(a, sum, b);
  }
  for (auto& sum : sums) {
    V::store(numbers, sum);
    *sink += numbers[0];
  }
  return 2 * times * kPeakSums * V::kLanes;
}

}  // namespace
}  // namespace nibble::cpu
