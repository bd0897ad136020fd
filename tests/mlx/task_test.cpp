// Tasks of a stream that throw. Returns 0 if the stream's backlog is empty
// after them, so that no later task waits, and if later tasks run.
#include <cstdio>
#include <new>
#include <vector>

#include "csrc/mlx/cpu_task.h"
#include "mlx/mlx.h"

namespace {

namespace mx = mlx::core;
using nibble::cpu_task::Backlog;

// Dispatches two tasks with large outputs, which throw or count.
void dispatch_two(const mx::Stream& stream, bool throws, int& done) {
  std::vector<mx::array> outputs = {mx::zeros({1 << 22})};
  for (int i = 0; i < 2; ++i) {
    nibble::cpu_task::dispatch(stream, outputs, [=, &done] {
      if (throws) {
        throw std::bad_alloc();
      }
      ++done;
    });
  }
}

// The error of the second task may come with a later call.
void clear_errors(const mx::Stream& stream) {
  for (;;) {
    try {
      return mx::synchronize(stream);
    } catch (const std::exception&) {
    }
  }
}

}  // namespace

int main() {
  mx::Stream stream = mx::new_stream(mx::Device::cpu);
  int done = 0, caught = 0;
  for (int i = 0; i < 20; ++i) {
    bool throws = i % 2 == 0;
    try {
      dispatch_two(stream, throws, done);
      mx::synchronize(stream);
    } catch (const std::exception&) {
      ++caught;
    }
    clear_errors(stream);
    if (!Backlog::of(stream).wait()) {
      std::printf("the backlog is not empty after call %d\n", i);
      return 1;
    }
  }
  std::printf("%d tasks done, %d errors\n", done, caught);
  return done != 20 || caught != 10;
}
