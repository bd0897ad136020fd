// The pool of threads with several callers whose bodies throw at times. Returns
// 0 if every call did all of its items, or threw the exception of one of them.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "csrc/cpu/thread_pool.h"

namespace {

std::atomic<int> wrong = 0;

// One call of `count` items, of which item `bad` throws; none if it is
// negative.
void call(int count, int bad) {
  std::vector<int> done(count, 0);
  try {
    nibble::cpu::parallel_for(count, [&](int i) {
      if (i == bad) {
        throw std::runtime_error(std::to_string(i));
      }
      ++done[i];
    });
    for (int d : done) wrong += d != 1;
    wrong += bad >= 0;
  } catch (const std::runtime_error& error) {
    wrong += std::to_string(bad) != error.what();
    for (int d : done) wrong += d > 1;
  }
}

}  // namespace

int main(int, char** argv) {
  int calls = argv[1] ? std::atoi(argv[1]) : 2000;
  std::vector<std::thread> callers;
  for (int t = 0; t < 3; ++t) {
    callers.emplace_back([=] {
      for (int n = 0; n < calls; ++n) {
        int count = 1 + (n * 7 + t) % 40;
        call(count, n % 3 == 0 ? n % count : -1);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  std::printf("%d wrong\n", wrong.load());
  return wrong != 0;
}
