// What the cores can do at most: bench/peak.py compiles and calls it.
#include <algorithm>
#include <chrono>
#include <thread>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
typedef float Vector __attribute__((vector_size(kBytes)));

// Independent sums: more than latency x throughput of any core we know.
constexpr int kChains = 12;
constexpr long kSteps = 2'000'000;

void multiply_and_add(float seed, float* out) {
  Vector sums[kChains], factor = Vector{} + seed;
  for (Vector& sum : sums) sum = factor;
  for (long i = 0; i < kSteps; ++i) {
#pragma GCC unroll 12
    for (Vector& sum : sums) sum = sum * factor + factor;
  }
  for (const Vector& sum : sums) *out += sum[0];
}

}  // namespace

// Floating-point operations a second of `threads` threads, best of `repeats`.
extern "C" double fma_peak(int threads, int repeats) {
  using Clock = std::chrono::steady_clock;
  std::vector<float> sink(16 * threads);
  double best = 0;
  for (int r = 0; r < repeats; ++r) {
    auto start = Clock::now();
    std::vector<std::thread> all;
    for (int t = 0; t < threads; ++t) {
      all.emplace_back(multiply_and_add, 0.5f, &sink[16 * t]);
    }
    for (std::thread& thread : all) thread.join();
    std::chrono::duration<double> taken = Clock::now() - start;
    double operations = 2.0 * kBytes / 4 * kChains * kSteps * threads;
    best = std::max(best, operations / taken.count());
  }
  return best;
}
