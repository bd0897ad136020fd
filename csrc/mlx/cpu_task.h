// Runs the work of our nodes on a stream of the CPU.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
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

  // Returns true when few bytes are left, false after a time limit.
  bool wait();

 private:
  std::mutex mutex_;
  std::condition_variable finished_;
  size_t bytes_ = 0;
  int tasks_ = 0;
};

// The part of a backlog that one task computes. Its end takes it off: the task
// is done, has thrown, or was dropped by the stream.
class Share {
 public:
  Share(Backlog& backlog, size_t bytes) : backlog_(backlog), bytes_(bytes) {
    backlog_.add(bytes_);
  }
  Share(const Share&) = delete;
  Share& operator=(const Share&) = delete;
  ~Share() { backlog_.finish(bytes_); }

 private:
  Backlog& backlog_;
  size_t bytes_;
};

// While one exists, dispatch() keeps the tasks of this thread in it. A node
// that evaluates others gives their tasks to the stream as one.
class Collection {
 public:
  Collection();
  Collection(const Collection&) = delete;
  Collection& operator=(const Collection&) = delete;
  ~Collection();

  // The collection of this thread; null without one.
  static Collection* current();

  void add(std::function<void()> task) { tasks_.push_back(std::move(task)); }
  // Empties the collection.
  std::vector<std::function<void()>> take() {
    return std::exchange(tasks_, {});
  }

 private:
  std::vector<std::function<void()>> tasks_;
};

// Has the stream run task(), which computes `outputs`. They have memory
// already. MLX keeps the inputs until the task is done.
template <typename Task>
void dispatch(const mx::Stream& stream,
              const std::vector<mx::array>& outputs,
              Task task) {
  if (Collection* collection = Collection::current()) {
    collection->add(std::move(task));
    return;
  }
  size_t bytes = 0;
  for (const mx::array& output : outputs) {
    bytes += output.nbytes();
  }
  Backlog& backlog = Backlog::of(stream);
  mx::cpu::get_command_encoder(stream).dispatch(
      [task = std::move(task),
       share = std::make_shared<Share>(backlog, bytes)]() mutable {
        // Ends with this call, also if task() throws.
        std::shared_ptr<Share> until_done = std::move(share);
        task();
      });
  backlog.wait();
}

}  // namespace nibble::cpu_task
