// Runs the work of our nodes on a stream of the CPU.
#pragma once

#include <condition_variable>
#include <mutex>
#include <utility>
#include <vector>

#include "mlx/array.h"
#include "mlx/backend/cpu/encoder.h"

namespace nibble::cpu_task {

namespace mx = mlx::core;

// The outputs of our nodes that a stream has yet to compute. MLX allocates the
// outputs of some fifty nodes before it computes the first: for a long prompt,
// the activations of seven layers, where one layer's would do.
class Backlog {
 public:
  static Backlog& of(const mx::Stream& stream);

  void add(size_t bytes);
  void finish(size_t bytes);

  // Returns when few bytes are left, or after a time limit.
  void wait();

 private:
  std::mutex mutex_;
  std::condition_variable finished_;
  size_t bytes_ = 0;
  int tasks_ = 0;
};

// Has the stream run task(), which computes `outputs`. They have memory
// already. MLX keeps the inputs until the task is done.
template <typename Task>
void dispatch(const mx::Stream& stream,
              const std::vector<mx::array>& outputs,
              Task task) {
  size_t bytes = 0;
  for (const mx::array& output : outputs) {
    bytes += output.nbytes();
  }
  Backlog& backlog = Backlog::of(stream);
  backlog.add(bytes);
  mx::cpu::get_command_encoder(stream).dispatch(
      [task = std::move(task), &backlog, bytes]() mutable {
        task();
        backlog.finish(bytes);
      });
  backlog.wait();
}

}  // namespace nibble::cpu_task
